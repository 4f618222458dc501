"""Random words in which a pattern recurs at random distances: `w7 (w3 w9 w1) w4 w8 (w3 w9 w1) w2`, without brackets.

The words of a pattern are distinct and stand nowhere else in its document, so what follows one of them is certain: it is what
followed it before. No other word can be foreseen, and neither can the places of the pattern.
"""

from collections.abc import Iterator
from functools import cache

import numpy as np

from experiments.languages import Language, write

WORDS = 24
LENGTH = 62  # words in a document
PATTERN = (4, 6)  # words in the pattern, least and most
GAP = 4  # other words before each occurrence, at most
Document = tuple[list[str], list[int], int]  # words, where the pattern begins, its length


def documents(count: int, seed: int) -> Iterator[Document]:
    """`count` documents; the pattern, of random length, begins anew after a random gap as long as it fits."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        fresh = [f"w{k}" for k in rng.permutation(WORDS)]
        size = int(rng.integers(PATTERN[0], PATTERN[1] + 1))
        pattern, others = fresh[:size], fresh[size:]
        words: list[str] = []
        begins: list[int] = []
        while len(words) + size <= LENGTH:
            words += rng.choice(others, min(int(rng.integers(GAP + 1)), LENGTH - size - len(words))).tolist()
            begins.append(len(words))
            words += pattern
        yield words + rng.choice(others, LENGTH - len(words)).tolist(), begins, size


def items(count: int, seed: int) -> Iterator[dict[str, str]]:
    """One question a document: a word of the second occurrence but its first, given all words before it."""
    rng = np.random.default_rng((seed, 1))
    for words, begins, size in documents(count, seed):
        at = begins[1] + int(rng.integers(1, size))
        yield {"left": " ".join(words[:at]), "target": words[at], "right": ""}


@cache
def language(*, count: int = 8_000, asked: int = 256) -> Language:
    """Items `copy`."""
    return write(
        "copying",
        (" ".join(words) for words, *_ in documents(count, 0)),
        (" ".join(words) for words, *_ in documents(256, 1)),
        items={"copy": items(asked, 2)},
    )
