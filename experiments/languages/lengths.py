"""Words, and the same words again: `w5 w2 w9 = w5 w2 w9 .`, of few words in training and more in the test.

The words of a document are distinct, so each word of the copy is certain given the one before it, at any length.
"""

from collections.abc import Iterator
from functools import cache

import numpy as np

from experiments.languages import Language, write

WORDS = 32
LONGEST = 8  # words that are copied, at most, in training
RANGES = {"inside": (5, 8), "near": (9, 12), "far": (13, 16)}  # words that are copied in the items, least and most


def lists(count: int, least: int, most: int, seed: int) -> Iterator[str]:
    """`count` lists of `least` to `most` distinct words, each length equally often."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        size = least + i % (most - least + 1)
        yield " ".join(f"w{k}" for k in rng.permutation(WORDS)[:size])


def copied(words: str) -> str:
    return f"{words} = {words} ."


def items(least: int, most: int, count: int, seed: int) -> Iterator[dict[str, str]]:
    """The copy and the full stop are asked for, given the list."""
    return ({"left": f"{words} =", "target": f"{words} .", "right": ""} for words in lists(count, least, most, seed))


@cache
def language(*, count: int = 24_000, asked: int = 120) -> Language:
    """Items `inside`, `near` and `far`, by the number of words: as in training, up to 1.5 times and up to twice as many."""
    return write(
        "lengths",
        map(copied, lists(count, 1, LONGEST, 0)),
        map(copied, lists(240, 1, LONGEST, 1)),
        items={name: items(*sizes, asked, 2 + i) for i, (name, sizes) in enumerate(RANGES.items())},
    )
