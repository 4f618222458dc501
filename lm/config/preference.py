"""Recipes that learn from preferred answers: a reward model, and a model that writes them."""

from dataclasses import dataclass
from typing import Annotated, Literal

from lm.config.ranges import INT32, Name, NonNegative, Positive, Range, Share
from lm.errors import UserError

Tokens = Annotated[int, Range(2, INT32)]


@dataclass(frozen=True)
class Reward:
    """Train a model to give each answer a number, from pairs of a better and a worse one (`lm.recipes.reward`).

    What is left out is taken from the run or the converted model in `train.init_from`: the model, the objective, the tokenizer.
    """

    length: Tokens = 128  # tokens of a conversation before the answer, at most
    answer: Tokens = 64  # tokens of an answer with the end of its turn, at most
    centre: NonNegative = 0.0  # weight of (sum of the two rewards)^2, which keeps rewards near 0 (arXiv 2312.09244: 0.01)
    prefix: bool | None = None  # a decoder sees the conversation from both sides; None: as the model before


@dataclass(frozen=True)
class Preference:
    """Train a model to write the better of two answers, or answers that are good (`lm.recipes.preference`).

    `method` is a row of `lm.losses.preference.METHODS`, which has the paper and the numbers that are None here. All but simpo,
    orpo and cpo compare with the model in `train.init_from` as it was, the reference.
    """

    method: Literal["dpo", "dpo_norm", "ipo", "hinge", "simpo", "orpo", "cpo", "kto"] = "dpo"
    length: Tokens = 128  # tokens of a conversation before the answer, at most
    answer: Tokens = 64  # tokens of an answer with the end of its turn, at most
    beta: Positive | None = None  # slope of the comparison: how dear it is to leave the reference
    gamma: NonNegative | None = None  # by how much reward the chosen answer should be ahead, beside a record's margin
    nll: NonNegative | None = None  # weight of the chosen answer's own loss in nats a token (orpo and cpo: 1)
    weight: NonNegative | None = None  # weight of the comparison (orpo: its lambda, 0.1)
    smoothing: Share = 0.0  # share of the preferences that is taken to be wrong (conservative DPO), of sigmoids
    desirable: NonNegative = 1.0  # kto: weight of good answers
    undesirable: NonNegative = 1.0  # kto: weight of answers that are not
    prefix: bool | None = None  # a decoder sees the conversation from both sides; None: as the model before
    reference_sha256: Name | None = None  # of the reference's files, filled in by the run, which goes on only with the same

    def __post_init__(self) -> None:
        if self.smoothing and self.method in ("ipo", "hinge", "kto"):
            raise UserError(f"recipe.smoothing={self.smoothing:g} is of sigmoids, and {self.method} has none: leave it out")
        if (self.desirable, self.undesirable) != (1.0, 1.0) and self.method != "kto":
            raise UserError(f"recipe.desirable and recipe.undesirable are of kto, and the method is {self.method}")
