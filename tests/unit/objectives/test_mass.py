"""MASS gives what its docstring shows; masked span and rest are the text."""

import numpy as np
import pytest

from lm import config
from lm.objectives import mass
from tests.unit.objectives.common import ENDS, EOS, MASK, build, equal, first, rng, text


def test_mass_docstring():
    make = lambda r: mass.encoder_decoder(np.arange(20, 26), r, share=0.5, mask_id=MASK, **ENDS)
    e = first(make, lambda e: e.targets[0] == 22)
    equal(e.encoder.tokens, [20, 21, MASK, MASK, MASK, 25, EOS])
    equal(e.encoder.positions, [0, 1, 2, 3, 4, 5, 6])
    equal(e.decoder.tokens, [MASK, 22, 23])
    equal(e.decoder.positions, [2, 3, 4])
    equal(e.targets, [22, 23, 24])
    equal(e.weights, [1, 1, 1])


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_mass_text_is_whole(share):
    o = build(config.Mass(share))
    begins = set()
    for s in range(200):
        tokens = text(int(rng(s).integers(2, o.window + 1)), s)
        e = o.make(tokens, rng(s, 1))
        whole = e.encoder.tokens[:-1].copy()
        hidden = whole == MASK
        assert hidden.sum() == len(e.targets) == mass.length(len(tokens), share) and len(e.decoder.tokens) <= 64
        equal(np.flatnonzero(hidden), e.decoder.positions.tolist())
        whole[hidden] = e.targets
        equal(whole, tokens.tolist())
        begins.add((e.decoder.positions[0] == 0, e.decoder.positions[-1] == len(tokens) - 1))
    assert {(True, False), (False, True)} <= begins


def test_mass_window_fits_both_sides():
    assert build(config.Mass(), data=config.Data(encoder_length=64, decoder_length=64)).window == 63
    window = build(config.Mass(), data=config.Data(encoder_length=64, decoder_length=16)).window
    assert mass.length(window, 0.5) == 16 and mass.length(window + 1, 0.5) > 16
