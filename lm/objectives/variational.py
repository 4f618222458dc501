"""A variational autoencoder of texts: the text itself through a vector that is drawn (arXiv 1511.06349)."""

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from lm import config
from lm.objectives.declaration import Declaration, Lengths, Objective, Suit, both_lengths
from lm.objectives.prompts import TextPrompt, without_marks
from lm.objectives.streams import reconstruct, without_ends
from lm.objectives.vocabulary import Vocabulary, ends
from lm.types import Example


def encoder_decoder(tokens: np.ndarray, rng: np.random.Generator, *, progress: float = 1.0, bos: int, eos: int) -> Example:
    """The encoder reads the text, and the decoder predicts it from the vectors that the bottleneck draws. `progress`, the share
    of the training that is done, comes along: the weight of the divergence is a function of it.

    tokens    [20 21 22]
    encoder   [20 21 22 eos]
    decoder   [bos 20 21 22]
    targets   [20 21 22 eos]
    weights   [ 1  1  1  1]
    progress  0.5
    """
    tokens = without_ends(tokens, bos, eos)
    return replace(reconstruct(tokens, tokens, bos=bos, eos=eos), progress=np.float32(progress))


def build(c: config.Variational, data: config.Data, v: Vocabulary) -> Objective:
    """Windows one shorter than the shorter row, for eos or bos."""
    rows = both_lengths(data)
    make = partial(encoder_decoder, bos=v.bos_id, eos=v.eos_id)
    window, settings = min(rows) - 1, dict[str, Any](shortest=1, ends=ends(v), draws=False)
    return Objective(make, Lengths(*rows, paced=True), window, window, paced=True, **settings)


def itself(parts: list[np.ndarray], tokenizer: Any, new_tokens: int, rng: np.random.Generator) -> list[np.ndarray]:
    """A prompt's tokens, which the model writes again."""
    return parts[:1]


OBJECTIVE = Declaration(
    config.Variational,
    suits={
        "encoder_decoder": Suit(
            build,
            factors="bound",
            reads_prefix=False,
            spans="a variational autoencoder reads all of a text before it writes it, so that no span can be hidden from it",
        )
    },
    refused={
        "decoder": "a text passes from an encoder to a decoder through the drawn vector; take 'causal', or an encoder-decoder",
        "encoder": "nothing would write the text from the drawn vector; take 'masked', or an encoder-decoder",
    },
    prompt=TextPrompt(itself, without_marks, noised=True, rewrites=True),
    own_loss=True,
)
