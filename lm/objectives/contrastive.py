"""Sentence vectors by contrast: a text against others, told apart by dropout (SimCSE, arXiv 2104.08821, section 3)."""

from functools import partial

import numpy as np

from lm import config
from lm.objectives.declaration import Declaration, Lengths, Objective, Suit, required_length
from lm.objectives.streams import stream
from lm.objectives.vocabulary import Vocabulary
from lm.types import Example

SHORTEST = 4  # tokens of a text that has a vector, with its ends


def first(tokens: np.ndarray, rng: np.random.Generator) -> Example:
    """An encoder's vector of a text is that of its first token (BERT's [CLS]).

    tokens    [bos 20 21 22]
    encoder   [bos 20 21 22]
    where     [0]
    targets   [0], which nobody reads
    weights   [1]
    """
    return Example(stream(tokens), None, np.zeros(1, np.int32), np.ones(1, np.float32), np.zeros(1, np.int32))


def last(tokens: np.ndarray, rng: np.random.Generator) -> Example:
    """A decoder's vector of a text is that of its last token, which has seen the others.

    tokens    [bos 20 21 22]
    decoder   [bos 20 21 22]
    where     [3]
    """
    where = np.array([len(tokens) - 1], np.int32)
    return Example(None, stream(tokens), np.zeros(1, np.int32), np.ones(1, np.float32), where)


def build(c: config.Contrastive, data: config.Data, v: Vocabulary, *, architecture: str) -> Objective:
    """Windows as long as the row, in which each document is a text."""
    length = required_length(data, f"{architecture}_length")
    most = length // SHORTEST
    alone = architecture == "encoder"
    lengths, make = (Lengths(length, None, most), first) if alone else (Lengths(None, length, most), last)
    return Objective(make, lengths, length, length, shortest=SHORTEST, draws=False)


OBJECTIVE = Declaration(
    config.Contrastive,
    suits={name: Suit(partial(build, architecture=name), factors=False, reads_prefix=False) for name in ("encoder", "decoder")},
    refused={"encoder_decoder": "a text has one vector, and two stacks give two; take 'span_corruption', or an encoder"},
    own_loss=True,
)
