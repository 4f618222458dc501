"""How a stack tells its tokens' positions apart."""

from dataclasses import dataclass
from typing import Annotated

from lm.config.ranges import Count, Positive, PositiveShare, Range
from lm.errors import UserError


@dataclass(frozen=True)
class Rope:
    """Rotary positions (RoFormer, arXiv 2104.09864)."""

    theta: Positive = 10_000.0  # base of the wavelengths, which go from 2 pi to 2 pi theta positions
    fraction: PositiveShare = 1.0  # of the head dim that is rotated (GPT-NeoX 0.25, Phi-2 0.4)
    interleaved: bool = False  # rotate pairs (0, 1), (2, 3)... as GPT-J and PaLM; else halves, as LLaMA and GPT-NeoX
    factor: Positive = 1.0  # positions are divided by this; with `original_length`, only at low frequencies (LLaMA 3.1)
    low_freq_factor: Positive = 1.0  # wavelengths above original_length / low_freq_factor positions are stretched by `factor`
    high_freq_factor: Positive = 4.0  # those below original_length / high_freq_factor are not; between the two it blends
    original_length: Count | None = None  # positions in pretraining; None: all wavelengths are stretched alike

    def __post_init__(self) -> None:
        if self.original_length is not None and self.high_freq_factor <= self.low_freq_factor:
            raise UserError(
                f"high_freq_factor={self.high_freq_factor:g} must be more than low_freq_factor={self.low_freq_factor:g}, "
                "between which `original_length` blends"
            )


@dataclass(frozen=True)
class Learned:
    """A trained vector for each position (GPT-2, BERT)."""

    max_length: Count  # positions
    offset: Annotated[int, Range(0, 2**16)] = 0  # rows of the table before that of position 0 (BART, RoBERTa: 2)


@dataclass(frozen=True)
class Sinusoidal:
    """Fixed sines and cosines (Attention Is All You Need, arXiv 1706.03762, section 3.5)."""


@dataclass(frozen=True)
class Buckets:
    """T5's relative bias in logarithmic buckets, one table for a stack (arXiv 1910.10683, section 2.1)."""

    num_buckets: Annotated[int, Range(4, 2**20)] = 32  # half of them for single distances, half logarithmic
    max_distance: Count = 128  # tokens; greater distances share the last bucket

    def __post_init__(self) -> None:
        # The logarithmic scale is 0 if max_distance equals the number of exact buckets (of a decoder, of an encoder).
        if self.max_distance in (self.num_buckets // 2, self.num_buckets // 4):
            raise UserError(
                f"max_distance={self.max_distance} leaves no room for logarithmic buckets: half of num_buckets="
                f"{self.num_buckets} hold one distance each, so give more than {self.num_buckets // 2}"
            )


@dataclass(frozen=True)
class Alibi:
    """A linear penalty on distance, with a slope for each head (arXiv 2108.12409)."""


Position = Rope | Learned | Sinusoidal | Buckets | Alibi
