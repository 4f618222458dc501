"""Questions about pictures with right answers, made of what is known of each: its name, its group, its main colour.

    what is it called?          red apple
    what kind of thing is it?   food drink
    what colour is it?          red                 the main colour, computed from the pixels (`main_colour`)
    is it red?                  yes
    is it food drink?           no
    is it red apple?            yes

The question alone says nothing about the answer of one with yes or no: half of them are asked about the picture itself, half
about another one. `guess` is the best that an answerer without eyes does.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lm.data.records import Pair

# Reference colours, RGB. Most are those that OpenMoji's designers draw with (openmoji.org/styleguide, Color Palette).
PALETTE: Mapping[str, tuple[tuple[int, int, int], ...]] = {
    "yellow": ((0xFC, 0xEA, 0x2B), (0xF1, 0xB3, 0x1C)),
    "orange": ((0xE2, 0x70, 0x22), (0xF4, 0xAA, 0x41)),
    "red": ((0xD2, 0x2F, 0x27), (0xEA, 0x5A, 0x47)),
    "pink": ((0xE6, 0x7A, 0x94), (0xFF, 0xA7, 0xC0)),
    "purple": ((0x8B, 0x5E, 0xBC), (0x89, 0x67, 0xAA), (0xB3, 0x99, 0xC8)),
    "blue": ((0x1E, 0x50, 0xA0), (0x61, 0xB2, 0xE4), (0x92, 0xD3, 0xF5)),
    "green": ((0x5C, 0x9E, 0x31), (0x18, 0x65, 0x34), (0xB1, 0xCC, 0x33)),
    "brown": ((0x6A, 0x46, 0x2F), (0xA5, 0x79, 0x39)),
    "grey": ((0xD0, 0xCF, 0xCE), (0x9B, 0x9B, 0x9A), (0x5F, 0x5F, 0x5F)),
    "white": ((0xFF, 0xFF, 0xFF),),
    "black": ((0x00, 0x00, 0x00), (0x3F, 0x3F, 0x3F)),
}
LEAST = 0.05  # of the pixels that a colour must have to be the main one; below, only lines are drawn: black
KINDS = ("name", "group", "colour", "is_colour", "is_group", "is_name")  # of questions
YES, NO = "yes", "no"


@dataclass(frozen=True)
class Described:
    """What is known of a picture."""

    name: str
    group: str
    colour: str

    def of(self, kind: str) -> str:
        """The property that a question of this kind is about."""
        return getattr(self, kind.removeprefix("is_"))


WHAT = {"name": "what is it called?", "group": "what kind of thing is it?", "colour": "what colour is it?"}


def main_colour(pixels: np.ndarray) -> str:
    """The name in PALETTE of the colour that most of the pixels uint8 [H, W, 3] have, after white and black, which are the
    ground and the lines of a drawing. Black if no other colour has a share of LEAST. Every second pixel of a line, and every
    second line, is looked at."""
    names = [name for name, some in PALETTE.items() for _ in some]
    table = np.array([rgb for some in PALETTE.values() for rgb in some], np.int32)
    flat = pixels[::2, ::2].reshape(-1, 3).astype(np.int32)
    nearest = ((flat[:, None] - table) ** 2).sum(axis=-1).argmin(axis=1)
    found = Counter({name: 0 for name in PALETTE})
    for number, count in zip(*np.unique(nearest, return_counts=True), strict=True):
        found[names[number]] += int(count)
    coloured = {name: count for name, count in found.items() if name not in ("white", "black")}
    best = max(coloured, key=lambda name: coloured[name])
    return best if coloured[best] >= LEAST * len(flat) else "black"


def question(pictures: Sequence[Described], number: int, kind: str, rng: np.random.Generator) -> Pair:
    """A question of this kind about picture `number`, and its answer. Those with yes or no ask for what is true of another
    picture, drawn from all of them, as often as for what is true of this one; where both have it the answer is yes."""
    picture = pictures[number]
    if kind in WHAT:
        return Pair(WHAT[kind], picture.of(kind))
    asked = picture.of(kind)
    if rng.random() < 0.5:
        asked = pictures[int(rng.integers(len(pictures)))].of(kind)
    return Pair(f"is it {asked}?", YES if asked == picture.of(kind) else NO)


def guess(trained: Sequence[Pair]) -> Callable[[str], str]:
    """question -> its most common answer among these, or that of all questions for one that is not among them: what is best
    without a look at the pictures."""
    of = dict[str, Counter[str]]()
    for pair in trained:
        of.setdefault(pair.question, Counter())[pair.answer] += 1
    best = {asked: found.most_common(1)[0][0] for asked, found in of.items()}
    otherwise = Counter(pair.answer for pair in trained).most_common(1)[0][0]
    return lambda asked: best.get(asked, otherwise)
