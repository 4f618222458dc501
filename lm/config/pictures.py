"""Recipes of images: the autoencoder whose codes they become, a model that writes about them, one that draws them."""

from dataclasses import dataclass
from typing import Annotated, Literal

from lm.config.model import Model
from lm.config.ranges import INT32, Count, Name, Natural, NonNegative, Positive, Range
from lm.config.stem import Patches
from lm.errors import UserError


@dataclass(frozen=True)
class Codebook:
    """Vectors, of which the nearest one takes the place of another vector (VQ-VAE, arXiv 1711.00937)."""

    codes: Count = 256
    size: Count = 16  # numbers of a code, few beside the model's width so that all codes are used (arXiv 2110.04627, 3.2)
    unit: bool = True  # codes and vectors have length 1 (the same paper, section 3.2)


@dataclass(frozen=True)
class ImageCodes:
    """Train an autoencoder of images whose patches become codes (arXiv 1711.00937; `lm.recipes.image_codes`).

    The run's model is the encoder: patches of pixels -> a vector of a code's size for each.
    """

    decoder: Model  # the vectors of codes, as patches of one pixel -> the pixels of a patch for each
    codebook: Codebook = Codebook()
    commitment: NonNegative = 0.25  # weight of the loss that keeps vectors near their codes (beta of section 3.2)
    # Weight of a loss that is 0 where all codes are used alike, without which few of them ever are (arXiv 2310.05737).
    even: NonNegative = 0.1
    temperature: Positive = 0.2  # of the squared distances by which that loss counts a vector for each code
    shift: Natural = 0  # pixels, at most, by which a training image is moved along each axis

    def __post_init__(self) -> None:
        stem = self.decoder.encoder.stem if self.decoder.encoder else None
        if self.decoder.architecture != "encoder" or not isinstance(stem, Patches):
            raise UserError(
                "recipe.decoder makes pixels of codes at once: give it an encoder alone, with a stem of kind 'patches'"
            )
        if stem.inputs[1] != self.codebook.size or stem.class_token:
            raise UserError(
                f"recipe.decoder reads patches of {stem.inputs[1]} numbers, and a code has {self.codebook.size}: set "
                f"recipe.decoder.encoder.stem to size=1, channels={self.codebook.size}, class_token=False"
            )


@dataclass(frozen=True)
class ImageText:
    """Train a model whose encoder reads images and whose decoder writes about them (`lm.recipes.image_text`): captions, and
    answers to questions, each kind as often as the others. `model.join` says how the decoder reads the encoder."""

    # "caption": a name. Questions about a picture (`lm.data.image_questions`): its name, group and main colour, and with yes or
    # no whether it has such a colour, is of such a group, or has such a name.
    writes: tuple[Literal["caption", "name", "group", "colour", "is_colour", "is_group", "is_name"], ...] = ("caption",)
    text: Annotated[int, Range(4, INT32)] = 40  # tokens of a decoder's row: a question, its answer and their ends
    blind: bool = False  # all images are black, which shows what the questions alone tell
    shift: Natural = 0  # pixels, at most, by which a training image is moved along each axis

    def __post_init__(self) -> None:
        if not self.writes or len(set(self.writes)) < len(self.writes):
            raise UserError(f"recipe.writes={','.join(self.writes)}: name one or more kinds of text, each once")


@dataclass(frozen=True)
class Drawing:
    """Train a decoder that reads a caption and writes the codes of its image (DALL-E, arXiv 2102.12092; `lm.recipes.drawing`).
    Code c is the token after all of the tokenizer's, plus c."""

    codes: Name  # folder of a run with recipe.kind=image_codes, whose encoder makes the codes and whose decoder the pixels
    codes_sha256: Name | None = None  # of its files, which a resumed run must find again; None: filled in
    text: Annotated[int, Range(3, INT32)] = 40  # tokens of a caption with its ends, at most
