"""Two lists with one pair across them, and a question: `a3 a7 a1 ; b5 b7 b2 ; first a3 .`

Word a<k> pairs with b<k>, and just one word of the first list has its pair in the second. Asked for is the word before it in
the `first` list, or the word before its pair in the `second` one. Read left to right, a word of the second list can be compared
with the first list when it is read; a word of the first list, which must be known for "first", cannot: its pair comes later.
"""

from collections.abc import Iterator
from functools import cache

import numpy as np

from experiments.languages import Language, write

PAIRS = 32
LENGTH = 6  # words in a list; the pair is never the first of a list, so an answer is one of LENGTH - 1
QUESTIONS = ("first", "second")


def documents(count: int, seed: int) -> Iterator[tuple[str, str, str]]:
    """`count` triples (text with the question, answer, question), the two questions in turn."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        numbers = rng.permutation(PAIRS)[: 2 * LENGTH]
        first, second = numbers[:LENGTH], numbers[LENGTH:]
        here, there = rng.integers(1, LENGTH, 2)
        second[there] = first[here]
        lists = {"first": [f"a{k}" for k in first], "second": [f"b{k}" for k in second]}
        question = QUESTIONS[i % 2]
        answer = lists[question][(here if question == "first" else there) - 1]
        yield f"{' '.join(lists['first'])} ; {' '.join(lists['second'])} ; {question}", answer, question


def items(question: str, count: int, seed: int) -> Iterator[dict[str, str]]:
    """`count` items of one question."""
    for left, answer, asked in documents(2 * count, seed):
        if asked == question:
            yield {"left": left, "target": answer, "right": ""}


@cache
def language(*, count: int = 30_000, asked: int = 256) -> Language:
    """Items `first` and `second`."""
    return write(
        "pairs",
        (f"{left} {answer} ." for left, answer, _ in documents(count, 0)),
        (f"{left} {answer} ." for left, answer, _ in documents(256, 1)),
        items={question: items(question, asked, 2) for question in QUESTIONS},
    )
