"""Fill-in-the-middle gives what its docstrings show, and loses nothing."""

import numpy as np
import pytest

from lm import config
from lm.objectives import fim
from tests.unit.objectives.common import BOS, ENDS, EOS, SENTINELS, build, equal, first, rng, text

PREFIX, SUFFIX, MIDDLE = SENTINELS[-3:]


@pytest.mark.parametrize("suffix_first", [0.0, 1.0])
def test_rearrange_docstring(suffix_first):
    settings = dict(suffix_first=suffix_first, marks=(PREFIX, SUFFIX, MIDDLE), **ENDS)
    make = lambda r: fim.rearrange(np.array([BOS, *range(20, 26), EOS]), r, **settings)
    behind = [BOS, PREFIX, 20, 21, SUFFIX, 24, 25, MIDDLE, 22, 23, EOS]
    before = [BOS, PREFIX, SUFFIX, 24, 25, MIDDLE, 20, 21, 22, 23, EOS]
    wanted = before if suffix_first else behind
    equal(first(make, lambda x: x.tolist() == wanted), wanted)


def test_fill_in_middle_docstring():
    settings = dict(rate=1.0, suffix_first=0.0, marks=(PREFIX, SUFFIX, MIDDLE), **ENDS)
    make = lambda r: fim.decoder(np.array([BOS, 20, 21, 22, EOS]), r, **settings)
    e = first(make, lambda e: e.decoder.tokens.tolist() == [BOS, PREFIX, 20, SUFFIX, 22, MIDDLE, 21])
    equal(e.targets, [PREFIX, 20, SUFFIX, 22, MIDDLE, 21, EOS])
    equal(e.weights, [1] * 7)


def put_back(stream):
    """The text of a rearranged one, and whether its suffix came first."""
    at = {mark: stream.index(mark) for mark in (PREFIX, SUFFIX, MIDDLE)}
    assert sorted(at, key=at.get) == [PREFIX, SUFFIX, MIDDLE] and stream[-1] == EOS
    begin, prefix = stream[: at[PREFIX]], stream[at[PREFIX] + 1 : at[SUFFIX]]
    return begin + prefix + stream[at[MIDDLE] + 1 : -1] + stream[at[SUFFIX] + 1 : at[MIDDLE]], not prefix


@pytest.mark.parametrize("ends", [False, True])
def test_fill_in_middle_moves_half_and_loses_nothing(ends):
    o = build(config.FillInMiddle(), "decoder")
    moved = no_prefix = 0
    for s in range(1000):
        n = o.window if s % 2 else 9
        tokens = np.concatenate([[BOS], text(n - 2, s), [EOS]]) if ends else text(n, s)
        e = o.make(tokens, rng(s))
        stream = [*e.decoder.tokens.tolist(), int(e.targets[-1])]
        assert len(e.decoder.tokens) <= o.lengths.decoder and e.weights.all()
        equal(e.decoder.tokens[1:], e.targets[:-1].tolist())
        if MIDDLE in stream:
            back, suffix_first = put_back(stream)
            equal(back, tokens[:-1].tolist() if ends else tokens.tolist())
            moved, no_prefix = moved + 1, no_prefix + suffix_first
        else:
            equal(stream, tokens.tolist())
    assert abs(moved / 1000 - 0.5) < 0.06
    assert 0.4 < no_prefix / moved < 0.66  # half, and some prefixes are empty
