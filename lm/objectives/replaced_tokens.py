"""Replaced-token detection (ELECTRA, arXiv 2003.10555, section 2): the rows of its generator.

A generator fills in masks, and the model says of each token whether it was replaced. What the model reads depends on what the
generator writes, so the task and its losses make that on the device (`lm.losses.replaced`).
"""

from lm import config
from lm.objectives import masked
from lm.objectives.declaration import Declaration, Objective, Suit
from lm.objectives.prompts import TextPrompt, with_masks
from lm.objectives.vocabulary import Vocabulary


def build_encoder(c: config.ReplacedTokens, data: config.Data, v: Vocabulary) -> Objective:
    """Masked rows in which every chosen token becomes a mask."""
    return masked.build_encoder(config.Masked(c.rate, mask=1.0, random=0.0), data, v)


OBJECTIVE = Declaration(
    config.ReplacedTokens,
    suits={
        "encoder": Suit(
            build_encoder,
            factors=False,
            reads_prefix=False,
            spans="this model never saw a mask token, as it read what another had filled in: no span can be hidden from it",
        )
    },
    refused={
        "decoder": "masks are filled in from both sides; take 'causal', or an encoder",
        "encoder_decoder": "a decoder has nothing to write; take 'masked', or an encoder",
    },
    prompt=TextPrompt(with_masks, noised=True),
    own_loss=True,
)
