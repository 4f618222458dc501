"""Sudoku of 6 x 6 cells, row by row: "3 1 2 4 5 6 5 4 6 ...". Each row, column and box of 2 x 3 has each digit once.

Training texts are complete grids. The puzzles are other grids of which cells are left out, so that one solution is left.
"""

from functools import cache

import numpy as np

from experiments.languages import Language, write

SIZE, TALL, WIDE = 6, 2, 3
CELLS = SIZE * SIZE
GIVEN = 14  # cells of a puzzle that are told, at least; more where fewer would allow two solutions
TRAIN, HELDOUT = 30_000, 300

_AT = np.arange(CELLS)
_ROW, _COLUMN = _AT // SIZE, _AT % SIZE
_BOX = _ROW // TALL * TALL + _COLUMN // WIDE
# Cells that may not have the same digit as this one.
PEERS = [
    np.flatnonzero(((_ROW == _ROW[i]) | (_COLUMN == _COLUMN[i]) | (_BOX == _BOX[i])) & (_AT != i)).tolist()
    for i in range(CELLS)
]


def solutions(grid: list[int], most: int, rng: np.random.Generator | None = None) -> list[list[int]]:
    """At most so many solutions of a grid, int [36], 0 where nothing is known; in random order with `rng`."""
    found: list[list[int]] = []

    def search(grid: list[int]) -> None:
        best, digits = -1, list[int]()
        for i in range(CELLS):
            if not grid[i]:
                may = [d for d in range(1, SIZE + 1) if all(grid[j] != d for j in PEERS[i])]
                if best < 0 or len(may) < len(digits):
                    best, digits = i, may
                    if len(may) < 2:
                        break
        if best < 0:
            found.append(grid.copy())
            return
        for d in rng.permutation(digits).tolist() if rng else digits:
            grid[best] = d
            search(grid)
            grid[best] = 0
            if len(found) == most:
                return

    search(list(grid))
    return found


def shuffled(grids: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Other grids, int64 [N, 36] each: digits renamed, rows changed within and between bands, columns within and between
    stacks."""
    n = len(grids)
    order = lambda *shape: np.argsort(rng.random((n, *shape)), axis=-1)

    def lines(size: int) -> np.ndarray:
        """int64 [N, 6]: an order of the rows or columns that keeps those of a box together, `size` of them."""
        within = order(SIZE // size, size)
        blocks = order(SIZE // size)[:, :, None]
        return (blocks * size + np.take_along_axis(within, blocks, axis=1)).reshape(n, SIZE)

    rows, columns = lines(TALL), lines(WIDE)
    square = grids.reshape(n, SIZE, SIZE)[np.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]]
    return 1 + np.take_along_axis(order(SIZE), square.reshape(n, CELLS) - 1, axis=1)


@cache
def grids() -> tuple[np.ndarray, np.ndarray]:
    """int64 [TRAIN, 36] and [HELDOUT, 36]: all are different."""
    rng = np.random.default_rng(0)
    first = np.array([solutions([0] * CELLS, 1, rng)[0] for _ in range(100)])
    table = np.unique(shuffled(first[rng.integers(len(first), size=TRAIN + 2 * HELDOUT)], rng), axis=0)
    table = table[rng.permutation(len(table))]
    return table[HELDOUT : HELDOUT + TRAIN], table[:HELDOUT]


@cache
def puzzles(count: int = HELDOUT) -> np.ndarray:
    """int64 [count, 36]: held-out grids, 0 where a cell is left out."""
    rng = np.random.default_rng(1)
    return np.stack([_puzzle(grid, rng) for grid in grids()[1][:count]])


def _puzzle(grid: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    left = grid.tolist()
    for i in rng.permutation(CELLS).tolist():
        digit, left[i] = left[i], 0
        if len(solutions(left, 2)) > 1:
            left[i] = digit
        if sum(map(bool, left)) == GIVEN:
            break
    return np.array(left)


def language() -> Language:
    """Complete grids, one text each."""
    train, held = grids()
    spell = lambda table: (" ".join(map(str, row)) for row in table.tolist())
    return write("sudoku", spell(train), spell(held))
