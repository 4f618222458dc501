"""What a model is trained to predict: a dataclass an objective, each cites its paper."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from lm.config.model import Model
from lm.config.ranges import Name, NonNegative, PositiveShare, Range, Share, Span
from lm.errors import UserError


@dataclass(frozen=True)
class Causal:
    """Next token, left to right (GPT)."""


@dataclass(frozen=True)
class Prefix:
    """The rest of a text after a random split, the part before seen both ways (T5, section 3.2.3)."""


@dataclass(frozen=True)
class Masked:
    """Masked tokens back from both sides (BERT, arXiv 1810.04805, section 3.1)."""

    rate: PositiveShare = 0.15
    mask: Share = 0.8  # of the chosen: replaced by the mask token
    random: Share = 0.1  # of the chosen: replaced by a random token; the rest stay as they are
    whole_word: bool = False
    dynamic: bool = True  # new masks each epoch (RoBERTa); False: a window keeps its masks

    def __post_init__(self) -> None:
        if self.mask + self.random > 1 + 1e-9:
            raise UserError(f"mask={self.mask} and random={self.random} are shares of the same tokens: lower one to sum to 1")


@dataclass(frozen=True)
class SpanCorruption:
    """Spans replaced by sentinels, and given back in order (T5, section 3.1.4)."""

    rate: Annotated[float, Range(0.0, 0.95, above=True)] = 0.15
    mean_span: Span = 3.0
    prefix: bool = True  # a decoder alone sees the corrupted text from both sides; False: left to right, like the rest


@dataclass(frozen=True)
class Denoise:
    """The text back from a noised one (BART, arXiv 1910.13461, section 2.2). A share of 0 turns a noise off."""

    infill: Share = 0.3  # of the tokens: in spans, each replaced by one mask token
    mean_span: Span = 3.0  # of infilling; lengths are Poisson's, some spans are empty
    permute: Share = 1.0  # of the sentences: in a random order
    mask: Share = 0.0  # of the tokens: each replaced by a mask token
    delete: Share = 0.0  # of the tokens
    rotate: Share = 0.0  # of the pieces: begun at a random token


@dataclass(frozen=True)
class Deshuffle:
    """The text back from its tokens in a random order (T5, section 3.3.1)."""


@dataclass(frozen=True)
class Mass:
    """A masked stretch of the text, and nothing else, from what stands around it (MASS, arXiv 1905.02450, section 3.2)."""

    share: PositiveShare = 0.5  # of the text that is masked


@dataclass(frozen=True)
class FillInMiddle:
    """Next token, of texts whose middle was moved to their end (arXiv 2207.14255, section 3)."""

    rate: Share = 0.5  # of the pieces that are rearranged
    suffix_first: Share = 0.5  # of these: the suffix before the prefix (SPM), not behind it (PSM)


@dataclass(frozen=True)
class NextSentence:
    """Masked tokens, and whether a second text follows the first (BERT, section 3.1)."""

    negatives: Share = 0.5  # of the pairs: the second text is of another document, if the split has one to take from
    masked: Masked = Masked()


@dataclass(frozen=True)
class Part:
    objective: "Objective"
    weight: NonNegative = 1.0  # of the pieces, beside the other parts' weights
    mode: Name | None = None  # a token for this name, one for all parts that have it, stands before what the model reads


@dataclass(frozen=True)
class Mixture:
    """Each piece under one of several objectives, drawn by weight; `mode` tells the model which (UL2, arXiv 2205.05131)."""

    parts: Mapping[Name, Part]

    def __post_init__(self) -> None:
        if not any(part.weight > 0 for part in self.parts.values()):
            raise UserError("parts needs a part, and weights of 0 or more that are not all 0")


@dataclass(frozen=True)
class ReplacedTokens:
    """A generator fills in masks, and the model says of each token whether it was replaced (ELECTRA, arXiv 2003.10555).

    The other values of `predict` are the paper's ablations (section 3.4, table 5): asked at the chosen places alone
    (ELECTRA 15 %), and the tokens themselves, of the chosen places (Replace MLM) or of all (All-Tokens MLM).
    """

    generator: Model  # with the model's vocabulary, and tables as wide as the model's (`embed.width`): they are shared
    rate: PositiveShare = 0.15
    weight: NonNegative = 50.0  # of the model's loss beside the generator's
    predict: Literal["replaced", "replaced_chosen", "masked", "all"] = "replaced"


Objective = (
    Causal
    | Prefix
    | Masked
    | SpanCorruption
    | Denoise
    | Deshuffle
    | Mass
    | FillInMiddle
    | NextSentence
    | ReplacedTokens
    | Mixture
)
