"""Sets from packages as tasks told in words (T5, arXiv 1910.10683; FLAN, 2109.01652): kind `package`, format `pair`.

    sentiment        is this film review good or bad ? A fine film.          good
    topics           is this about history , yes or no ? A composer.         no
    verses           say it in the English of today : And God said ...       God said ...
    effects          Nearer the speaker the sound is A: louder B: quieter    louder
    untold/verses    And God said ...                                        God said ...

A set is one of `lm.data.corpus.packages`, whose splits these are, or one of RECORDS. Each record has one of the set's forms of
words, chosen by a hash of its text. "untold/" before a set gives the same records without the words: of those that name a
class to ask about only the text is left.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from lm.data.corpus import packages
from lm.data.records import Labelled, Pair
from lm.errors import UserError, nearest

VERSION = 1  # of the forms; raise it to have them prepared again
UNTOLD = "untold/"
EVALS = "evals==3.0.1.post1"


@dataclass(frozen=True)
class File:
    """One file of a pinned package."""

    requirement: str
    member: str
    sha256: str

    def read(self, cache: str) -> str:
        return packages.member(self.requirement, self.member, self.sha256, cache).decode()


def _version(name: str, sha256: str) -> File:
    return File(f"pythonbible-{name}==0.0.2", f"pythonbible_{name}/plain_text_readers_bible.py", sha256)


def verses(old: str, new: str) -> packages.Pairs:
    """Verses of the King James and of the World English version, of modules that have all text in one string, then two dicts:
    where each verse starts and where it ends. Brackets mark words that the translators added."""
    both = [_verses(source) for source in (old, new)]
    for number in sorted(both[0].keys() & both[1].keys()):
        yield both[0][number], both[1][number]


def _verses(source: str) -> dict[int, str]:
    start = source.index('"""') + 3
    text, rest = source[start : source.index('"""', start)], source[source.index('"""', start) :]
    starts, ends = (
        {int(verse): int(at) for verse, at in re.findall(r"(\d+): (\d+)", body)}
        for body in re.findall(r"\{((?:\s+\d+: \d+,)+)\s+\}", rest)[:2]
    )
    cut = lambda verse: " ".join(re.sub(r"[\[\]]", "", text[starts[verse] : ends[verse]]).replace("`", "'").split())
    return {verse: found for verse in starts if (found := cut(verse))}


def effects(raw: str) -> packages.Pairs:
    """A line is `{"input": [instruction, {"content": question with "A: ..." and "B: ..."}], "ideal": "A"}` (QuaRTz)."""
    for line in raw.splitlines():
        entry = json.loads(line)
        question = " ".join(entry["input"][1]["content"].split())
        if found := re.search(r"\bA: (.+?) B: (.+)$", question):
            yield question, found["AB".index(entry["ideal"]) + 1].strip()


FILES: Mapping[str, tuple[File, ...]] = {
    "verses": (
        _version("kjv", "6b65f8f3f4541c60c734acf6fedb00d1d55d3a8a2121d324002d05a3fe6c74b1"),
        _version("web", "c3daeaf48ba26fb640ce8ec6a85fb3b9dbb6c69d032c53e190c45167c4eb26bc"),
    ),
    "effects": (
        File(
            EVALS,
            "evals/registry/data/quartz/samples.jsonl",
            "e439668cc38aa157bb1a746d9540f61f29d7f494a6618a955c8e3b5f55a363e7",
        ),
    ),
}
RECORDS: Mapping[str, Callable[..., packages.Pairs]] = {"verses": verses, "effects": effects}

Form = Callable[[Labelled, int], Pair]  # a record and a number by which to choose -> what is asked, and the answer


def label(words: str) -> Form:
    """The answer is the label, or the other text."""
    return lambda record, number: Pair(words.format(record.text), record.label)


def whether(words: str, *classes: str) -> Form:
    """Asks about one class, the record's in half of the cases; the answer is yes or no."""

    def form(record: Labelled, number: int) -> Pair:
        others = [name for name in classes if name != record.label]
        asked = record.label if number % 2 else others[number // 2 % len(others)]
        return Pair(words.format(record.text, asked=asked), "yes" if asked == record.label else "no")

    return form


def backwards(words: str) -> Form:
    """The label is given, and the text is the answer."""
    return lambda record, number: Pair(words.format(record.label), record.text)


def _classes(name: str) -> tuple[str, ...]:
    return packages.SETS[name].classes


FORMS: Mapping[str, tuple[Form, ...]] = {
    "sentiment": (
        label("is this film review good or bad ? {}"),
        label("say whether the film was found good or bad : {}"),
        whether("is this film review {asked} , yes or no ? {}", *_classes("sentiment")),
    ),
    "questions": (
        label(f"does this ask for {' , '.join(_classes('questions'))} ? {{}}"),
        whether("is the answer to this a {asked} , yes or no ? {}", *_classes("questions")),
    ),
    "spam": (
        label("is this message normal or spam ? {}"),
        whether("is this message {asked} , yes or no ? {}", *_classes("spam")),
    ),
    "topics": (
        label(f"is this about {' , '.join(_classes('topics'))} ? {{}}"),
        label("say in a word what this is about : {}"),
        whether("is this about {asked} , yes or no ? {}", *_classes("topics")),
    ),
    "sarcasm": (
        label("is this headline honest or sarcastic ? {}"),
        whether("is this headline {asked} , yes or no ? {}", *_classes("sarcasm")),
    ),
    "verses": (
        label("say it in the English of today : {}"),
        label("translate from old to new English : {}"),
        backwards("translate from new to old English : {}"),
    ),
    "effects": (label("answer the question : {}"), label("which of the two is right ? {}")),
}


def load(name: str, cache: str = "~/.cache/lm") -> dict[str, list[Pair]]:
    """The pairs of both splits, `train` and `holdout`. The packages are fetched if they are not in the cache. UserError for an
    unknown set, and as `packages.load`."""
    name, told = known(name), not name.startswith(UNTOLD)
    if name in RECORDS:
        splits = packages.split(RECORDS[name](*(file.read(cache) for file in FILES[name])))
    else:
        splits = packages.load(name, cache)
    return {split: [asked(record, FORMS[name], told=told) for record in some] for split, some in splits.items()}


def asked(record: Labelled, forms: tuple[Form, ...], *, told: bool) -> Pair:
    """The record in one of the forms; if not `told`, without their words."""
    number = int.from_bytes(hashlib.sha256(record.text.encode()).digest()[8:16], "big")
    pair = forms[number % len(forms)](record, number // len(forms))
    if told:
        return pair
    return Pair(record.label if pair.answer == record.text else record.text, pair.answer)


def known(name: str) -> str:
    """The name of a set, without "untold/". UserError if there is no such set."""
    if (name := name.removeprefix(UNTOLD)) not in FORMS:
        raise UserError(f"no set '{name}' that is told in words{nearest(name, FORMS)}")
    return name


def identity(name: str) -> list[object]:
    """What the records of a set depend on beside its name."""
    files = [file.sha256 for file in FILES[known(name)]] if known(name) in FILES else [packages.find(known(name)).sha256]
    return [VERSION, packages.VERSION, *files]
