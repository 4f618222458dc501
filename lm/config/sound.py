"""The recipe of speech with its text."""

from dataclasses import dataclass
from typing import Annotated

from lm.config.ranges import INT32, Count, Name, Natural, NonNegative, Range
from lm.errors import UserError


@dataclass(frozen=True)
class Transcribe:
    """Train on recordings with their text, records of format=speech (`lm.recipes.transcribe`): an encoder under CTC (Graves et
    al., 2006), or an encoder-decoder that writes the text (Whisper, arXiv 2212.04356).

    The encoder's stem says how long a row is: `model.encoder.stem.frames`, of which a second has a hundred. Held-out figures
    are the loss and the rate of word errors.
    """

    answer: Annotated[int, Range(2, INT32)] = 32  # tokens of a text with its end, at most
    beams: Count = 1  # texts that are looked for at a time; 1: the likeliest token at each place
    # In training rows so many bands and frames are hidden at most, in one stretch each (SpecAugment, arXiv 1904.08779).
    hide_bands: Natural = 0
    hide_frames: Natural = 0
    # A run or a converted model that puts the `beams` texts of a held-out recording in order: by their log-probability given
    # the recording, and `weight` times that by this model.
    language_model: Name | None = None
    weight: NonNegative = 0.3  # 0: the model is not asked

    def __post_init__(self) -> None:
        if self.language_model is not None and self.beams == 1:
            raise UserError("recipe.language_model puts several texts in order, and beams=1 finds one: set recipe.beams=8")
