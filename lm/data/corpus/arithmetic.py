"""Generated questions with one right answer, which a program can check: sets of `lm.data.corpus.generated`, beside those of
`lm.data.corpus.instructed`.

    sums     2 7 + 5 8 =          8 5
    letters  how many a in b a n a n a ?     3

Digits and letters stand apart, so that each is a token of a tokenizer of kind "word".
"""

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from lm.data.corpus import instructed
from lm.data.records import Message, Messages, Pair, Record
from lm.errors import UserError

LETTERS = "abcde"


def sums() -> Iterator[Pair]:
    """All sums of two numbers below 100."""
    apart = lambda n: " ".join(str(n))
    for a in range(100):
        for b in range(100):
            yield Pair(f"{apart(a)} + {apart(b)} =", apart(a + b))


def letters() -> Iterator[Pair]:
    """How often a letter occurs in a random word of 4 to 9 letters."""
    rng = np.random.default_rng(0)
    for _ in range(10_000):
        word = rng.choice(list(LETTERS), rng.integers(4, 10))
        letter = LETTERS[rng.integers(len(LETTERS))]
        yield Pair(f"how many {letter} in {' '.join(word)} ?", str(int((word == letter).sum())))


SETS: Mapping[str, Callable[[], Iterator[Pair]]] = {"sums": sums, "letters": letters, **instructed.SETS}


def load(name: str, format: str) -> list[Record]:
    """The records of a set, as pairs or as messages. UserError for another format."""
    if format not in ("pair", "messages"):
        raise UserError(f"the generated set '{name}' has no answers to compare: set format='pair' or 'messages'")
    turns = lambda pair: Messages((Message("user", pair.question), Message("assistant", pair.answer)))
    return [pair if format == "pair" else turns(pair) for pair in SETS[name]()]
