"""Deshuffling gives what its docstring shows."""

import numpy as np

from lm import config
from lm.objectives import deshuffle
from tests.unit.objectives.common import BOS, EOS, build, equal, first, rng, text


def test_shuffle_docstring():
    wanted = [22, 20, 24, 21, 23]
    equal(first(lambda r: deshuffle.shuffle(np.arange(20, 25), r), lambda x: x.tolist() == wanted), wanted)


def test_deshuffle_has_the_same_tokens_in_another_order():
    o, tokens = build(config.Deshuffle()), text(40)
    e = o.make(np.concatenate([[BOS], tokens, [EOS]]), rng())
    equal(e.targets, [*tokens, EOS])
    assert (e.encoder.tokens[:-1] != tokens).any() and sorted(e.encoder.tokens[:-1]) == sorted(tokens)
