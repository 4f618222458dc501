"""Which documents of a source are held out: those with the smallest digests, a share of `data.holdout` of all.

The digest at which they end is found exactly, by counting digests by their first bits, and sorting those of one bin alone.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lm.config.data import LABELLED, OWN_SPLIT
from lm.data.corpus import groups, shards
from lm.data.corpus.tasks import GONE, HOLDOUT, SPLITS, TRAIN, Stage

_BITS = 12  # of digests that are counted
_EVERY = 1 << 62  # above any index


@dataclass(frozen=True)
class Cut:
    """The digest and index in its source of the last document that is held out."""

    digest: tuple[int, int, int, int] = (0, 0, 0, 0)
    index: int = -1  # of none; _EVERY: of all documents with the digest

    def holds(self, order: np.ndarray, index: np.ndarray) -> np.ndarray:
        """bool [n]: which documents are held out, by their digests, uint64 [n, 4], and indices, int64 [n]."""
        found = index <= self.index
        for column in (3, 2, 1, 0):
            bound = np.uint64(self.digest[column])
            found = (order[:, column] < bound) | ((order[:, column] == bound) & found)
        return found


_LAST = 2**64 - 1
NOTHING, ALL = Cut(), Cut((_LAST, _LAST, _LAST, _LAST), _EVERY)


@dataclass(frozen=True)
class _OfSpan(Stage):
    """A stage over the spans of a source."""

    def kept(self, span: int) -> tuple[np.ndarray, np.ndarray]:
        """Digest, uint64 [n, 4], and index in the source of each document of a span that is no duplicate."""
        state, order, index = groups.Outcome.at(self.work).state, [], []
        for cleaned, first, count in self.plan.of_span(span, self.work):
            rows = np.flatnonzero(state[first : first + count] == groups.KEPT)
            order.append(cleaned.rows()["order"][rows])
            index.append(rows + first - self.plan.begin(self.source))
        return np.concatenate(order), np.concatenate(index)


class Histogram(_OfSpan):
    """Counts the documents of a span by the first bits of their digests."""

    def do(self, task: int) -> None:
        order, _ = self.kept(task)
        bins = (order[:, 0] >> np.uint64(64 - _BITS)).astype(np.int64)
        shards.save(self.folder / f"{task}.npy", np.bincount(bins, minlength=1 << _BITS))


@dataclass(frozen=True)
class Bin(_OfSpan):
    """The documents of a span whose digests are in one bin."""

    bin: int

    def do(self, task: int) -> None:
        order, index = self.kept(task)
        found = (order[:, 0] >> np.uint64(64 - _BITS)) == np.uint64(self.bin)
        shards.save(self.folder / f"{task}.npy", np.column_stack([order[found], index[found].astype(np.uint64)]))


def counted(stage: Histogram, spans: Sequence[int]) -> np.ndarray:
    """int64 [bins]: what `Histogram` counted in all spans."""
    return np.sum([np.load(stage.folder / f"{span}.npy") for span in spans], axis=0)


def bin_of(counts: np.ndarray, held: int) -> int:
    """The bin that has the last of the `held` smallest digests."""
    return int(np.searchsorted(np.cumsum(counts), held))


def cut(stage: Bin, spans: Sequence[int], counts: np.ndarray, held: int, *, together: bool) -> Cut:
    """Where the `held` smallest digests end. `together`: documents with equal digests, records with the same question,
    must be in the same split."""
    before, total = int(counts[: stage.bin].sum()), int(counts.sum())
    found = np.concatenate([np.load(stage.folder / f"{span}.npy") for span in spans])
    found = found[np.lexsort(found.T[::-1])]
    *digest, index = found[held - before - 1].tolist()
    if not together:
        return Cut(tuple(digest), index)
    up_to = before + int(Cut(tuple(digest), _EVERY).holds(found[:, :4], np.zeros(len(found), np.int64)).sum())
    return Cut(tuple(digest), -1 if up_to == total else _EVERY)  # training needs at least one


@dataclass(frozen=True)
class Split(Stage):
    """Writes where each document of a shard is. Returns the number of documents in each split, and of each label."""

    cut: Cut

    def do(self, task: int) -> dict[str, Any]:
        first, count = self.plan.range(self.source, task)
        rows, state = self.cleaned(task).rows(), groups.Outcome.at(self.work).state[first : first + count]
        held = rows["held"]
        if self.about.kind not in OWN_SPLIT:
            held = self.cut.holds(rows["order"], np.arange(count) + first - self.plan.begin(self.source))
        side = np.where(state == groups.KEPT, np.where(held, HOLDOUT, TRAIN), GONE).astype(np.uint8)
        shards.save(self.folder / f"{task}.npy", side)
        sizes = np.diff(rows["end"], prepend=0)
        found: dict[str, Any] = {s: int((side == i).sum()) for i, s in enumerate(SPLITS)}
        found["bytes"] = {s: int(sizes[side == i].sum()) for i, s in enumerate(SPLITS)}
        if self.about.format in LABELLED:
            labels = {split: Counter[str]() for split in SPLITS}
            stay = np.flatnonzero(side != GONE)
            for row, document in zip(stay.tolist(), self.cleaned(task).documents(stay), strict=True):
                labels[SPLITS[side[row]]][json.loads(document.text)["label"]] += 1
            found["labels"] = labels
        return found
