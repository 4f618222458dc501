"""Rows of pictures: row i is a function of (seed, i) alone, as for windows over texts (`lm.data.rows`).

A row is one picture, as vectors of the encoder's stream, beside what is asked about it: a caption, or a class.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lm import config
from lm.data.corpus import bucket
from lm.data.corpus.prepare import Prepared
from lm.data.corpus.store import Store
from lm.data.images import Pictures, moved, patches, pictures
from lm.data.records import Captioned
from lm.data.rows import blank, located, mixture_weights, stack
from lm.errors import UserError
from lm.objectives import Lengths
from lm.types import Example, TokenStream, vector_stream

Make = Callable[[np.ndarray, Captioned], Example]  # (ids of the caption with its ends, the record) -> a row but for its picture


@dataclass(frozen=True)
class ImageRows:
    """Examples of fixed shape by number, made of the pictures and captions of `stores`.

    Training rows are endless, and each epoch of a source has its own order. Held-out rows (`shuffle=False`) have every picture
    once, in the order of the stores; there are `count` of them, and rows past the last are blank, of weight 0.
    """

    stores: Mapping[str, Store]
    pictures: Mapping[str, Pictures]
    data: config.Data
    stem: config.Patches
    lengths: Lengths
    make: Make
    seed: int
    shuffle: bool = True
    shift: int = 0  # pixels, at most, by which a training picture is moved along each axis; what comes in is white

    @property
    def sizes(self) -> dict[str, int]:
        """Rows of each source in an epoch."""
        return {name: store.num_documents for name, store in self.stores.items()}

    @property
    def count(self) -> int:
        """How many rows have every picture once."""
        return sum(self.sizes.values())

    @property
    def bytes_a_row(self) -> float:
        """UTF-8 bytes of a caption, a mean over the split."""
        return sum(store.num_bytes for store in self.stores.values()) / max(1, self.count)

    @property
    def blank(self) -> Example:
        """A row of weight 0, without a picture."""
        return blank_row(self.stem, self.lengths)

    def rows(self, index: np.ndarray) -> Example:
        """Rows `index` (int64 [B]), stacked: every array of the Example with a leading axis B. The encoder's vectors are uint8
        [B, patches, numbers of a patch]."""
        index = np.asarray(index, np.int64)
        source, number = self._located(index)
        out = [self.blank] * len(index)
        names = list(self.stores)
        for i in np.flatnonzero(source < len(names)).tolist():
            name, record = names[source[i]], int(number[i])
            of = self.pictures[names[source[i]]]
            example = self.make(self.stores[name].document(record), of.records[record])
            out[i] = self._with(example, self._moved(of.pixels[record], int(index[i])))
        return stack(out)

    def sources(self, index: np.ndarray) -> np.ndarray:
        """int64 [B]: the number of each row's source in `stores`; `len(stores)` for a row past the last held-out one."""
        return self._located(np.asarray(index, np.int64))[0]

    def records(self, index: Sequence[int] | np.ndarray) -> list[Captioned]:
        """The records of rows `index`."""
        source, number = self._located(np.asarray(index, np.int64))
        names = list(self.stores)
        return [self.pictures[names[s]].records[n] for s, n in zip(source.tolist(), number.tolist(), strict=True)]

    def left_out(self, index: np.ndarray) -> float:
        """The share of the captions' tokens in rows `index` that is in no row, because captions are too long."""
        source, number = self._located(np.asarray(index, np.int64))
        stores = list(self.stores.values())
        sizes = np.array([len(stores[s].document(n)) for s, n in zip(source.tolist(), number.tolist(), strict=True)])
        room = self.lengths.decoder
        return 0.0 if room is None else float(np.maximum(sizes - room, 0).sum() / max(sizes.sum(), 1))

    def _located(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        weights = mixture_weights(self.data, self.sizes)
        return located(index, [*self.sizes.values()], [*weights.values()], self.seed, shuffle=self.shuffle)

    def _with(self, example: Example, pixels: np.ndarray) -> Example:
        return replace(example, encoder=vector_stream(patches(pixels, self.stem.size), self.stem.length))

    def _moved(self, pixels: np.ndarray, index: int) -> np.ndarray:
        if not self.shift or not self.shuffle:
            return np.asarray(pixels)
        return moved(pixels, self.shift, np.random.default_rng((self.seed, index, 1)), constant_values=255)


def blank_row(stem: config.Patches, lengths: Lengths) -> Example:
    """A row of weight 0, without a picture."""
    stream = vector_stream(np.zeros(stem.inputs, np.uint8), stem.length)
    empty = replace(stream, segments=np.zeros_like(stream.segments))
    return replace(blank(replace(lengths, encoder=None)), encoder=empty)


def caption(ids: np.ndarray, record: Captioned, *, length: int) -> Example:
    """A caption that a decoder reads whole, and whose vector is that of its last token (CLIP, arXiv 2103.00020, section 2.4).
    One that is too long keeps its end.

    ids       [bos 20 21 22 eos]
    decoder   [bos 20 21 22 eos 0 0]
    where     [4]
    weights   [1]
    """
    kept = ids if len(ids) <= length else np.append(ids[: length - 1], ids[-1])
    tokens, segments, positions = np.zeros((3, length), np.int32)
    tokens[: len(kept)], segments[: len(kept)], positions[: len(kept)] = kept, 1, np.arange(len(kept))
    where = np.array([len(kept) - 1], np.int32)
    return Example(None, TokenStream(tokens, positions, segments), np.zeros(1, np.int32), np.ones(1, np.float32), where)


def labelled(ids: np.ndarray, record: Captioned, *, classes: Mapping[str, int]) -> Example:
    """The class of a picture, asked at the encoder's first vector. One without a class has weight 0.

    targets   [3]
    where     [0]
    """
    target = np.array([classes.get(record.label, 0)], np.int32)
    weights = np.array([record.label in classes], np.float32)
    return Example(None, None, target, weights, np.zeros(1, np.int32))


def splits(prepared: Prepared, data: config.Data, stem: config.Patches) -> dict[str, dict[str, Pictures]]:
    """The pictures of all sources by split, "train" and "holdout", and by source. UserError for a source without pictures."""
    for name, source in data.sources.items():
        if source.format != "captioned":
            raise UserError(
                f"data.sources.{name} has format={source.format}, and this run reads pictures: give format='captioned'"
            )
    cache = bucket.STAGING if "://" in data.cache else data.cache  # of packages
    read = lambda name, split: pictures(prepared, data.sources[name], name, split, stem.image, cache=cache)
    stores = {"train": prepared.train, "holdout": prepared.holdout}
    return {split: {name: read(name, split) for name in some} for split, some in stores.items()}
