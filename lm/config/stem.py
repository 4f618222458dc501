"""Stems: how a stack makes vectors of what is no text, such as images. `lm.models.stem` has a module for each kind."""

import itertools
import operator
from dataclasses import dataclass
from typing import Any

from lm.config.ranges import Conflict, Count, PositiveShare, Share
from lm.errors import UserError


@dataclass(frozen=True)
class Patches:
    """An image cut into square patches, each projected to the model's width (ViT, arXiv 2010.11929, section 3.1).

    The stream's vectors are [B, patches, size * size * channels], by rows of patches from the top left, a patch by rows of
    pixels, each with its channels (`lm.data.images.patches`).
    """

    size: Count = 16  # pixels to a side of a patch
    image: Count = 224  # pixels to a side of the image
    channels: Count = 3
    class_token: bool = True  # a trained vector before those of the patches, as BERT's first token (section 3.1)
    bias: bool = True  # of the projection (CLIP: none)
    # Pixels that are bytes are read as (byte / 255 - mean) / std, with a number for each channel or one for all. Pixels that
    # are floats are read as they are.
    mean: tuple[Share, ...] = (0.5,)
    std: tuple[PositiveShare, ...] = (0.5,)

    def __post_init__(self) -> None:
        if self.image % self.size:
            raise Conflict(
                f"size={self.size} does not divide image={self.image} pixels into whole patches: change one of them",
                *("size", "image"),
            )
        for name in ("mean", "std"):
            if len(given := getattr(self, name)) not in (1, self.channels):
                raise UserError(f"{name} has {len(given)} numbers, and an image {self.channels} channels: give one for each")

    @property
    def inputs(self) -> tuple[int, int]:
        """The shape of an image's vectors: patches, and the numbers of one."""
        return (self.image // self.size) ** 2, self.size**2 * self.channels

    @property
    def length(self) -> int:
        """Vectors that the stack reads of an image."""
        return self.inputs[0] + self.class_token

    def products(self, width: int) -> int:
        """Multiply-adds of an image in a model of this width."""
        patches, numbers = self.inputs
        return patches * numbers * width


@dataclass(frozen=True)
class Frames:
    """Frames of sound (`lm.data.sound`), through convolutions over time with GELU between them (Whisper, arXiv 2212.04356,
    section 2.2). The stream's vectors are [B, frames, bands]."""

    frames: Count = 3000  # in a full row: 30 seconds
    bands: Count = 80  # numbers of a frame
    kernel: Count = 3  # vectors that a convolution sees, an odd number
    strides: tuple[Count, ...] = (1, 2)  # of each convolution; their product is how many frames become one vector

    def __post_init__(self) -> None:
        if self.kernel % 2 == 0 or not self.strides:
            raise UserError(f"kernel={self.kernel} and strides={self.strides}: give an odd kernel, and one stride or more")

    @property
    def inputs(self) -> tuple[int, int]:
        """The shape of a full row's vectors: frames, and the numbers of one."""
        return self.frames, self.bands

    @property
    def lengths(self) -> tuple[int, ...]:
        """Vectors of a full row after each convolution."""
        return tuple(-(-self.frames // stride) for stride in itertools.accumulate(self.strides, operator.mul))

    @property
    def length(self) -> int:
        """Vectors that the stack reads of a full row."""
        return self.lengths[-1]

    def products(self, width: int) -> int:
        """Multiply-adds of a full row in a model of this width."""
        inputs = (self.bands, *(width for _ in self.strides[1:]))
        return sum(n * self.kernel * size * width for n, size in zip(self.lengths, inputs, strict=True))


# A new kind is added here and in `lm.models.stem.STEMS`. Each has `inputs`, the shape of a full row's vectors, `length`, how
# many vectors the stack reads of them, and `products`, for `lm.flops`.
Stem = Patches | Frames


def check(model: Any) -> None:
    """Raises UserError if the stems of a `Model` do not go with its other settings."""
    if model.decoder and model.decoder.stem:
        raise UserError("decoder.stem: a decoder reads the tokens that it writes; give the stem to the encoder")
    stem = model.encoder.stem if model.encoder else None
    if stem is None:
        return
    most = getattr(model.encoder.position, "max_length", None)
    if most is not None and most < stem.length:
        raise Conflict(
            f"encoder.position.max_length={most} is less than the {stem.length} vectors that the stem gives: set "
            f"encoder.position.max_length={stem.length}",
            "encoder.position.max_length",
        )
    if model.embed.width is not None:
        raise UserError(
            f"embed.width={model.embed.width} is of tables, and the encoder's stem gives the model's width: leave it out"
        )
    if model.head and model.head.tied and not model.reads_tokens:
        raise UserError("head.tied=True needs a table of tokens, and no stack reads tokens: set head.tied=False")
