"""The variational objective gives what its docstring shows, and its rows say how much of the training is done."""

from functools import partial

import numpy as np
import pytest

from lm import config, objectives
from lm.data.rows import blank, pack, stack
from lm.errors import UserError
from lm.objectives import variational
from tests.unit.objectives.common import BOS, EOS, build, equal, rng, text


def test_docstring():
    make = partial(variational.encoder_decoder, bos=BOS, eos=EOS)
    for tokens in ([20, 21, 22], [BOS, 20, 21, 22, EOS]):
        e = make(np.array(tokens), rng(), progress=0.5)
        equal(e.encoder.tokens, [20, 21, 22, EOS])
        equal(e.decoder.tokens, [BOS, 20, 21, 22])
        equal(e.targets, [20, 21, 22, EOS])
        equal(e.weights, [1, 1, 1, 1])
        assert e.progress == 0.5


def test_a_row_has_the_progress_of_its_pieces():
    o = build(config.Variational())
    pieces = [o.make(text(5, i), rng(), progress=0.25) for i in range(3)]
    rows = stack([pack(pieces, o.lengths), blank(o.lengths)])
    assert rows.progress.tolist() == [0.25, 1.0] and rows.progress.dtype == np.float32
    assert rows.tokens_asked() == 18


def test_its_loss_is_a_bound_and_other_architectures_are_refused():
    assert objectives.factors("encoder_decoder", config.Variational()) == "bound"
    with pytest.raises(UserError, match="does not suit the decoder: a text passes from an encoder"):
        build(config.Variational(), "decoder")
    with pytest.raises(UserError, match="does not suit the encoder: nothing would write"):
        build(config.Variational(), "encoder")
