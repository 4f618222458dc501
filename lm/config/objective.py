"""Objectives: what a model is trained to predict. `lm.objectives` has a module for each, whose docstrings show the arrays."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from lm.config.model import Model
from lm.config.ranges import Count, Name, NonNegative, Positive, PositiveShare, Range, Share, Span
from lm.errors import UserError


@dataclass(frozen=True)
class Causal:
    """Next token, left to right (GPT)."""


@dataclass(frozen=True)
class MultiToken:
    """The next token, and further ones from heads beside the model (arXiv 2404.19737; DeepSeek-V3, arXiv 2412.19437)."""

    heads: Count = 3  # tokens after the next, a layer each
    sequential: bool = False  # each head reads the head before it (DeepSeek-V3); False: the decoder's output
    weight: NonNegative = 1.0  # of each head's loss beside the model's


@dataclass(frozen=True)
class AnyOrder:
    """The tokens of a text one after another in a random order, each told which position comes next (sigma-GPT, arXiv
    2404.09562). Needs `model.embed.ahead`, a second table of positions."""

    left_to_right: Share = 0.0  # of the texts, in their own order


@dataclass(frozen=True)
class Prefix:
    """The rest of a text after a random split, its first part seen from both sides (T5, arXiv 1910.10683, section 3.2.3)."""


@dataclass(frozen=True)
class Teacherless:
    """The rest of a text after a random split, all its tokens at once from the first part alone (arXiv 2403.06963, section
    5)."""


@dataclass(frozen=True)
class Masked:
    """Masked tokens, from both sides (BERT, arXiv 1810.04805, section 3.1)."""

    rate: PositiveShare = 0.15  # share of the tokens that is chosen
    mask: Share = 0.8  # of the chosen tokens, replaced by the mask token
    random: Share = 0.1  # of the chosen tokens, replaced by a random one; the rest stay
    whole_word: bool = False  # choose complete words
    mean_span: Span = 1.0  # tokens that are chosen in a row, on average (SpanBERT, arXiv 1907.10529); 1: each by itself
    # Choose each token by itself, so that a short text has any number of chosen ones; otherwise its share, rounded at random.
    independent: bool = False
    dynamic: bool = True  # new masks in each epoch (RoBERTa); False: a window keeps its masks

    def __post_init__(self) -> None:
        if self.mask + self.random > 1 + 1e-9:
            raise UserError(f"mask={self.mask} and random={self.random} are shares of the same tokens: lower one to sum to 1")
        if self.independent and self.whole_word:
            raise UserError("independent=True chooses each token by itself, and whole_word=True complete words: leave one out")
        if self.mean_span > 1 and (self.independent or self.whole_word):
            other = "independent=True" if self.independent else "whole_word=True"
            raise UserError(f"mean_span={self.mean_span:g} chooses spans of tokens, and {other} does not: leave one out")


@dataclass(frozen=True)
class MaskedDiffusion:
    """Masked tokens at a rate that is drawn for each text, from both sides (MDLM, arXiv 2406.07524; LLaDA, arXiv 2502.09992).
    In a decoder the logits at each token are of the next one, as in a causal model, so that training can start from one
    (DiffuLLaMA, arXiv 2410.17891).

    With weight="bound" the loss is an upper bound of the text's negative log-probability in nats a token; with "flat" each
    masked token counts the same (MLM-U, arXiv 2412.05117).
    """

    # How often which share of a text is masked: "linear", all shares alike; "cosine", small shares more often; "square", large
    # ones. The bound is the same (MDLM), its variance is not.
    schedule: Literal["linear", "cosine", "square"] = "linear"
    weight: Literal["bound", "flat"] = "bound"
    # The model is told the share of masks in so many steps, as types of its tokens (`model.embed.types`); 0: it is not told.
    time_steps: Annotated[int, Range(0, 10_000)] = 0
    # Share of the training over which the tokens after a decoder's own are revealed to it, at a constant pace (DiffuLLaMA);
    # 0: all are visible from the start. In held-out rows and samples all are.
    anneal: Share = 0.0


@dataclass(frozen=True)
class BlockDiffusion:
    """Blocks left to right, each by masked diffusion given the text before it (BD3-LM, arXiv 2503.09573). A row holds a text
    and its noised copy. With blocks of one token every token is predicted from those before it, as a causal model does."""

    block: Count = 4  # tokens
    schedule: Literal["linear", "cosine", "square"] = "linear"  # as in MaskedDiffusion, within a block


@dataclass(frozen=True)
class SpanCorruption:
    """Spans that sentinels replace, predicted in order (T5, section 3.1.4)."""

    rate: Annotated[float, Range(0.0, 0.95, above=True)] = 0.15  # share of the tokens that is in spans
    mean_span: Span = 3.0  # tokens
    prefix: bool = True  # a decoder alone sees the corrupted text from both sides; False: left to right like the spans
    # Shift the spans around the text by a random number of tokens, T5's `random_roll`. Otherwise a text ends in a span, so that
    # one with a single span, such as a sentence of ten words, always lacks its last words.
    roll: bool = False


@dataclass(frozen=True)
class Denoise:
    """The complete text, from a noised one (BART, arXiv 1910.13461, section 2.2). A share of 0 turns a noise off."""

    infill: Share = 0.3  # of the tokens, in spans that one mask token each replaces
    mean_span: Span = 3.0  # tokens; lengths of infilled spans are Poisson distributed, and may be 0
    permute: Share = 1.0  # of the sentences, shuffled
    mask: Share = 0.0  # of the tokens, each replaced by a mask token
    delete: Share = 0.0  # of the tokens, removed
    rotate: Share = 0.0  # of the pieces, rotated to begin at a random token


@dataclass(frozen=True)
class Deshuffle:
    """The text, from its tokens in a random order (T5, section 3.3.1)."""


@dataclass(frozen=True)
class Variational:
    """The text itself, through vectors that are drawn: a variational autoencoder (arXiv 1511.06349). Needs a model with
    `model.bottleneck.latent` "gaussian". The loss is a bound: nats of the text given the vectors, and the divergence of the
    vectors' distribution from the prior."""

    weight: NonNegative = 1.0  # of the divergence in training; held-out figures have 1, so that they are the bound
    anneal: Share = 0.2  # share of the training over which that weight rises from 0 (section 3.1)
    free: NonNegative = 0.0  # nats of a document's divergence that cost nothing (free bits, arXiv 1606.04934)
    draws: Count = 1  # of held-out rows; with more, `loss_importance` is a tighter bound (arXiv 1509.00519)
    collapsed: NonNegative = 0.1  # nats of a document's divergence below which `posterior_collapse` is said: 1


@dataclass(frozen=True)
class Mass:
    """One masked span of the text, from what surrounds it (MASS, arXiv 1905.02450, section 3.2)."""

    share: PositiveShare = 0.5  # of the tokens that is masked


@dataclass(frozen=True)
class FillInMiddle:
    """Next token, of texts whose middle was moved to their end (arXiv 2207.14255, section 3)."""

    rate: Share = 0.5  # of the pieces, rearranged
    suffix_first: Share = 0.5  # of these, with the suffix before the prefix (SPM) and not after it (PSM)


@dataclass(frozen=True)
class NextSentence:
    """Masked tokens, and whether a second text follows the first (BERT, section 3.1), or which of two texts comes first
    (sentence order: ALBERT, arXiv 1909.11942, section 3.1)."""

    negatives: Share = 0.5  # of the pairs, whose second text is from another document, if the split has one; or swapped
    against: Literal["other", "swapped"] = "other"  # what a negative is: text of another document, or the two texts swapped
    masked: Masked = Masked()  # how their tokens are masked


@dataclass(frozen=True)
class Contrastive:
    """A vector for each text, near to itself under other dropout and far from the other texts of the batch (SimCSE, arXiv
    2104.08821, section 3). Needs a model with dropout."""

    temperature: Positive = 0.05  # of the cosines (SimCSE, section 3)


@dataclass(frozen=True)
class Part:
    """One objective of a mixture."""

    objective: "Objective"
    weight: NonNegative = 1.0  # its share of the pieces, relative to the weights of the other parts
    mode: Name | None = None  # a token of this name is put before what the model reads; parts may have the same. None: no token


@dataclass(frozen=True)
class Mixture:
    """Each piece under one of several objectives, drawn by weight; `mode` tells the model which (UL2, arXiv 2205.05131)."""

    parts: Mapping[Name, Part]  # a name for each; text prompts are put to the first by name

    def __post_init__(self) -> None:
        if not any(part.weight > 0 for part in self.parts.values()):
            raise UserError("parts needs a part, and weights of 0 or more that are not all 0")


@dataclass(frozen=True)
class ReplacedTokens:
    """A generator fills in masks, and the model says of each token whether it was replaced (ELECTRA, arXiv 2003.10555).

    `predict` has the paper's ablations (section 3.4, table 5). "replaced_chosen": the same question at the masked positions
    alone (ELECTRA 15 %). "masked": the original tokens, at the masked positions (Replace MLM). "all": those of all positions
    (All-Tokens MLM).
    """

    generator: Model  # shares the model's embedding tables, so its vocabulary and `embed.width` must be the same
    rate: PositiveShare = 0.15  # share of the tokens that is masked for the generator
    weight: NonNegative = 50.0  # of the model's loss; the generator's has 1
    predict: Literal["replaced", "replaced_chosen", "masked", "all"] = "replaced"


Objective = (
    Causal
    | MultiToken
    | AnyOrder
    | Prefix
    | Teacherless
    | Masked
    | MaskedDiffusion
    | BlockDiffusion
    | SpanCorruption
    | Denoise
    | Deshuffle
    | Variational
    | Mass
    | FillInMiddle
    | NextSentence
    | Contrastive
    | ReplacedTokens
    | Mixture
)
