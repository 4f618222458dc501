"""Random words in which a pattern recurs at a random distance: `w7 [w3 w9 w1] w4 w8 w2 [w3 w9 w1] w5`, without the brackets.

All words of a document are distinct but for the pattern, so what follows the second occurrence of a word is certain: it is
what followed the first. No other word can be foreseen, and neither can the place of the pattern.
"""

from collections.abc import Iterator
from functools import cache

import numpy as np

from experiments.languages import Language, write

WORDS = 96
LENGTH = 32  # words in a document
PATTERN = (6, 12)  # words in a pattern, least and most


def documents(count: int, seed: int) -> Iterator[tuple[list[str], int, int]]:
    """`count` triples (words, where the second occurrence begins, the pattern's length)."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        size = int(rng.integers(PATTERN[0], PATTERN[1] + 1))
        first, second = np.sort(rng.choice(LENGTH - 2 * size + 1, 2)) + [0, size]
        words = [f"w{k}" for k in rng.permutation(WORDS)[: LENGTH - size]]
        yield words[:second] + words[first : first + size] + words[second:], int(second), size


def items(count: int, seed: int) -> Iterator[dict[str, str]]:
    """One question a document: a word of the second occurrence that is not its first, after all words before it."""
    rng = np.random.default_rng((seed, 1))
    for words, second, size in documents(count, seed):
        at = second + int(rng.integers(1, size))
        yield {"left": " ".join(words[:at]), "target": words[at], "right": ""}


@cache
def language(*, count: int = 16_000, asked: int = 256) -> Language:
    """Items `copy`."""
    return write(
        "copying",
        (" ".join(words) for words, *_ in documents(count, 0)),
        (" ".join(words) for words, *_ in documents(256, 1)),
        items={"copy": items(asked, 2)},
    )
