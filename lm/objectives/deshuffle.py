"""Deshuffling: a decoder predicts the text from its tokens in a random order (T5, arXiv 1910.10683, section 3.3.1, table 3)."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from lm import config
from lm.objectives.declaration import Declaration, Objective, Suit
from lm.objectives.denoise import build_noised
from lm.objectives.prompts import TextPrompt, without_marks
from lm.objectives.vocabulary import Vocabulary


def shuffle(tokens: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The tokens in a random order; `lm.objectives.denoise.encoder_decoder` shows the streams.

    tokens    [20 21 22 23 24]
    noised    [22 20 24 21 23]
    """
    return rng.permutation(tokens)


def build_encoder_decoder(c: config.Deshuffle, data: config.Data, v: Vocabulary) -> Objective:
    return build_noised(shuffle, data, v)


def shuffled(parts: list[np.ndarray], tokenizer: Any, new_tokens: int, rng: np.random.Generator) -> Sequence[Any]:
    """A prompt's tokens in a random order."""
    return [shuffle(parts[0], rng)]


OBJECTIVE = Declaration(
    config.Deshuffle,
    suits={"encoder_decoder": Suit(build_encoder_decoder, factors=False, reads_prefix=False)},
    refused={
        "decoder": "the shuffled text has no stream of its own; take 'prefix', or an encoder-decoder",
        "encoder": "an encoder would have to predict the token of each position from tokens that have no order; take 'masked', "
        "or an encoder-decoder",
    },
    prompt=TextPrompt(shuffled, without_marks, noised=True),
)
