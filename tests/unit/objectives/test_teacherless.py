"""Teacherless training gives what its docstrings show: nothing that is predicted is read."""

from functools import partial

import numpy as np
import pytest

from lm import config
from lm.errors import UserError
from lm.objectives import teacherless
from tests.unit.objectives.common import BOS, DATA, MASK, build, equal, first, rng, text


def test_decoder_docstring():
    make = partial(teacherless.decoder, np.array([5, 6, 7, 8, 9]), mask_id=MASK)
    e = first(make, lambda e: e.decoder.prefix.sum() == 2)
    equal(e.decoder.tokens, [5, 6, MASK, MASK])
    equal(e.decoder.prefix, [1, 1, 0, 0])
    equal(e.targets, [6, 7, 8, 9])
    equal(e.weights, [0, 1, 1, 1])


def test_encoder_decoder_docstring():
    make = partial(teacherless.encoder_decoder, np.array([5, 6, 7, 8, 9]), bos=BOS, mask_id=MASK)
    e = first(make, lambda e: len(e.encoder.tokens) == 2)
    equal(e.encoder.tokens, [5, 6])
    equal(e.decoder.tokens, [BOS, MASK, MASK])
    equal(e.targets, [7, 8, 9])
    equal(e.weights, [1, 1, 1])


@pytest.mark.parametrize("architecture", ["decoder", "encoder_decoder"])
def test_nothing_that_is_predicted_is_read(architecture):
    make = build(config.Teacherless(), architecture).make
    for seed in range(30):
        e = make(text(9), rng(seed))
        read = set(e.decoder.tokens.tolist()) | (set() if e.encoder is None else set(e.encoder.tokens.tolist()))
        assert not read & set(e.targets[e.weights > 0].tolist())
        assert (e.decoder.tokens == MASK).sum() == e.weights.sum() - 1  # the first one is predicted by the last that is read


def test_it_needs_a_mask_token():
    with pytest.raises(UserError, match="'teacherless' needs a mask token"):
        build(config.Teacherless(), "decoder", DATA, mask_id=None)
