"""Rows by arithmetic: row i of a run is a function of (seed, i), and depends on no host, worker or history.

The position in the data is one number. A row is a window over the concatenated documents of a source, cut where documents
end; the objective turns each piece into an Example, and the pieces share the row as segments.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lm import config
from lm.data import trees
from lm.data.corpus.store import Store
from lm.errors import UserError
from lm.objectives import Lengths, Objective, spread
from lm.types import Example, TokenStream, Tree

# The arguments of `fill`: the tokens of a window, where documents begin in it, and what turns them into a row.
Window = tuple[np.ndarray, np.ndarray, Objective, np.random.Generator, np.ndarray | None, float, float]


def permute(index: np.ndarray, size: int, key: Sequence[int]) -> np.ndarray:
    """Applies a permutation of 0..size-1, which `key` chooses, to `index`: int64 -> int64. It is computed for each index, not
    stored.

    A four-round Feistel network on the next even number of bits, applied again until the result is below `size` (Black and
    Rogaway, "Ciphers with arbitrary finite domains", 2002).
    """
    half = max(1, (int(size - 1).bit_length() + 1) // 2)
    low = np.uint64((1 << half) - 1)
    keys = np.random.SeedSequence(key).generate_state(4, np.uint64)

    def network(x: np.ndarray) -> np.ndarray:
        left, right = x >> np.uint64(half), x & low
        for k in keys:
            mixed = (right + k) * np.uint64(0x9E3779B97F4A7C15)
            mixed = (mixed ^ (mixed >> np.uint64(32))) * np.uint64(0xD6E8FEB86659FD93)
            left, right = right, left ^ ((mixed >> np.uint64(32)) & low)
        return (left << np.uint64(half)) | right

    out = network(np.asarray(index, np.uint64))
    while (outside := out >= np.uint64(size)).any():
        out[outside] = network(out[outside])
    return out.astype(np.int64)


def mixture_weights(data: config.Data, sizes: Mapping[str, int]) -> dict[str, float]:
    """The weight of each source in the mixture: as `data.sources` has it, else 1; under `data.temperature` times its
    size^(1 / temperature), in units of the largest source's. The size is that of what the mixture shares out: rows."""
    given = {name: data.sources[name].weight if name in data.sources else 1.0 for name in sizes}
    if data.temperature is None:
        return given
    largest = max(*sizes.values(), 1)
    return {name: w * (sizes[name] / largest) ** (1 / data.temperature) for name, w in given.items()}


def tokens_of(stores: Mapping[str, Store]) -> dict[str, int]:
    """The size of each source of texts, whose rows have equally many tokens."""
    return {name: store.num_tokens for name, store in stores.items()}


def shares(weights: Sequence[float]) -> np.ndarray:
    """The weights of all sources, scaled to sum to 1: float64."""
    if min(weights) < 0 or sum(weights) <= 0:
        raise UserError(
            f"data.sources.*.weight are {', '.join(f'{w:g}' for w in weights)}; they are shares: none below 0, not all 0"
        )
    return np.asarray(weights, float) / np.sum(weights)


def mixture(index: np.ndarray, weights: Sequence[float], period: int = 1000) -> tuple[np.ndarray, np.ndarray]:
    """The source that each row of `index` comes from, and its number among that source's rows: int64 each.

    A fixed pattern of at most `period` rows repeats. It spreads each source evenly, so that any run of rows has about the
    weights' shares.
    """
    parts = shares(weights)
    counts = np.where(parts > 0, np.maximum(1, np.round(parts * period)), 0).astype(int)
    counts //= np.gcd.reduce(counts)
    due = np.concatenate([(np.arange(n) + 0.5) / max(n, 1) for n in counts])
    owner = np.repeat(np.arange(len(counts)), counts)
    pattern = owner[np.argsort(due, kind="stable")]
    rank = np.zeros(len(pattern), np.int64)
    for s in range(len(counts)):
        rank[pattern == s] = np.arange(counts[s])
    repeats, within = np.divmod(np.asarray(index, np.int64), len(pattern))
    source = pattern[within]
    return source, repeats * counts[source] + rank[within]


def one_after_another(index: np.ndarray, sizes: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """As `mixture`, of sources that follow each other with `sizes` rows. The source of a row past the last is `len(sizes)`."""
    ends = np.cumsum(sizes)
    source = np.searchsorted(ends, index, side="right")
    return source, index - np.concatenate([[0], ends])[source]


def located(
    index: np.ndarray, sizes: Sequence[int], weights: Sequence[float], seed: int, *, shuffle: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The source of each row of `index`, and the number of its item there: int64 each. With `shuffle` rows are a `mixture`, and
    each epoch of a source, of `sizes` items, has its own order; without, sources follow each other."""
    if not shuffle:
        return one_after_another(index, sizes)
    source, number = mixture(index, weights)
    for s, size in enumerate(sizes):
        mine = np.flatnonzero(source == s)
        epoch, within = np.divmod(number[mine], size)
        for e in np.unique(epoch):
            of_epoch = epoch == e
            within[of_epoch] = permute(within[of_epoch], size, (seed, int(e), s))
        number[mine] = within
    return source, number


@dataclass(frozen=True)
class Rows:
    """Examples of fixed shape by number.

    Training rows have no end: each epoch of a source has its own order, offset and noise. Held-out rows (`shuffle=False`)
    cover every token of every source once, in order; there are `count` of them, and rows past the last are blank.
    """

    stores: Mapping[str, Store]
    objective: Objective
    seed: int
    weights: Mapping[str, float] | None = None
    shuffle: bool = True
    total: int = 0  # rows of the training, for objectives that are `paced`; 0: as at its end

    def __post_init__(self) -> None:
        for name, store in self.stores.items():
            needed = self.objective.window + self.objective.stride if self.shuffle else self.objective.shortest
            if store.num_tokens < needed:
                raise UserError(
                    f"source '{name}' has {store.num_tokens} tokens in this split, and a row takes {needed}: "
                    "add text, or shorten data.encoder_length / data.decoder_length"
                )

    def windows(self, store: Store) -> int:
        """How many windows of a source an epoch has."""
        o = self.objective
        if self.shuffle:
            return (store.num_tokens - o.window - o.stride + 1) // o.stride + 1
        return max(1, -(-(store.num_tokens - (o.window - o.stride)) // o.stride))

    @property
    def lengths(self) -> Lengths:
        """The lengths of a row."""
        return self.objective.lengths

    @property
    def documents(self) -> int:
        """How many documents a row may hold, at most: those that a window of the split can touch."""
        size, most = self.objective.window, 1
        for store in self.stores.values():
            inner = np.asarray(store.offsets[1:-1])  # where all but the first document begin
            # The windows of most documents begin at the last token of one.
            most = max(most, int((1 + np.searchsorted(inner, inner + size - 1) - np.arange(len(inner))).max(initial=1)))
        return most

    @property
    def bytes_a_row(self) -> float:
        """UTF-8 bytes of text in a row's window, a mean over the split."""
        tokens, size = (sum(getattr(s, name) for s in self.stores.values()) for name in ("num_tokens", "num_bytes"))
        return self.objective.window * size / tokens

    @property
    def sizes(self) -> dict[str, int]:
        """How many rows cover each source once; held-out rows are those of the first source, of the second, ..."""
        return {name: self.windows(store) for name, store in self.stores.items()}

    @property
    def count(self) -> int:
        """How many rows cover the split once."""
        return sum(self.sizes.values())

    def rows(self, index: np.ndarray) -> Example:
        """Rows `index` (int64 [B]), stacked: every array of the Example with a leading axis B."""
        index = np.asarray(index, np.int64)
        examples = [blank(self.objective.lengths)] * len(index)  # held-out rows past the last stay blank, of weight 0
        for i, window in self._windows_of(index):
            examples[i] = fill(*window)
        return stack(examples)

    def sources(self, index: np.ndarray) -> np.ndarray:
        """int64 [B]: the number of each row's source in `stores`; `len(stores)` for a row past the last held-out one."""
        return self._located(np.asarray(index, np.int64))[0]

    def left_out(self, index: np.ndarray) -> float:
        """The share of the tokens in the windows of rows `index` that is in no row: pieces too short for the objective, and
        the ends of those whose noised form did not fit."""
        counts = [(fitted(*window)[1], len(window[0])) for _, window in self._windows_of(np.asarray(index, np.int64))]
        return sum(out for out, _ in counts) / max(sum(size for _, size in counts), 1)

    def _located(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The source of each row, and its number among that source's rows: int64 each."""
        if self.shuffle:
            return mixture(index, [(self.weights or {}).get(name, 1.0) for name in self.stores])
        return one_after_another(index, list(self.sizes.values()))

    def _windows_of(self, index: np.ndarray) -> Iterator[tuple[int, Window]]:
        """Pairs (i, window of row index[i]), source by source; no pair for a row past the last held-out one."""
        source, number = self._located(index)
        for s, name in enumerate(self.stores):
            mine = np.flatnonzero(source == s)
            if len(mine):
                yield from zip(mine.tolist(), self._windows(s, self.stores[name], number[mine], index[mine]), strict=True)

    def _windows(self, s: int, store: Store, number: np.ndarray, index: np.ndarray) -> Iterator[Window]:
        """The windows of source `s`, by the numbers of its rows, which are rows `index` among those of all sources."""
        o = self.objective
        if self.shuffle:
            epoch, within = np.divmod(number, self.windows(store))
            window = np.empty_like(within)
            phase = np.zeros_like(within)
            for e in np.unique(epoch):
                of_epoch = epoch == e
                window[of_epoch] = permute(within[of_epoch], self.windows(store), (self.seed, s, int(e)))
                if o.dynamic:
                    phase[of_epoch] = np.random.default_rng((self.seed, s, int(e), 1)).integers(o.stride)
        else:
            epoch, window, phase = np.zeros_like(number), number, 0
        starts = window * o.stride + phase
        lengths = np.minimum(o.window, store.num_tokens - starts)
        begin = np.minimum(starts, max(0, store.num_tokens - o.window))
        tokens = store.read(begin, min(o.window, store.num_tokens))
        for i in range(len(number)):
            rng = np.random.default_rng((self.seed, s, int(epoch[i]) if o.dynamic else 0, int(window[i]), 2))
            text = tokens[i, starts[i] - begin[i] :][: lengths[i]]
            other = self._elsewhere(store, int(begin[i]), rng) if o.needs_other else None
            progress = min(1.0, index[i] / self.total) if self.total else 1.0
            yield text, self._cuts(store, int(starts[i]), len(text)), o, rng, other, spread(index[i]), progress

    def _elsewhere(self, store: Store, begin: int, rng: np.random.Generator) -> np.ndarray:
        """The longest piece of one document in a random window of the source, int32 [n]. That window shares no document with
        the window at `begin`; where none is left, it only does not overlap with it; where none is left either, n is 0.
        """
        size = self.objective.window
        first, last = np.searchsorted(store.offsets, (begin, begin + size - 1), side="right")
        for low, high in ((store.offsets[first - 1], store.offsets[min(last, len(store.offsets) - 1)]), (begin, begin + size)):
            before, behind = max(0, int(low) - size + 1), max(0, store.num_tokens - int(high) - size + 1)
            if before + behind:
                break
        else:
            return np.zeros(0, np.int32)
        drawn = int(rng.integers(before + behind))
        start = drawn if drawn < before else drawn - before + int(high)
        text = store.read(np.array([start]), size)[0]
        return max(np.split(text, self._cuts(store, start, size)), key=len)

    @staticmethod
    def _cuts(store: Store, start: int, length: int) -> np.ndarray:
        """Where documents begin inside the window, relative to it."""
        first, last = np.searchsorted(store.offsets, (start + 1, start + length))
        return store.offsets[first:last] - start


def fill(
    tokens: np.ndarray,
    cuts: np.ndarray,
    objective: Objective,
    rng: np.random.Generator,
    other: np.ndarray | None = None,
    at: float = 0.0,
    progress: float = 1.0,
) -> Example:
    """One row from a window: a segment for each document, shortened if its noised form does not fit.

    `other`: tokens of another document, for an objective with `needs_other=True`. `at`, from 0 to 1: what the first document
    gets of one that is `stratified`; the next get other parts. `progress`, from 0 to 1: what one that is `paced` gets.
    """
    return pack(fitted(tokens, cuts, objective, rng, other, at, progress)[0], objective.lengths)


def fitted(
    tokens: np.ndarray,
    cuts: np.ndarray,
    objective: Objective,
    rng: np.random.Generator,
    other: np.ndarray | None = None,
    at: float = 0.0,
    progress: float = 1.0,
) -> tuple[list[Example], int]:
    """The segments of a row, and how many tokens of its window are in none of them. The tokens that two windows share are
    not counted, because the other window reads or predicts them.

    A shortened piece is noised with the same random numbers again: with new ones, short forms would occur more often than
    they should. Predictions beyond the row's room for predictions are dropped; their text stays.
    """
    pieces: list[Example] = []
    left_out, begin, shared = 0, 0, objective.window - objective.stride
    extra = () if other is None else (other,)
    room = objective.lengths
    for number, piece in enumerate(np.split(tokens, cuts)):
        part = {"at": spread(number, at)} if objective.stratified else {}
        part |= {"progress": progress} if objective.paced else {}
        part |= {"given": after(piece, objective.after)} if objective.after else {}
        seed, end = int(rng.integers(2**63)), begin + len(piece)
        if _only(piece, objective.ends):  # no text, so nothing is lost
            begin = end
            continue
        while len(piece) >= objective.shortest and not _only(piece, objective.ends):
            again = np.random.default_rng(seed) if objective.draws else rng
            example = _asked(objective.make(piece, again, *extra, **part), room.predicted)
            over = max(_over(example, room), default=0)
            if over <= 0:
                pieces.append(example)
                room = _less(room, example)
                begin += len(piece)
                break
            piece = piece[: len(piece) - over]
        left_out += max(0, min(end, objective.stride) - max(begin, shared))
        begin = end
    return pieces, left_out


def after(piece: np.ndarray, mark: tuple[int, ...]) -> int:
    """How many tokens of a piece there are up to the end of the last `mark` in it; all of them if it has none.

    piece [5 6 7 8 6 7 9], mark (6, 7):  6
    """
    if len(piece) < len(mark):
        return len(piece)
    found = np.flatnonzero((np.lib.stride_tricks.sliding_window_view(piece, len(mark)) == mark).all(axis=1))
    return int(found[-1]) + len(mark) if len(found) else len(piece)


def _only(piece: np.ndarray, ends: frozenset[int]) -> bool:
    """Whether all tokens of a piece are among `ends`."""
    return len(piece) <= 2 and ends.issuperset(piece.tolist())  # a document's bos and eos are two


def _asked(example: Example, most: int | None) -> Example:
    """The example with at most its first `most` predictions, if it names their positions."""
    if example.where is None or most is None or len(example.where) <= most:
        return example
    return replace(example, targets=example.targets[:most], weights=example.weights[:most], where=example.where[:most])


def _used(example: Example) -> dict[str, int]:
    used = {n: len(getattr(example, n).tokens) for n in ("encoder", "decoder") if getattr(example, n) is not None}
    return used | ({"predicted": len(example.targets)} if example.where is not None else {})


def _over(example: Example, room: Lengths) -> list[int]:
    return [n - getattr(room, name) for name, n in _used(example).items()]


def _less(room: Lengths, example: Example) -> Lengths:
    used = _used(example)
    return Lengths(*(v if v is None else v - used.get(n, 0) for n, v in vars(room).items()))


def blank(lengths: Lengths) -> Example:
    """A row of padding only, of weight 0."""
    return pack([], lengths)


def pack(pieces: Sequence[Example], lengths: Lengths) -> Example:
    """Concatenates pieces, each a segment, and pads with zeros to the row's lengths.

    piece 1   tokens [5 6 7]   piece 2   tokens [8 9]
    row       tokens    [5 6 7 8 9 0]
              positions [0 1 2 0 1 0]
              segments  [1 1 1 2 2 0]
    """

    def join(arrays: list[np.ndarray], size: int, dtype: type) -> np.ndarray:
        out = np.zeros(size, dtype)
        joined = np.concatenate(arrays) if arrays else out[:0]
        out[: len(joined)] = joined
        return out

    def stream(name: str, size: int | None) -> TokenStream | None:
        if size is None:
            return None
        parts = [getattr(piece, name) for piece in pieces]
        prefixes = [p.prefix if p.prefix is not None else np.zeros(len(p.tokens), bool) for p in parts]
        types = [p.types if p.types is not None else np.zeros(len(p.tokens), np.int32) for p in parts]
        return TokenStream(
            join([p.tokens for p in parts], size, np.int32),
            join([p.positions for p in parts], size, np.int32),
            join([p.segments * (i + 1) for i, p in enumerate(parts)], size, np.int32),
            join(prefixes, size, bool) if name == "decoder" and lengths.prefix else None,
            join(types, size, np.int32) if lengths.types else None,
            join([p.ahead for p in parts], size, np.int32) if name == "decoder" and lengths.ahead else None,
            join([p.blocks for p in parts], size, np.int32) if name == "decoder" and lengths.blocks else None,
            tree=trees.joined([p.tree for p in parts], size, lengths.tree) if name == "encoder" and lengths.tree else None,
        )

    predicted = lengths.predicted or lengths.decoder or lengths.encoder or 0
    where = None
    if lengths.predicted is not None:
        starts = np.cumsum([0, *(_used(p)["decoder" if p.decoder else "encoder"] for p in pieces)])
        where = join([p.where + starts[i] for i, p in enumerate(pieces)], predicted, np.int32)
    progress = (pieces[0].progress if pieces else np.float32(1)) if lengths.paced else None  # the same of all pieces
    return Example(
        stream("encoder", lengths.encoder),
        stream("decoder", lengths.decoder),
        join([p.targets for p in pieces], predicted, np.int32),
        join([p.weights for p in pieces], predicted, np.float32),
        where,
        progress,
    )


def stack(examples: Sequence[Example]) -> Example:
    """Stacks rows into a batch: every array gets a leading axis."""

    def streams(name: str) -> TokenStream | None:
        parts = [getattr(e, name) for e in examples]
        return (
            None if parts[0] is None else TokenStream(**{k: together([getattr(p, k) for p in parts]) for k in vars(parts[0])})
        )

    def together(values: list[Any]) -> Any:
        if values[0] is None:
            return None
        return trees.stacked(values) if isinstance(values[0], Tree) else np.stack(values)

    fields = {name: together([getattr(e, name) for e in examples]) for name in ("targets", "weights", "where", "progress")}
    return Example(streams("encoder"), streams("decoder"), **fields)
