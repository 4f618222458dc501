"""Recipes that learn what a picture shows: from its caption among others (CLIP), or from its class (ViT)."""

from dataclasses import dataclass
from typing import Literal

from lm.config.model import Model
from lm.config.ranges import Name, Natural, Positive
from lm.errors import UserError


@dataclass(frozen=True)
class TwoEncoders:
    """Train an encoder of pictures and one of captions, so that a picture's vector is near to that of its caption (CLIP, arXiv
    2103.00020; `lm.recipes.two_encoders`).

    The run's model is the encoder of pictures. The outputs of both heads are the common space.
    """

    text: Model  # of captions, left to right: the vector is that of a caption's last token (CLIP, section 2.4)
    temperature: Positive = 0.07  # of the cosines at the start; it is learned (section 2.5)
    max_scale: Positive = 100.0  # that the cosines are multiplied by, at most (section 2.5)
    shift: Natural = 0  # pixels, at most, by which a training picture is moved

    def __post_init__(self) -> None:
        if self.text.architecture != "decoder" or not self.text.reads_tokens:
            raise UserError("recipe.text reads captions from left to right: give it a decoder alone")
        if self.text.head is None or self.text.head.outputs is None:
            raise UserError("recipe.text projects to the common space: set recipe.text.head to tied=False, outputs=512")
        if 1 / self.temperature > self.max_scale:
            raise UserError(
                f"temperature={self.temperature:g} begins with a scale of {1 / self.temperature:g}, and max_scale="
                f"{self.max_scale:g}: raise one of them"
            )


@dataclass(frozen=True)
class ImageClasses:
    """Train an encoder to tell the classes of pictures (ViT, arXiv 2010.11929; `lm.recipes.image_classes`). The run gives the
    model a head with an output for each class."""

    pool: Literal["first", "mean"] = "first"  # the vector of a picture: of its class token (section 3.1), or a mean (D.3)
    shift: Natural = 0  # pixels, at most, by which a training picture is moved
    classes: tuple[Name, ...] | None = None  # in the order of the head's outputs; None: those of the data, sorted
