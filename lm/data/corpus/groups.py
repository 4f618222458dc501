"""Exact and near duplicates among more documents than memory holds, by grouping on disk.

The earlier document stays, so the outcome depends only on the order of documents. One whose words equal an earlier one's is an
exact duplicate. Otherwise it is compared with those kept so far: an equal band of their MinHash makes candidates, and the
estimate of the Jaccard similarity (standard error about 0.5 / sqrt(permutations)) decides. From `settings.near` up it is a near
duplicate of the earliest such document, and its own exact copies are dropped as well.

    exact copies    documents, grouped by their SHA-256: all but the first of a group are copies of it
    candidates      the others, grouped by each band of their MinHash: those with an equal band are compared
    edges           pairs of candidates whose estimate reaches the threshold, sorted by the later document
    outcome         in the order of documents: one with an edge to a document that stays goes, and names the earliest such one

Only the last step is sequential; it reads edges alone, a range of documents at a time. A group is a slice of what
`shards.scatter` wrote for each span of documents; how many spans and slices there are follows from the memory for sorting.

Many documents may share a band, for example a page's frame. In a group of more than _SMALL, each is compared only with its
leaders: documents without an edge to an earlier leader. An edge to another, a follower, matters only if that one stays. So
after the outcome, followers that stay become leaders of their groups, and these are compared again; usually there are none.
Then all edges to documents that stay are known, and so the outcome is that of comparing all pairs.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from lm import config
from lm.data.corpus import dedup, shards
from lm.data.corpus.executors import Executor

_SMALL = 32  # documents of a group in which all pairs are compared
_BLOCK = 256  # documents of a large group that are compared with its leaders at a time
_PAIRS = 1 << 14  # pairs compared at a time
_OPEN = 256  # files of signatures that are mapped at a time
_COPIES = 4  # of the records, while they are sorted
KEPT, EXACT, NEAR = 0, 1, 2
_BY_DIGEST: Any = np.dtype([("key", *shards.DIGEST), ("doc", np.int64)])
_BY_BAND: Any = np.dtype([("key", np.uint64), ("doc", np.int64)])
_EDGE: Any = np.dtype([("doc", np.int64), ("other", np.int64)])  # other < doc


@dataclass(frozen=True)
class Plan:
    """All documents as one list, in shards, and shards in spans."""

    shards: list[tuple[str, int, int, int]]  # source, number in it, first document, documents
    spans: list[tuple[int, int]]  # first and last shard, exclusive; all of one source
    digest_parts: int
    band_parts: int

    @property
    def documents(self) -> int:
        return self.shards[-1][2] + self.shards[-1][3] if self.shards else 0

    @functools.cached_property
    def firsts(self) -> np.ndarray:
        """int64 [shards]: the first document of each."""
        return np.array([first for _, _, first, _ in self.shards], np.int64)

    @functools.cached_property
    def span_firsts(self) -> np.ndarray:
        """int64 [spans]"""
        return np.array([self.shards[a][2] for a, _ in self.spans], np.int64)

    @functools.cached_property
    def _ranges(self) -> dict[tuple[str, int], tuple[int, int]]:
        return {(source, number): (first, count) for source, number, first, count in self.shards}

    def range(self, source: str, number: int) -> tuple[int, int]:
        """First document and number of documents of a shard."""
        return self._ranges[source, number]

    def begin(self, source: str) -> int:
        """The first document of a source."""
        return self.range(source, 0)[0]

    def spans_in(self, source: str) -> list[int]:
        """The spans of a source."""
        return [i for i, (first, _) in enumerate(self.spans) if self.shards[first][0] == source]

    def of_span(self, span: int, work: Path) -> Iterator[tuple[shards.Cleaned, int, int]]:
        """Files, first document and number of documents of each shard in a span."""
        for source, number, first, count in self.shards[slice(*self.spans[span])]:
            yield shards.Cleaned(work, source, number), first, count

    def spans_of(self, docs: np.ndarray) -> np.ndarray:
        return np.searchsorted(self.span_firsts, docs, side="right") - 1

    def located(self, doc: int) -> tuple[str, int, int]:
        """The source of a document, the number of its shard there and its row in it."""
        source, number, first, _ = self.shards[int(np.searchsorted(self.firsts, doc, side="right")) - 1]
        return source, number, int(doc - first)


def planned(counts: Mapping[str, Sequence[int]], settings: config.Dedup, memory: int) -> dict[str, Any]:
    """The JSON of a Plan. `counts`: source -> documents in each of its shards."""
    bands = 0 if settings.near is None else dedup.bands(settings)[0]
    each = bands * _BY_BAND.itemsize * _COPIES + settings.permutations * 12 + shards.ROW.itemsize * _COPIES
    most = max(1, memory // each)  # documents in a span
    every, spans, first = [], [], 0
    for source, of in counts.items():
        held = most + 1  # so that a source begins a span
        for number, count in enumerate(of):
            if held + count > most:
                spans.append([len(every), len(every)])
                held = 0
            every.append([source, number, first, count])
            spans[-1][1], held, first = len(every), held + count, first + count
    parts = lambda size: max(1, -(-first * size * _COPIES // memory))
    return {
        "shards": every,
        "spans": spans,
        "digest_parts": parts(_BY_DIGEST.itemsize),
        "band_parts": parts(max(1, bands) * _BY_BAND.itemsize),
    }


@functools.lru_cache(maxsize=2)
def _plan(path: Path, changed: int) -> Plan:
    return Plan(**shards.loaded(path))


def plan(path: Path) -> Plan:
    """The Plan whose JSON is at `path`."""
    return _plan(path, path.stat().st_mtime_ns)


# ----------------------------------------------------------------------------------------------------------- tasks


@dataclass(frozen=True)
class _Task:
    """Tasks by number over the spans or slices of a plan, in folders below `work`/dedup."""

    work: Path
    settings: config.Dedup
    plan_at: Path

    @property
    def plan(self) -> Plan:
        return plan(self.plan_at)

    @property
    def name(self) -> str:
        return type(self).__name__

    def __call__(self, number: int) -> Any:
        return shards.once(self.file(self.name, number, "json"), lambda: self.do(number))

    def do(self, number: int) -> Any:
        raise NotImplementedError

    def file(self, name: str, number: int, end: str = "npy") -> Path:
        return self.work / "dedup" / name / f"{number}.{end}"

    def files(self, name: str, count: int) -> list[Path]:
        return [self.file(name, i) for i in range(count)]


class Digests(_Task):
    """A span's documents, by digest."""

    def do(self, number: int) -> None:
        found = []
        for cleaned, first, count in self.plan.of_span(number, self.work):
            found.append(np.zeros(count, _BY_DIGEST))
            found[-1]["key"], found[-1]["doc"] = cleaned.rows()["exact"], first + np.arange(count)
        records, parts = np.concatenate(found), self.plan.digest_parts
        shards.scatter(self.file(self.name, number), records, _slice(records["key"][:, 0], parts), parts)


class Copies(_Task):
    """An edge from each exact copy in a slice of digests to the first of its group."""

    def do(self, number: int) -> None:
        records = shards.gather(self.files("Digests", len(self.plan.spans)), number)
        key = records["key"]
        order = np.lexsort(key.T[::-1])  # stable, so that a group is in the order of documents
        key, doc = key[order], records["doc"][order]
        begins = np.concatenate([[True], (key[1:] != key[:-1]).any(axis=1)])[: len(doc)]
        edges = np.zeros(len(doc), _EDGE)
        edges["doc"], edges["other"] = doc, doc[begins][np.cumsum(begins) - 1] if len(doc) else doc
        edges = edges[~begins]
        shards.scatter(self.file(self.name, number), edges, self.plan.spans_of(edges["doc"]), len(self.plan.spans))


class Bands(_Task):
    """A span's documents, but for exact copies, by the hash of each band."""

    def do(self, number: int) -> None:
        copies = np.zeros(0, np.int64)
        if self.settings.exact:
            copies = shards.gather(self.files("Copies", self.plan.digest_parts), number)["doc"]
        found = [np.zeros(0, _BY_BAND)]
        for cleaned, first, _ in self.plan.of_span(number, self.work):
            near = cleaned.near()
            if not near.size:
                continue  # records, which are not compared
            docs = np.setdiff1d(first + np.arange(len(near)), copies)
            keys = _band_keys(near[docs - first], self.settings)
            found.append(np.zeros(keys.size, _BY_BAND))
            found[-1]["key"], found[-1]["doc"] = keys.T.ravel(), np.tile(docs, keys.shape[1])
        records, parts = np.concatenate(found), self.plan.band_parts
        shards.scatter(self.file(self.name, number), records, _slice(records["key"], parts), parts)


@dataclass(frozen=True)
class Edges(_Task):
    """The edges between candidates of a slice of bands. Returns the number of followers, which are in the file `followers`."""

    round: int = 0

    @property
    def name(self) -> str:
        return f"Edges{self.round}"

    def do(self, number: int) -> int:
        records = shards.gather(self.files("Bands", len(self.plan.spans)), number)
        key, doc = (records[name][np.argsort(records["key"], kind="stable")] for name in ("key", "doc"))
        del records
        begins = np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1]])[: len(key)])
        sizes = np.diff(np.append(begins, len(key)))
        compare = Compared(self.plan, self.work, self.settings)
        found = [_small_groups(doc, begins, sizes, compare)]
        leaders = np.load(self.work / "dedup" / f"leaders{self.round}.npy") if self.round else np.zeros(0, np.int64)
        followers = [np.zeros(0, np.int64)]
        for begin, size in zip(begins[sizes > _SMALL].tolist(), sizes[sizes > _SMALL].tolist(), strict=True):
            edges, following = _large_group(doc[begin : begin + size], leaders, compare)
            found += edges
            followers.append(following)
        edges: Any = np.unique(np.concatenate(found))
        following = np.unique(np.concatenate(followers))
        shards.save(self.file(self.name, number, "followers.npy"), following)
        shards.scatter(self.file(self.name, number), edges, self.plan.spans_of(edges["doc"]), len(self.plan.spans))
        return len(following)


def _slice(key: np.ndarray, parts: int) -> np.ndarray:
    """int64 [n]: which of so many equal ranges of uint64 each key is in."""
    return ((key >> np.uint64(32)) * np.uint64(parts) >> np.uint64(32)).astype(np.int64)


def _band_keys(near: np.ndarray, settings: config.Dedup) -> np.ndarray:
    """uint64 [n, bands]: a hash of each band and its number. That two of one hash have an equal band is checked later."""
    bands, rows = dedup.bands(settings)
    values = near[:, : bands * rows].reshape(len(near), bands, rows)
    out = np.broadcast_to(np.arange(1, bands + 1, dtype=np.uint64), values.shape[:2])
    for row in range(rows):
        out = (out ^ values[:, :, row]) * np.uint64(0x9E3779B97F4A7C15)
        out = out ^ (out >> np.uint64(29))
    return out


# ------------------------------------------------------------------------------------------------------ comparing


class Compared:
    """Compares documents by the signatures in the shards' files."""

    def __init__(self, plan: Plan, work: Path, settings: config.Dedup) -> None:
        self._plan, self._work, self._threshold = plan, work, settings.near
        self._bands, self._rows = dedup.bands(settings)
        self._mapped = functools.lru_cache(maxsize=_OPEN)(self._map)

    def _map(self, shard: int) -> np.ndarray:
        source, number, _, _ = self._plan.shards[shard]
        return shards.Cleaned(self._work, source, number).near()

    def signatures(self, docs: np.ndarray) -> np.ndarray:
        """uint32 [n, permutations]"""
        every, at = np.unique(docs, return_inverse=True)
        shard = np.searchsorted(self._plan.firsts, every, side="right") - 1
        found = []
        for number in np.unique(shard).tolist():
            found.append(self._mapped(number)[every[shard == number] - self._plan.firsts[number]])
        return np.concatenate(found)[at]

    def edges(self, docs: np.ndarray, others: np.ndarray) -> np.ndarray:
        """EDGE of those of these pairs that have an equal band and whose estimate reaches the threshold."""
        out = [np.zeros(0, _EDGE)]
        for start in range(0, len(docs), _PAIRS):
            doc, other = docs[start : start + _PAIRS], others[start : start + _PAIRS]
            equal = self.signatures(doc) == self.signatures(other)
            alike = np.mean(equal, axis=1) >= self._threshold
            banded = equal[:, : self._bands * self._rows].reshape(len(doc), self._bands, self._rows)
            alike &= banded.all(axis=2).any(axis=1)
            edges = np.zeros(int(alike.sum()), _EDGE)
            edges["doc"], edges["other"] = doc[alike], other[alike]
            out.append(edges)
        return np.concatenate(out)


def _small_groups(doc: np.ndarray, begins: np.ndarray, sizes: np.ndarray, compare: Compared) -> np.ndarray:
    """EDGE of all pairs in groups of up to _SMALL documents. `doc`: grouped, and ascending in a group."""
    small = (sizes > 1) & (sizes <= _SMALL)
    rows = np.repeat(begins[small], sizes[small])
    rank = np.arange(len(rows)) - np.repeat(np.cumsum(sizes[small]) - sizes[small], sizes[small])
    rows += rank
    found = [np.zeros(0, _EDGE)]
    for step in range(1, int(rank.max(initial=0)) + 1):
        later = rows[rank >= step]
        pairs = np.zeros(len(later), _EDGE)
        pairs["doc"], pairs["other"] = doc[later], doc[later - step]
        pairs = np.unique(pairs)  # near copies share many bands
        found.append(compare.edges(pairs["doc"], pairs["other"]))
    return np.concatenate(found)


def _large_group(docs: np.ndarray, chosen: np.ndarray, compare: Compared) -> tuple[list[np.ndarray], np.ndarray]:
    """Edges to the leaders of a group, and its followers. Documents of `chosen` are leaders whatever they are like."""
    leads = np.isin(docs, chosen)
    leaders, found = np.zeros(0, np.int64), []
    follows = np.zeros(len(docs), bool)
    for start in range(0, len(docs), _BLOCK):
        block = docs[start : start + _BLOCK]
        outer = [np.zeros(0, _EDGE)]
        for at in range(0, len(leaders), _PAIRS // _BLOCK):
            some = leaders[at : at + _PAIRS // _BLOCK]
            outer.append(compare.edges(np.repeat(block, len(some)), np.tile(some, len(block))))
        edges = np.concatenate(outer)
        inner = compare.edges(*(block[i] for i in np.tril_indices(len(block), -1)))
        following = np.isin(block, edges["doc"])
        for i, one in enumerate(block.tolist()):
            if not following[i] or leads[start + i]:
                following |= np.isin(block, inner["doc"][inner["other"] == one])
                following[i] = False
        found += [edges, inner[~np.isin(inner["other"], block[following])]]
        leaders = np.append(leaders, block[~following])
        follows[start : start + _BLOCK] = following
    return found, docs[follows]


# -------------------------------------------------------------------------------------------------------- outcome


@dataclass(frozen=True)
class Outcome:
    """What became of each document, on disk."""

    state: np.ndarray  # uint8 [documents]: KEPT, EXACT or NEAR
    target: np.ndarray  # int64 [documents]: the document that is kept instead

    @classmethod
    def at(cls, work: Path, mode: Any = "r") -> "Outcome":
        return cls(*(np.load(work / "dedup" / f"{name}.npy", mmap_mode=mode) for name in ("state", "target")))


def find(work: Path, plan_at: Path, settings: config.Dedup, on: Executor, size: int) -> None:
    """Writes the Outcome of all documents. `size`: bytes of their text."""
    the, task = plan(plan_at), (work, settings, plan_at)
    copies: list[Path] = []
    if not the.documents:
        return _resolve(work, the, [], [])
    spans = range(len(the.spans))
    run = lambda stage, numbers: list(on.run((functools.partial(stage, i) for i in numbers), size=size))
    if settings.exact:
        run(Digests(*task), spans)
        run(Copies(*task), range(the.digest_parts))
        copies = Copies(*task).files("Copies", the.digest_parts)
    if settings.near is None:
        return _resolve(work, the, copies, [])
    run(Bands(*task), spans)
    newest = [0] * the.band_parts  # of each slice, the round in which it was compared
    leaders = np.zeros(0, np.int64)
    for round in range(the.documents + 1):
        again = [number for number in range(the.band_parts) if newest[number] == round]
        if not again:
            return
        run(Edges(*task, round=round), again)
        files = [Edges(*task, round=newest[i]).file(f"Edges{newest[i]}", i) for i in range(the.band_parts)]
        _resolve(work, the, copies, files)
        state = Outcome.at(work).state
        for number, file in enumerate(files):
            followers = np.load(file.with_suffix(".followers.npy"))
            stay = followers[state[followers] == KEPT]
            if len(stay):
                leaders, newest[number] = np.union1d(leaders, stay), round + 1
        shards.save(work / "dedup" / f"leaders{round + 1}.npy", leaders)


def _resolve(work: Path, the: Plan, copies: list[Path], edges: list[Path]) -> None:
    """Writes the Outcome that these edges give, in the order of documents."""
    for name, dtype in (("state", np.uint8), ("target", np.int64)):
        (work / "dedup").mkdir(parents=True, exist_ok=True)
        np.lib.format.open_memmap(work / "dedup" / f"{name}.npy", "w+", dtype, (max(1, the.documents),))
    found = Outcome.at(work, "r+")
    state, target = np.asarray(found.state), np.asarray(found.target)
    for span in range(len(the.spans)):
        if edges:
            _near(np.unique(shards.gather(edges, span)), state, target)
        if copies:
            exact = shards.gather(copies, span)
            first = exact["other"]
            target[exact["doc"]] = np.where(state[first] == KEPT, first, target[first])
            state[exact["doc"]] = EXACT
    for array in (found.state, found.target):
        cast(np.memmap, array).flush()


def _near(edges: np.ndarray, state: np.ndarray, target: np.ndarray) -> None:
    """Drops each document with an edge to one that is kept. `edges`: sorted by document, then by the other."""
    done = -1
    for doc, other in zip(edges["doc"].tolist(), edges["other"].tolist(), strict=True):
        if doc != done and state[other] == KEPT:
            state[doc], target[doc], done = NEAR, other, doc
