"""Next-token prediction gives what its docstring shows."""

import numpy as np

from lm.objectives import causal
from tests.unit.objectives.common import equal, rng


def test_causal_docstring():
    e = causal.decoder(np.array([5, 6, 7, 8]), rng())
    assert e.encoder is None and e.where is None
    equal(e.decoder.tokens, [5, 6, 7])
    equal(e.decoder.positions, [0, 1, 2])
    equal(e.decoder.segments, [1, 1, 1])
    equal(e.targets, [6, 7, 8])
    equal(e.weights, [1, 1, 1])
