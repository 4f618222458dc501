"""ListOps (Nangia and Bowman, arXiv 1804.06028): nested operations on digits, whose value depends on how they are nested.

    [MAX 2 9 [MIN 4 7] 0]    9        [SM 8 [MED 1 5 6] 4]    7

MAX, MIN, MED (the median; of an even number of them the mean of the middle two, rounded down) and SM (the sum modulo 10) of
two to five arguments. Expression i of a seed is a function of the two.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from lm.data import trees
from lm.data.records import LabelledTree

NAME = "listops"  # of the set
VERSION = 1  # raise it to have the set made again
COUNT, SEED = 20_000, 0  # of the set
ARGUMENTS, DEPTH, NESTED = 5, 4, 0.3  # at most; at most; share of the arguments above that depth that are operations
MOST = 64  # nodes; a larger expression is drawn again
OPERATORS: Mapping[str, Callable[[Sequence[int]], int]] = {
    "MAX": max,
    "MIN": min,
    "MED": lambda values: (sorted(values)[(len(values) - 1) // 2] + sorted(values)[len(values) // 2]) // 2,
    "SM": lambda values: sum(values) % 10,
}


def expression(seed: int, index: int, *, depth: int = DEPTH, most: int = MOST) -> LabelledTree:
    """Expression `index` of a seed, with operations nested up to `depth`, of up to `most` nodes; its label is its value."""
    rng = np.random.default_rng((seed, index))
    while len((nodes := _drawn(rng, depth)).read) > most:
        pass
    return LabelledTree(" ".join(trees.words(nodes)), str(value(nodes)), trees.written(nodes))


def _drawn(rng: np.random.Generator, depth: int) -> trees.Nodes:
    """An operation of random arguments, which are digits or, if `depth` is 2 or more, operations too."""
    read: list[str] = []
    children: list[int] = []
    count = int(rng.integers(2, ARGUMENTS + 1))
    for _ in range(count):
        if depth > 1 and rng.random() < NESTED:
            inner = _drawn(rng, depth - 1)
            read += inner.read
            children += inner.children
        else:
            read.append(str(rng.integers(10)))
            children.append(0)
    return trees.Nodes((*read, list(OPERATORS)[rng.integers(len(OPERATORS))]), (*children, count))


def value(nodes: trees.Nodes) -> int:
    """The value of an expression, a digit."""
    done: list[int] = []
    for word, count in zip(nodes.read, nodes.children, strict=True):
        arguments = done[len(done) - count :] if count else []
        del done[len(done) - count :]
        done.append(OPERATORS[word](arguments) if count else int(word))
    return done[0]


def load() -> list[LabelledTree]:
    """The records of the set."""
    return [expression(SEED, index) for index in range(COUNT)]
