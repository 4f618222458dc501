"""Path-stars (arXiv 2403.06963, section 4): several arms of nodes begin at one centre, and the path to the end of one is asked.

A text is "3 7 | 0 3 | ... | 9 4 / 0 7 = 3 7": the edges in random order, each from the node nearer the centre to the next one,
then the centre and the goal, then the path without the centre. Names of nodes are drawn anew for each text. Nothing but the
edges says which arm the goal ends, so one who writes the path from left to right needs all edges of the arm for its first node
and a single edge for each later one.
"""

from collections.abc import Iterator

import numpy as np

from experiments.languages import Language, write

NAMES = 10  # of nodes
TRAIN, HELDOUT = 60_000, 500


def stars(count: int, arms: int, length: int, seed: int) -> Iterator[tuple[str, str]]:
    """So many pairs (question, path); a question ends in "=". `arms` paths of `length` edges each."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        nodes = rng.permutation(NAMES)[: 1 + arms * length]
        paths = nodes[1:].reshape(arms, length)
        edges = [edge for path in paths for edge in zip([nodes[0], *path], path, strict=False)]
        told = " | ".join(f"{edges[i][0]} {edges[i][1]}" for i in rng.permutation(len(edges)))
        path = paths[rng.integers(arms)]
        yield f"{told} / {nodes[0]} {path[-1]} =", " ".join(map(str, path))


def heldout(arms: int, length: int) -> list[tuple[str, str]]:
    return list(stars(HELDOUT, arms, length, 1))


def language(arms: int = 2, length: int = 3) -> Language:
    """Training texts, held-out ones, and of these as items the path after its question. ValueError: there are too few names."""
    if 1 + arms * length > NAMES:
        raise ValueError(f"{arms} arms of {length} edges have more than {NAMES} nodes")
    held = heldout(arms, length)
    asked = set(held)
    train = (" ".join(pair) for pair in stars(TRAIN, arms, length, 0) if pair not in asked)
    items = [{"left": question, "target": f" {path}", "right": ""} for question, path in held]
    return write("paths", train, (" ".join(pair) for pair in held), items={"path": items})
