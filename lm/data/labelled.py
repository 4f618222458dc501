"""The labelled sets as lists of items, for `lm.recipes.finetune`."""

from dataclasses import dataclass
from typing import Any

from lm.data.corpus import cloze, packages
from lm.data.corpus.packages import SETS as SETS
from lm.data.corpus.prepare import Prepared
from lm.data.tokenizer import Tokenizer


@dataclass(frozen=True)
class Labelled:
    """Texts and the indices of their classes. `classes` are words, so that a model can also write them."""

    name: str
    classes: tuple[str, ...]
    train: tuple[tuple[str, int], ...]
    test: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Extractive:
    """(context, question, answer): the answer is words of the text, or what was in its blank."""

    name: str
    train: tuple[tuple[str, str, str], ...]
    test: tuple[tuple[str, str, str], ...]


def load(name: str, cache: str = "~/.cache/lm") -> Labelled:
    classes, found = packages.find(name).classes, packages.load(name, cache)
    sides: Any = (tuple((r.text, classes.index(r.label)) for r in found[split]) for split in ("train", "holdout"))
    return Labelled(name, classes, *sides)


def spans(prepared: Prepared, tokenizer: Tokenizer, *, length: int = 120, seed: int = 0) -> Extractive:
    return _cloze("spans", prepared, length, seed)


def infill(prepared: Prepared, tokenizer: Tokenizer, *, length: int = 60, seed: int = 0) -> Extractive:
    return _cloze("infill", prepared, length, seed)


def _cloze(name: str, prepared: Prepared, length: int, seed: int) -> Extractive:
    found = cloze.load(name, prepared, length=length, seed=seed)
    sides: Any = (tuple((r.context, r.question, r.answer) for r in found[split]) for split in ("train", "holdout"))
    return Extractive(name, *sides)
