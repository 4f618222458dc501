"""Rows of images, alone or with texts: row i is a function of (seed, i) alone.

Training rows have no end: each epoch has its own order. Held-out rows (`shuffle=False`) have each item once; there are `count`
of them, and rows past the last are blank, of weight 0.

Axes: N images, S pixels to a side, B rows, T places of a row.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from lm.data.image_questions import KINDS, Described, question
from lm.data.images import moved, patches
from lm.data.records import Pair
from lm.data.render import Rendered
from lm.data.rows import permute
from lm.data.vocabulary import Tokenizer
from lm.errors import UserError
from lm.objectives import Lengths
from lm.objectives.vocabulary import decoder_start
from lm.types import Example, TokenStream

CAPTION = "caption"
WRITTEN = (CAPTION, *KINDS)  # what a model may be asked to write


@dataclass(frozen=True)
class Images:
    """Images of one split, and what is known of each."""

    pixels: np.ndarray  # uint8 [N, S, S, 3], which may lie in a file
    size: int  # pixels to a side of the patches that a stem reads
    described: Sequence[Described]

    def __len__(self) -> int:
        return len(self.described)


class PictureRows:
    """Images alone, each a row with a weight at each patch, for a task that reads its targets from the image itself.

    length: vectors that a stack reads of an image, a class token included
    shift: pixels, at most, by which a training image is moved along each axis; what comes in is as the edge was
    """

    def __init__(self, images: Images, *, length: int, seed: int, shuffle: bool = True, shift: int = 0) -> None:
        self.images, self.seed, self.shuffle, self.shift = images, seed, shuffle, shift * shuffle
        self.lengths = Lengths(length, None)
        if not len(images):
            raise UserError("there are no images in this split: give more, or raise data.holdout")

    @property
    def count(self) -> int:
        """The rows of an epoch."""
        return len(self.images)

    @property
    def sizes(self) -> dict[str, int]:
        """The rows of an epoch, all of one source."""
        return {"images": self.count}

    @property
    def bytes_a_row(self) -> float:
        """Bytes of an image's pixels, a mean over the rows of an epoch."""
        return float(self.images.pixels[0].nbytes)

    def left_out(self, index: np.ndarray) -> float:
        """0: rows have whole images and texts."""
        return 0.0

    def sources(self, index: np.ndarray) -> np.ndarray:
        """int64 [B]: 0 of each row, since images of all sources are read alike; 1 for a row past the last held-out one."""
        return np.array([int(not self.shuffle and i >= self.count) for i in np.asarray(index)], np.int64)

    def there(self, index: np.ndarray) -> list[int]:
        """The numbers among `index`, int64 [B], without those past the last held-out row."""
        return [int(i) for i in np.asarray(index) if self.shuffle or i < self.count]

    def located(self, index: int) -> tuple[int, int]:
        """The epoch of row `index`, and the number of its item."""
        if not self.shuffle:
            return 0, int(index)
        epoch, within = divmod(int(index), self.count)
        return epoch, int(_order(self.count, self.seed, epoch)[within])

    def picture(self, index: int) -> int:
        """The number of the image in row `index`."""
        return self.located(index)[1]

    def rows(self, index: np.ndarray) -> Example:
        """Rows `index` (int64 [B]), stacked: every array of the Example with a leading axis B."""
        return self.made(self.there(index), len(index))

    def blank(self) -> Example:
        """A row of padding only, without the leading axis."""
        empty = self.made([], 1)
        first = lambda s: s and TokenStream(**{k: x if x is None else x[0] for k, x in vars(s).items()})
        return Example(first(empty.encoder), first(empty.decoder), empty.targets[0], empty.weights[0])

    def made(self, there: Sequence[int], size: int) -> Example:
        """The rows of these numbers, and blank ones after them: `size` rows."""
        encoder = self.read(there, size)
        return Example(encoder, None, np.zeros_like(encoder.tokens), encoder.segments.astype(np.float32))

    def read(self, there: Sequence[int], size: int) -> TokenStream:
        """The images of these rows as an encoder's rows, and blank ones after them: `size` rows."""
        pixels = np.zeros((size, *self.images.pixels.shape[1:]), np.uint8)
        for b, i in enumerate(there):
            pixels[b] = self._moved(self.images.pixels[self.picture(i)], i)
        shape = (size, self.lengths.encoder or 0)
        segments = np.zeros(shape, np.int32)
        segments[: len(there)] = 1
        places = np.arange(shape[1], dtype=np.int32) * segments
        return TokenStream(np.zeros(shape, np.int32), places, segments, vectors=patches(pixels, self.images.size))

    def _moved(self, pixels: np.ndarray, index: int) -> np.ndarray:
        """The image of row `index` in the place that it has there."""
        if not self.shift:
            return pixels
        return moved(pixels, self.shift, np.random.default_rng((self.seed, index, 5)), mode="edge")


@functools.lru_cache(maxsize=8)
def _order(count: int, seed: int, epoch: int) -> np.ndarray:
    """int64 [count]: the items of an epoch in their order. The same for any caller, so that it may be kept."""
    return permute(np.arange(count), count, (seed, epoch, 4))


class ImageTextRows(PictureRows):
    """Each image with each of `kinds`: the encoder reads the image; the decoder writes its caption, or reads a question and
    writes the answer. Each epoch asks about other things.

    caption     encoder  patches of the image      decoder  [bos red apple]                targets  [red apple eos]
                                                                                           weights  [ 1    1    1 ]
    question    encoder  patches of the image      decoder  [bos what colour ? eos red]    targets  [what colour ? eos red eos]
                                                                                           weights  [ 0     0    0  0   1   1 ]

    kinds: of WRITTEN
    text: tokens of a decoder's row; UserError if a caption or a question with its answer has more
    blind: all images are black, so that only questions tell what to answer
    """

    def __init__(
        self,
        images: Images,
        tokenizer: Tokenizer,
        *,
        kinds: Sequence[str],
        length: int,
        text: int,
        seed: int,
        shuffle: bool = True,
        blind: bool = False,
        shift: int = 0,
    ) -> None:
        super().__init__(images, length=length, seed=seed, shuffle=shuffle, shift=shift)
        self.tokenizer, self.kinds, self.blind = tokenizer, tuple(kinds), blind
        self.lengths = Lengths(length, text)
        self._end = tokenizer.require("eos")

    @property
    def count(self) -> int:
        return len(self.images) * len(self.kinds)

    @functools.cached_property
    def bytes_a_row(self) -> float:
        """UTF-8 bytes of text in a row, a mean over the rows of an epoch."""
        asked = [self.asked(i) for i in range(self.count)]
        return sum(len((pair.question + pair.answer).encode()) for pair in asked) / len(asked)

    def picture(self, index: int) -> int:
        return self.located(index)[1] // len(self.kinds)

    def kind(self, index: int) -> str:
        """What is asked in row `index`."""
        return self.kinds[self.located(index)[1] % len(self.kinds)]

    def asked(self, index: int) -> Pair:
        """The question in row `index`, "" of a caption, and the answer."""
        epoch, number = self.located(index)
        picture, kind = divmod(number, len(self.kinds))
        if self.kinds[kind] == CAPTION:
            return Pair("", self.images.described[picture].name)
        rng = np.random.default_rng((self.seed, epoch, number, 3))
        return question(self.images.described, picture, self.kinds[kind], rng)

    def made(self, there: Sequence[int], size: int) -> Example:
        texts = [self.rendered(self.asked(i)) for i in there]
        return Example(self.read(there, size), *shifted(texts, size, self.lengths.decoder or 0))

    def prompt(self, index: int) -> tuple[TokenStream, np.ndarray]:
        """What the encoder reads of row `index`, [1, T], and what the decoder begins with, int32 [n]."""
        text = self.rendered(self.asked(index))
        return self.read([index], 1), text.ids[: int(np.argmax(text.loss))]

    def rendered(self, pair: Pair) -> Rendered:
        """A text as the decoder reads it, with its first token and its end. UserError if a row has no room for it."""
        before = read_before(self.tokenizer, pair.question)
        answer = self.tokenizer.encode_parts([f" {pair.answer}" if pair.question else pair.answer, self._end])
        ids, room = np.concatenate([before, answer]), self.lengths.decoder or 0
        if len(ids) - 1 > room:
            raise UserError(
                f"{pair.question or pair.answer!r} takes {len(ids) - 1} tokens, and a row has room for {room}: set "
                f"--config.recipe.text={len(ids) - 1} or more"
            )
        return Rendered(ids, np.arange(len(ids)) >= len(before))

    def read(self, there: Sequence[int], size: int) -> TokenStream:
        stream = super().read(there, size)
        return replace(stream, vectors=np.zeros_like(stream.vectors)) if self.blind else stream


def read_before(tokenizer: Tokenizer, question: str) -> np.ndarray:
    """What a decoder reads before it answers a question, or with "" before it writes a caption: int32 [n]."""
    asked: list[str | int] = [question, tokenizer.require("eos")] if question else []
    return tokenizer.encode_parts([decoder_start(tokenizer), *asked])


class DrawnRows(PictureRows):
    """A caption and the codes of its image, for a decoder alone, which learns to write the codes (DALL-E, arXiv 2102.12092,
    section 2.2). Code c is token `first` + c.

    caption red apple, codes [7 2 9]    decoder  [bos red apple eos 107 102]    targets  [red apple eos 107 102 109]
                                                                                weights  [ 0    0    0   1   1   1 ]

    codes: int32 [N, T], of each image
    text: tokens of a caption with bos and eos, at most
    """

    def __init__(
        self,
        images: Images,
        codes: np.ndarray,
        tokenizer: Tokenizer,
        *,
        first: int,
        text: int,
        seed: int,
        shuffle: bool = True,
    ) -> None:
        super().__init__(images, length=0, seed=seed, shuffle=shuffle)
        self.codes, self.first, self.text = codes, first, text
        self.lengths = Lengths(None, text + codes.shape[1] - 1)
        self.builder = CaptionPrompt(tokenizer, text)

    def made(self, there: Sequence[int], size: int) -> Example:
        texts = []
        for i in there:
            picture = self.picture(i)
            before = self.builder.ids(self.images.described[picture].name)
            ids = np.concatenate([before, self.codes[picture] + self.first]).astype(np.int32)
            texts.append(Rendered(ids, np.arange(len(ids)) >= len(before)))
        return Example(None, *shifted(texts, size, self.lengths.decoder or 0))


@dataclass(frozen=True)
class CaptionPrompt:
    """A caption as a decoder reads it before it draws."""

    tokenizer: Tokenizer
    text: int  # tokens with bos and eos, at most

    def ids(self, caption: str) -> np.ndarray:
        """int32 [n]: bos, the caption, eos. UserError if it is too long."""
        ids = self.tokenizer.encode_parts([decoder_start(self.tokenizer), caption, self.tokenizer.require("eos")])
        if len(ids) > self.text:
            raise UserError(
                f"{caption!r} takes {len(ids)} tokens with its ends, and recipe.text={self.text}: raise it, or shorten it"
            )
        return ids


def shifted(texts: Sequence[Rendered], size: int, length: int) -> tuple[TokenStream, np.ndarray, np.ndarray]:
    """Texts as rows of a decoder, [size, length], blank after the last: what it reads, its targets and their weights. Each
    token is predicted from those before it."""
    tokens, targets, positions, segments = (np.zeros((size, length), np.int32) for _ in range(4))
    weights = np.zeros((size, length), np.float32)
    for b, text in enumerate(texts):
        n = len(text.ids) - 1
        tokens[b, :n], targets[b, :n], weights[b, :n] = text.ids[:-1], text.ids[1:], text.loss[1:]
        positions[b, :n], segments[b, :n] = np.arange(n), 1
    return TokenStream(tokens, positions, segments), targets, weights
