"""Prefix language modelling gives what its docstrings show, and splits everywhere."""

from functools import partial

import numpy as np

from lm.objectives import prefix
from tests.unit.objectives.common import BOS, equal, first, rng


def test_prefix_decoder_docstring():
    make = partial(prefix.decoder, np.array([5, 6, 7, 8, 9]))
    e = first(make, lambda e: e.decoder.prefix.sum() == 2)
    equal(e.decoder.tokens, [5, 6, 7, 8])
    equal(e.decoder.prefix, [1, 1, 0, 0])
    equal(e.targets, [6, 7, 8, 9])
    equal(e.weights, [0, 1, 1, 1])


def test_prefix_encoder_decoder_docstring():
    make = partial(prefix.encoder_decoder, np.array([5, 6, 7, 8, 9]), bos=BOS)
    e = first(make, lambda e: len(e.encoder.tokens) == 2)
    equal(e.encoder.tokens, [5, 6])
    equal(e.decoder.tokens, [BOS, 7, 8])
    equal(e.targets, [7, 8, 9])
    equal(e.weights, [1, 1, 1])


def test_prefix_splits_everywhere():
    sizes = {prefix.split(6, rng(s)) for s in range(300)}
    assert sizes == {1, 2, 3, 4, 5}
