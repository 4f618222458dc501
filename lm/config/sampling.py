"""How tokens are drawn from a model's distribution. `lm.generation.sampling` applies it."""

from dataclasses import dataclass, fields
from typing import Annotated, Literal

from lm.config.ranges import Count, Name, Natural, NonNegative, Positive, PositiveShare, Range, Seed, Share, Words
from lm.errors import UserError

# In which order masks are filled in (`lm.generation.diffusion.fill`); the last two take back what they have written.
Order = Literal["confidence", "entropy", "margin", "random", "left", "mask_predict", "gibbs"]


@dataclass(frozen=True)
class Sampling:
    """How one request's tokens are drawn. The defaults draw from the model's own distribution."""

    temperature: NonNegative = 1.0  # 0: the likeliest token
    top_k: Natural = 0  # the k likeliest tokens; 0: all
    top_p: PositiveShare = 1.0  # the fewest likeliest tokens with so much probability (arXiv 1904.09751)
    min_p: Share = 0.0  # tokens with at least this share of the likeliest one's probability (arXiv 2407.01082)
    typical_p: PositiveShare = 1.0  # the fewest tokens nearest to the expected surprise with so much (arXiv 2202.00666)
    repetition: Positive = 1.0  # divides positive logits of all tokens so far, and multiplies negative ones (arXiv 1909.05858)
    frequency: float = 0.0  # taken off a token's logit for each time that it was written
    presence: float = 0.0  # taken off once if it was
    seed: Seed = 0

    @property
    def plain(self) -> bool:
        """Whether neither a filter nor a penalty is set: temperature alone."""
        return all(getattr(self, f.name) == f.default for f in fields(Sampling) if f.name not in ("temperature", "seed"))


@dataclass(frozen=True)
class Asked(Sampling):
    """A prompt, how many samples of it are wanted, and how they are drawn."""

    prompt: Words = ""
    new_tokens: Count = 128  # at most
    samples: Count = 1
    stop: tuple[Name, ...] = ()  # texts that end a sample, and are no part of it
    beams: Natural = 0  # search for the samples with so many texts at a time, and draw nothing
    length_penalty: Annotated[float, Range(-10.0, 10.0)] = 1.0  # of beams: a score is log-probability / tokens ** this
    order: Order | None = None  # of masks that are filled in over several steps; None: an encoder fills in all at once
    steps: Natural = 0  # of these; 0: as many as suit the order
    regex: Name | None = None  # a regular expression that all of what is written matches
    schema: Name | None = None  # a JSON schema, as JSON, of the value that is written

    def __post_init__(self) -> None:
        if self.regex and self.schema:
            raise UserError("regex and schema are two grammars for one text: leave one of them out")
        if self.beams and (self.regex or self.schema):
            raise UserError(f"beams={self.beams} searches among all texts, and follows no grammar: leave out regex and schema")
        if not self.beams and self.length_penalty != 1.0:
            raise UserError(
                f"length_penalty={self.length_penalty:g} is of beams, and none are asked for: give beams=4, or leave it out"
            )
        if self.beams and self.samples > self.beams:
            raise UserError(
                f"samples={self.samples} are more than the beams={self.beams} that are searched: give as many beams"
            )
        if self.beams and (not self.plain or self.temperature != 1.0):
            raise UserError(f"beams={self.beams} draws nothing: leave out the temperature, the filters and the penalties")
