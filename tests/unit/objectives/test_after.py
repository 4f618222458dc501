"""`data.after`: the beginning of a text is only read, under each objective that can be trained so."""

import numpy as np
import pytest

from lm import config
from lm.data.rows import Rows, after
from lm.errors import UserError
from tests.fakes import MemoryStore
from tests.unit.objectives.common import BOS, DATA, EOS, MASK, build, rng

MARK = (30, 31)
TEXT = np.array([BOS, 20, 21, 30, 31, 22, 23, 24, EOS], np.int32)  # 5 are given
AFTER = config.Data(encoder_length=36, decoder_length=36, after="=")
OBJECTIVES = [
    ("decoder", config.Causal()),
    ("decoder", config.MultiToken()),
    ("decoder", config.Prefix()),
    ("decoder", config.Teacherless()),
    ("decoder", config.MaskedDiffusion()),
    ("encoder", config.MaskedDiffusion()),
]


def built(objective, architecture):
    return build(objective, architecture, AFTER, encode=lambda text: np.array(MARK, np.int32))


def test_docstring():
    assert after(np.array([5, 6, 7, 8, 6, 7, 9]), (6, 7)) == 6
    assert after(np.array([5, 6, 7]), (8,)) == 3 and after(np.array([5]), (6, 7)) == 1


@pytest.mark.parametrize(("architecture", "objective"), OBJECTIVES)
def test_what_is_given_is_read_as_it_is_and_has_no_loss(architecture, objective):
    o = built(objective, architecture)
    assert o.after == MARK
    for seed in range(20):
        e = o.make(TEXT, rng(seed), given=5)
        stream = e.decoder or e.encoder
        assert stream.tokens[:5].tolist() == TEXT[:5].tolist()
        shift = 1 if e.decoder else 0  # a decoder predicts one place before
        lost = np.flatnonzero(e.weights) + shift
        assert lost.min() >= 5 and e.targets[lost - shift].tolist() == TEXT[lost].tolist()
        if not isinstance(objective, config.MaskedDiffusion):
            assert lost.tolist() == [5, 6, 7, 8]
        none = o.make(TEXT, rng(seed), given=len(TEXT))
        assert not none.weights.any() and MASK not in (none.decoder or none.encoder).tokens[:-1]


@pytest.mark.parametrize(("architecture", "objective"), OBJECTIVES)
def test_rows_find_the_mark_in_each_text(architecture, objective):
    texts = np.tile(TEXT, 80)
    rows = Rows({"a": MemoryStore(texts, [len(TEXT)] * 80)}, built(objective, architecture), 0, shuffle=False)
    batch = rows.rows(np.arange(8))
    stream = batch.decoder or batch.encoder
    read = np.where(stream.segments > 0, stream.tokens, BOS)
    assert set(read[read >= 20].tolist()) >= {20, 21, 30, 31}  # none of them is masked
    answer = {22, 23, 24, EOS}
    assert set(batch.targets[batch.weights > 0].tolist()) == answer


def test_an_objective_that_predicts_all_of_a_text_refuses_it():
    for architecture, objective in (("decoder", config.SpanCorruption()), ("encoder", config.Masked())):
        with pytest.raises(
            UserError, match="data.after='=': objective .* predicts all of a text in the .*; leave it out, or take"
        ):
            built(objective, architecture)
    assert not build(config.Causal(), "decoder", DATA).after
