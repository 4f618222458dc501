"""Adapters: small trained matrices beside a frozen model."""

from dataclasses import dataclass
from typing import Literal

from lm.config.ranges import Count, Decay, Name, Positive
from lm.errors import UserError


@dataclass(frozen=True)
class Lora:
    """Trains W + scale * A B in place of W: A is [inputs, rank] and B [rank, outputs] (LoRA, arXiv 2106.09685). B begins with
    zeros, and neither has weight decay. W is that of `train.init_from`, and is in no checkpoint.
    """

    rank: Count = 8
    alpha: Positive = 16.0
    scale: Literal["alpha/rank", "alpha/sqrt(rank)"] = "alpha/rank"  # the latter is rsLoRA (arXiv 2312.03732)
    dora: bool = False  # W + scale * A B is scaled to a trained norm of each output's weights (DoRA, arXiv 2402.09353)
    # Of the stacks, by name ("query", "value"); elsewhere by path ("embed/tokens", "head/out"). None: the linear layers of the
    # stacks, which are query, key, value, out, up, gate and down. A router, norms and biases stay as they are.
    modules: tuple[Name, ...] | None = None
    base: Literal["float", "int8", "nf4"] = (
        "float"  # how the linear layers of the frozen model lie in memory (QLoRA, 2305.14314)
    )
    # Top-level parameters that are trained in full, such as a new head or ("embed",). None: those that begin from the seed.
    whole: tuple[Name, ...] | None = None
    digest: Name | None = None  # SHA-256 of the saved base, which the run fills in
    dropout: Decay = 0.0  # of what A reads, in training; of linear layers, not of embeddings and experts (2106.09685, table 11)

    def __post_init__(self) -> None:
        if self.dropout and self.dora:
            raise UserError(
                f"adapter.dropout={self.dropout:g} is of what A reads, and DoRA merges A with its matrix: leave it out"
            )

    @property
    def factor(self) -> float:
        """What A B is multiplied by."""
        return self.alpha / (self.rank if self.scale == "alpha/rank" else self.rank**0.5)
