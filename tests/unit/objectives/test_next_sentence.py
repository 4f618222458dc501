"""Pairs of texts: what the docstring shows, true answers, and where the other text is from."""

from functools import partial

import numpy as np
import pytest

from lm import config
from lm.data.rows import Rows, blank, pack
from lm.objectives import masked, next_sentence
from tests.fakes import MemoryStore
from tests.unit.objectives.common import BOS, ENDS, EOS, MASK, NOISE, RESERVED, SENTINELS, build, equal, first, rng, text


def test_next_sentence_docstring():
    noise = partial(masked.noise, rate=0.2, mask=1.0, random=0.0, **NOISE)
    settings = dict(noise=noise, negatives=0.5, answers=(5, 6), **ENDS)
    make = lambda r: next_sentence.encoder(np.arange(20, 25), r, np.array([80, 81, 82, 83]), **settings)
    e = first(make, lambda e: e.encoder.tokens.tolist() == [BOS, 20, MASK, 22, EOS, 81, 82, EOS])
    equal(e.encoder.types, [0, 0, 0, 0, 0, 1, 1, 1])
    equal(e.encoder.positions, list(range(8)))
    equal(e.encoder.segments, [1] * 8)
    equal(e.where, [0, 2])
    equal(e.targets, [6, 21])
    equal(e.weights, [1, 1])


def test_next_sentence_answers_are_true():
    o, wrong, asked, due = build(config.NextSentence(), "encoder"), 0, 0, 0.0
    assert o.needs_other and o.lengths.types
    for s in range(1000):
        tokens, other = np.arange(100, 140), np.arange(300, 300 + 2 + s % 60)
        e = o.make(np.concatenate([[BOS], tokens, [EOS]]), rng(s), other)
        whole = e.encoder.tokens.copy()
        whole[e.where[1:]] = e.targets[1:]
        a, b = whole[e.encoder.types == 0], whole[e.encoder.types == 1]
        assert a[0] == BOS and a[-1] == EOS == b[-1] and e.where[0] == 0
        equal(a[1:-1], tokens[: len(a) - 2].tolist())
        if e.targets[0] == SENTINELS[0]:
            equal(b[:-1], tokens[len(a) - 2 :].tolist())
        else:
            assert e.targets[0] == SENTINELS[1] and b[0] >= 300 and (np.diff(b[:-1]) == 1).all()
            wrong += 1
        share = 0.15 * (len(whole) - 3)
        assert len(e.where) - 1 in (int(share), int(share) + 1)
        asked, due = asked + len(e.where) - 1, due + share
    assert abs(wrong / 1000 - 0.5) < 0.06 and abs(asked / due - 1) < 0.02


def test_the_order_of_two_texts_is_asked_for():
    """ALBERT's sentence order: the same two texts, as they were or swapped; no other text is needed."""
    o, swapped = build(config.NextSentence(against="swapped", masked=config.Masked(mask=0.0, random=0.0)), "encoder"), 0
    assert not o.needs_other and o.lengths.types
    for s in range(400):
        e = o.make(np.concatenate([[BOS], np.arange(100, 140), [EOS]]), rng(s))
        a, b = (e.encoder.tokens[(e.encoder.types == t) & (e.encoder.tokens >= RESERVED)] for t in (0, 1))
        wrong = e.targets[0] == SENTINELS[1]
        equal(np.concatenate([b, a] if wrong else [a, b]), list(range(100, 140)))
        swapped += wrong
    assert abs(swapped / 400 - 0.5) < 0.1
    right = build(config.NextSentence(0.0, "swapped"), "encoder")
    assert all(right.make(text(9), rng(s)).targets[0] == SENTINELS[0] for s in range(9))


def test_without_another_text_the_next_one_follows():
    o = build(config.NextSentence(negatives=1.0), "encoder")
    assert all(o.make(text(30), rng(s), np.zeros(0, np.int32)).targets[0] == SENTINELS[0] for s in range(20))


MANY = dict(vocab_size=2000, special=np.arange(2000) < RESERVED)


def store_of(lengths):
    """Documents of unique tokens."""
    return MemoryStore(np.arange(sum(lengths)) + 1000, lengths)


@pytest.mark.parametrize("shuffle", [True, False])
def test_the_other_text_is_one_document_from_elsewhere(shuffle):
    o = build(config.NextSentence(masked=config.Masked(random=0.0, mask=0.0)), "encoder", **MANY)
    store = store_of([150, 40, 300, 90, 7, 200])
    rows = Rows({"a": store}, o, 0, shuffle=shuffle)
    negatives = begins = 0
    for i in range(rows.count if not shuffle else 200):
        row = rows.rows(np.array([i]))
        tokens, types, segments = row.encoder.tokens[0], row.encoder.types[0], row.encoder.segments[0]
        own = tokens[(types == 0) & (tokens >= 1000)]
        for k in range(1, segments.max() + 1):
            place = np.flatnonzero(segments == k)
            a, b = (tokens[place[(types[place] == t) & (tokens[place] >= 1000)]] for t in (0, 1))
            asked = row.targets[0][(row.where[0] == place[0]) & (row.weights[0] > 0)]
            if len(place) - 3 < 2 and not len(b):  # a text that cannot be cut asks nothing
                assert not len(asked)
                continue
            document = lambda x: np.searchsorted(store.offsets, x - 1000, side="right")
            assert len(set(document(a))) == 1 == len(set(document(b))) and len(asked) == 1
            if asked[0] == SENTINELS[1]:
                assert not set(document(b)) & set(document(own)) and b[0] != a[-1] + 1
                negatives, begins = negatives + 1, begins + (b[0] < a[0])
            else:
                assert b[0] == a[-1] + 1
    assert negatives > 3 and (not shuffle or 0 < begins < negatives)  # from before the text and from behind it


def test_of_one_document_another_part_is_taken():
    o = build(config.NextSentence(negatives=1.0), "encoder", **MANY)
    rows = Rows({"a": store_of([400])}, o, 0, shuffle=False)
    assert (rows.rows(np.arange(rows.count - 1)).targets[:, 0] == SENTINELS[1]).all()


def test_a_source_of_one_window_has_nothing_elsewhere():
    o = build(config.NextSentence(negatives=1.0), "encoder", **MANY)
    row = Rows({"a": store_of([70])}, o, 0, shuffle=False).rows(np.array([0]))
    assert row.targets[0, 0] == SENTINELS[0]


def test_packed_pairs_carry_their_types():
    o = build(config.NextSentence(), "encoder")
    one, two = o.make(text(20), rng(), text(30, 5)), o.make(text(9), rng(1), text(30, 5))
    row = pack([one, two], o.lengths)
    equal(row.encoder.types[: len(one.encoder.types)], one.encoder.types.tolist())
    end = len(one.encoder.types) + len(two.encoder.types)
    equal(row.encoder.types[len(one.encoder.types) : end], two.encoder.types.tolist())
    assert not row.encoder.types[end:].any() and blank(o.lengths).encoder.types.shape == (64,)
    assert pack([], build(config.Masked(), "encoder").lengths).encoder.types is None
