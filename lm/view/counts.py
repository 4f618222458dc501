"""Counts over a corpus and over the rows of a run's steps, and the tables of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lm.data.corpus.store import Store
from lm.view.pieces import Pieces

BLOCK = 1 << 24  # tokens that are counted at a time
FREQUENT = 100  # tokens in the table
BAR = 30  # characters of the longest bar
BESIDE = 4  # sources with a column of their own


@dataclass(frozen=True)
class Table:
    """A table of texts; those under heads in `left` are words, the others numbers. `long`: it may be folded into columns."""

    title: str
    head: Sequence[str]
    rows: list[list[str]]
    note: str = ""
    left: Sequence[str] = ()
    long: bool = False

    def folded(self, groups: int) -> "Table":
        """The same entries, `groups` of them side by side, read downwards."""
        each = -(-len(self.rows) // groups)
        blank = [""] * len(self.head)
        at = lambda i: self.rows[i] if i < len(self.rows) else blank
        rows = [[cell for g in range(groups) for cell in at(g * each + i)] for i in range(each)]
        return Table(self.title, [*self.head] * groups, rows, self.note, self.left)


@dataclass(frozen=True)
class Share:
    """What one source gives to the rows of some steps."""

    rows: int
    read: int  # tokens, without padding
    asked: int  # tokens with loss


def shares(
    batch: Callable[[np.ndarray], Any], sources: Callable[[np.ndarray], np.ndarray], steps: Sequence[np.ndarray], count: int
) -> list[Share]:
    """Exact counts for each of `count` sources over the rows of `steps`. `batch(index)` makes rows, `sources(index)` says the
    number of each row's source."""
    totals = np.zeros((count, 3), np.int64)
    for index in steps:
        source = sources(index)
        for s in np.unique(source).tolist():
            made = batch(mine := index[source == s])
            totals[s] += len(mine), int(made.tokens_read()), int(made.tokens_asked())
    return [Share(*map(int, line)) for line in totals]


def shares_table(found: Mapping[str, Share], weights: Mapping[str, float], epochs: Mapping[str, float], steps: int) -> Table:
    """`epochs`: how often the run reads each source."""
    asked, total = sum(weights[name] for name in found), np.sum([[s.rows, s.read, s.asked] for s in found.values()], axis=0)
    rows = []
    for name, share in found.items():
        pairs = zip((share.rows, share.read, share.asked), total.tolist(), strict=True)
        parts = [f"{part / whole:.1%}" if whole else "-" for part, whole in pairs]
        rows.append([name, f"{weights[name]:g}", f"{weights[name] / asked:.1%}", *parts, f"{epochs[name]:.2f}"])
    title = f"Shares of the sources in the first {steps:,} step{'s' * (steps != 1)}"
    note = (
        f"{total[0]:,} rows, {total[1]:,} tokens read, {total[2]:,} with loss. asked: of the rows, by weight; "
        "epochs: how often the whole run reads a source."
    )
    head = ("source", "weight", "asked", "rows", "tokens", "with loss", "epochs")
    return Table(title, head, rows, note, left=("source",))


def histogram(lengths: np.ndarray) -> list[tuple[int, int, int]]:
    """(least, most, how many) for lengths from a power of two up to the next one, without empty classes at both ends."""
    kinds = np.bincount(np.frexp(np.asarray(lengths, np.float64))[1])  # n is in 2^(kind - 1) .. 2^kind - 1
    present = np.flatnonzero(kinds)
    first, last = (int(present[0]), int(present[-1])) if len(present) else (0, -1)
    return [(1 << k >> 1, (1 << k) - 1, int(kinds[k])) for k in range(first, last + 1)]


def lengths_table(stores: Mapping[str, Store], what: str, room: int) -> Table:
    """Tokens of documents or records, of a few sources beside each other. `room`: tokens of a row."""
    each = {name: np.diff(store.offsets) for name, store in stores.items()}
    lengths = np.concatenate([*each.values()])
    shown = [*each] if 1 < len(each) <= BESIDE else []
    of_source = {name: {low: count for low, _, count in histogram(each[name])} for name in shown}
    classes, rows = histogram(lengths), list[list[str]]()
    most = max(count for *_, count in classes)
    for low, high, count in classes:
        row = [f"{low:,}" if low == high else f"{low:,}-{high:,}", *(f"{of_source[name].get(low, 0):,}" for name in shown)]
        rows.append([*row, f"{count:,}", f"{count / len(lengths):.1%}", _bar(count / most)])
    middle, long = np.percentile(lengths, (50, 90), method="inverted_cdf").astype(int).tolist()
    note = (
        f"{len(lengths):,} {what}, {int(lengths.sum()):,} tokens; half have up to {middle:,}, nine in ten up to {long:,}, "
        f"the longest {int(lengths.max()):,}. {float((lengths > room).mean()):.1%} have more than a row, {room:,}."
    )
    return Table(f"Tokens of {what}", ("tokens", *shown, what, "share", ""), rows, note, left=("",))


def _bar(share: float) -> str:
    return "█" * round(share * BAR) or "▏"


def frequencies(stores: Mapping[str, Store], size: int) -> np.ndarray:
    """int64 [size]: how often each id is in all stores."""
    counts = np.zeros(size, np.int64)
    for store in stores.values():
        for start in range(0, store.num_tokens, BLOCK):
            block = store.read(np.array([start]), min(BLOCK, store.num_tokens - start))
            counts += np.bincount(block[0], minlength=size)
    return counts


def frequent(counts: np.ndarray, most: int = FREQUENT) -> list[tuple[int, int]]:
    """(id, count) of the most frequent ids that occur, equally frequent ones by id."""
    order = np.argsort(-counts, kind="stable")[:most]
    return [(i, int(counts[i])) for i in order.tolist() if counts[i]]


def frequent_table(counts: np.ndarray, pieces: Pieces) -> Table:
    total, found = int(counts.sum()), frequent(counts)
    rows = [[str(n), pieces.text(i), str(i), f"{count / total:.2%}"] for n, (i, count) in enumerate(found, 1)]
    used = int((counts > 0).sum())
    covered = sum(count for _, count in found) / total
    note = f"{covered:.1%} of {total:,} tokens. {used:,} of {len(counts):,} ids occur."
    return Table(f"The {len(found)} most frequent tokens", ("", "token", "id", "share"), rows, note, left=("token",), long=True)
