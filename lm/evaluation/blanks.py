"""Blanks in running text whose word is known: names, numbers and long words, for questions that a text answers."""

import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from lm.data.tokenizer import Tokenizer
from lm.objectives.prompts import Span, join

SORTS = ("name", "number", "word")
LEAST = 8  # words to the left of a blank
# A word inside a sentence: what stands before its space ends none, so that a capital is that of a name. After a number's comma
# a model may go on with the number.
WORD = re.compile(r"(?:(?<=\w)|(?<=[^\W\d],))( (?:\d[\d,]*\d|\d|[^\W\d_]+))(?![\w'’-])")
LONG = 5  # letters of a word that is asked for, unless it is a name


@dataclass(frozen=True)
class Blank:
    """`word` has the space before it. `sort` is one of SORTS."""

    left: str
    word: str
    right: str
    sort: str


def sort_of(word: str) -> str | None:
    """Which of SORTS a word is; None for a short one, and for one in capitals."""
    word = word.strip()
    if word[:1].isdigit():
        return "number"
    if word[:1].isupper():
        return "name" if len(word) > 2 and word[1:].islower() else None
    return "word" if len(word) >= LONG and word.islower() else None


def blanks(text: str) -> Iterator[Blank]:
    """All blanks of a text, from left to right."""
    for found in WORD.finditer(text):
        left, sort = text[: found.start()], sort_of(found[0])
        if sort is not None and left.count(" ") >= LEAST:
            yield Blank(left, found[0], text[found.end() :], sort)


def drawn(
    texts: Iterable[str],
    count: int,
    rng: np.random.Generator,
    sorts: tuple[str, ...] = SORTS,
    suits: Callable[[Blank], bool] = lambda b: True,
) -> list[Blank]:
    """`count` blanks that suit, or as many as there are: one of a text, and of each sort as many as of another where they
    last."""
    found: dict[str, list[Blank]] = {sort: [] for sort in sorts}
    for text in texts:
        suitable = [b for b in blanks(text) if suits(b)]
        by_sort = {sort: [b for b in suitable if b.sort == sort] for sort in sorts}
        if some := [sort for sort in sorts if by_sort[sort]]:
            scarcest = min(some, key=lambda sort: len(found[sort]))
            found[scarcest].append(by_sort[scarcest][rng.integers(len(by_sort[scarcest]))])
        if sum(map(len, found.values())) >= count:
            break
    return [b for b in itertools.chain(*itertools.zip_longest(*found.values())) if b is not None]


def span(blank: Blank, word: str, tokenizer: Tokenizer, *, right: bool, room: int) -> Span:
    """The blank filled with a word, as tokens; with `right` also what follows. At most `room` tokens stand around the word, the
    nearest ones, most of them to its left."""
    left, target = tokenizer.encode(blank.left), tokenizer.encode(word)
    after = tokenizer.encode(blank.right)[: room // 3] if right else np.zeros(0, np.int32)
    return Span(join(left[-(room - len(after)) :]), target, join(after), len(word.encode()))


def renamed(blank: Blank, names: Iterable[tuple[str, str]]) -> Blank:
    """The blank with names replaced on both sides, all at the same time."""
    of = dict(names)
    old = re.compile(rf"\b(?:{'|'.join(map(re.escape, of))})\b")
    return replace(blank, **{side: old.sub(lambda m: of[m[0]], getattr(blank, side)) for side in ("left", "right")})
