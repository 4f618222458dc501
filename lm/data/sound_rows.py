"""Rows of speech: row i is a function of (seed, i) alone, one utterance each.

CTC                encoder  frames          labels   [20 21]
encoder-decoder    encoder  frames          decoder  [bos 20 21]    targets  [20 21 eos]
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lm import config
from lm.data.corpus.store import Store
from lm.data.rows import located, mixture_weights
from lm.data.sound_frames import Frames
from lm.errors import UserError
from lm.objectives import Lengths
from lm.types import Example, TokenStream, Unaligned


@dataclass(frozen=True)
class SpeechRows:
    """Training rows have no end: each epoch of a source has its own order, and hides other bands and frames. Held-out rows
    (`shuffle=False`) are each utterance once, in order, and rows past the last are blank.

    Utterances for which a row has no room, in frames or in tokens, are an error or left out, as `data.on_long` says; `kept` has
    the numbers of the others in their store, int64 by source.
    """

    data: config.Data
    stores: Mapping[str, Store]  # of the texts: bos, tokens, eos
    frames: Mapping[str, Frames]
    stem: config.Frames
    recipe: config.Transcribe
    writes: bool  # a decoder writes the text; otherwise CTC
    seed: int
    shuffle: bool
    kept: dict[str, np.ndarray] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "kept", {name: self._fitting(name) for name in self.stores})

    def _fitting(self, name: str) -> np.ndarray:
        tokens, frames = np.diff(self.stores[name].offsets), self.frames[name].lengths
        room = self.recipe.answer + 1  # bos is in no answer
        fits = (tokens <= room) & (frames <= self.stem.frames)
        if not self.writes:
            vectors = -(-frames // int(np.prod(self.stem.strides)))
            texts = self.stores[name].documents(np.arange(len(tokens)))
            fits &= np.array([needed(ids[1:-1]) for ids in texts], int) <= vectors
        if not fits.all() and self.data.on_long == "fail":
            raise UserError(
                f"{(~fits).sum()} of {len(fits)} utterances of source {name!r} have no room in a row: up to {frames.max()} "
                f"frames and {tokens.max() - 1} tokens, or more tokens than vectors; raise model.encoder.stem.frames or "
                "recipe.answer, or leave them out and count them with --config.data.on_long=skip"
            )
        if not fits.any():
            raise UserError(f"no utterance of source {name!r} has room in a row: raise model.encoder.stem.frames")
        return np.flatnonzero(fits)

    @property
    def lengths(self) -> Lengths:
        return Lengths(self.stem.length, self.recipe.answer if self.writes else None)

    @property
    def sizes(self) -> dict[str, int]:
        """Utterances of each source."""
        return {name: len(numbers) for name, numbers in self.kept.items()}

    @property
    def count(self) -> int:
        return sum(self.sizes.values())

    @property
    def bytes_a_row(self) -> float:
        """UTF-8 bytes of text, a mean over the utterances."""
        of = lambda name: int(self.stores[name].byte_lengths[self.kept[name]].sum())
        return sum(map(of, self.stores)) / max(1, self.count)

    def left_out(self, index: np.ndarray) -> float:
        """The share of all utterances that is in no row."""
        return 1 - self.count / max(1, sum(store.num_documents for store in self.stores.values()))

    def utterances(self, index: Sequence[int] | np.ndarray) -> list[tuple[str, int] | None]:
        """The source of each row of `index`, and the number of its utterance in that source's store; None past the last one."""
        weights, names = mixture_weights(self.data, self.sizes), list(self.stores)
        sizes = [*self.sizes.values()]
        found = located(np.asarray(index, np.int64), sizes, [*weights.values()], self.seed, shuffle=self.shuffle)
        pairs = zip(*(numbers.tolist() for numbers in found), strict=True)
        return [(names[s], int(self.kept[names[s]][n])) if s < len(names) else None for s, n in pairs]

    def sources(self, index: np.ndarray) -> np.ndarray:
        """int64 [B]: the number of each row's source in `stores`; `len(stores)` past the last one."""
        names = list(self.stores)
        return np.array([len(names) if found is None else names.index(found[0]) for found in self.utterances(index)])

    def rows(self, index: np.ndarray) -> Any:
        """Rows `index` (int64 [B]): an Example of an encoder-decoder, otherwise Unaligned; blank past the last held-out one."""
        index = np.asarray(index, np.int64)
        frames, ids = [np.zeros((0, self.stem.bands), np.float32)] * len(index), [np.zeros(0, np.int32)] * len(index)
        for i, found in enumerate(self.utterances(index)):
            if found is None:
                continue
            name, number = found
            one = self.frames[name].of(number)
            frames[i] = self._hidden(one, int(index[i])) if self.shuffle else one
            ids[i] = self.stores[name].document(number)
        return self._batch(stream_of(frames, self.stem), ids)

    def _hidden(self, frames: np.ndarray, row: int) -> np.ndarray:
        """The frames without a stretch of bands and one of frames, which are 0: its size is drawn up to the recipe's, then its
        place (SpecAugment, arXiv 1904.08779, section 2)."""
        rng = np.random.default_rng((self.seed, row, 1))
        for axis, most in ((1, self.recipe.hide_bands), (0, self.recipe.hide_frames)):
            size = int(rng.integers(most + 1))
            start = int(rng.integers(max(1, frames.shape[axis] - size)))
            hidden = slice(start, start + size)
            frames[(slice(None), hidden) if axis else hidden] = 0.0
        return frames

    def _batch(self, heard: TokenStream, ids: list[np.ndarray]) -> Any:
        if self.writes:
            sizes = np.array([max(0, len(text) - 1) for text in ids])
            read, said = (_padded([text[part] for text in ids], self.recipe.answer) for part in (slice(-1), slice(1, None)))
            return Example(heard, _stream(read, sizes), said, _within(said, sizes).astype(np.float32))
        texts = [text[1:-1] for text in ids]
        labels, sizes = _padded(texts, self.recipe.answer), np.array([len(text) for text in texts])
        example = Example(heard, None, heard.tokens, (heard.segments > 0).astype(np.float32))
        return Unaligned(example, labels, _within(labels, sizes).astype(np.float32))


def stream_of(frames: Sequence[np.ndarray], stem: config.Frames) -> TokenStream:
    """Recordings, float32 [frames, bands] each, as rows that a stack with this stem reads."""
    vectors = np.zeros((len(frames), *stem.inputs), np.float32)
    for row, one in zip(vectors, frames, strict=True):
        row[: len(one)] = one
    sizes = np.array([-(-len(one) // int(np.prod(stem.strides))) for one in frames], int)
    return _stream(np.zeros((len(frames), stem.length), np.int32), sizes, vectors)


def needed(labels: np.ndarray) -> int:
    """Vectors that a path of these labels has at least under CTC: one each, and a blank between two that are the same."""
    return len(labels) + int((labels[1:] == labels[:-1]).sum())


def _stream(tokens: np.ndarray, sizes: np.ndarray, vectors: np.ndarray | None = None) -> TokenStream:
    """Rows of one document each, of these sizes."""
    inside = _within(tokens, sizes)
    places = np.where(inside, np.arange(tokens.shape[1], dtype=np.int32), 0)
    return TokenStream(tokens, places.astype(np.int32), inside.astype(np.int32), vectors=vectors)


def _within(rows: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    return np.arange(rows.shape[1]) < sizes[:, None]


def _padded(texts: list[np.ndarray], length: int) -> np.ndarray:
    """int32 [B, length], padded with 0."""
    out = np.zeros((len(texts), length), np.int32)
    for row, text in zip(out, texts, strict=True):
        row[: len(text)] = text
    return out
