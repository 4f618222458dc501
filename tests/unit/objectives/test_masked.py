"""Masking has the published rates, on short texts too; words and characters are masked completely or not at all."""

from functools import partial

import numpy as np
import pytest

from lm import config
from lm.data.rows import Rows
from lm.errors import UserError
from lm.objectives import masked
from lm.types import CHARACTER, INSIDE, WORD
from tests.fakes import MemoryStore
from tests.unit.objectives.common import BOS, EOS, MASK, NOISE, RESERVED, V, build, equal, first, rng, vocabulary


def test_masked_docstring():
    noise = partial(masked.noise, rate=0.3, mask=0.8, random=0.1, mask_id=MASK, text=np.arange(26) >= 20, ids=np.arange(20, 26))
    tokens = np.array([BOS, 20, 21, 22, 23, 24, 25])
    wanted = lambda e: e.where.tolist() == [2, 5] and e.encoder.tokens[2] == MASK and e.encoder.tokens[5] == 20
    e = first(lambda r: masked.encoder(tokens, r, noise=noise), wanted)
    equal(e.encoder.tokens, [BOS, 20, MASK, 22, 23, 20, 25])
    equal(e.where, [2, 5])
    equal(e.targets, [21, 24])
    equal(e.weights, [1, 1])


def test_control_tokens_behind_the_reserved_ones_are_neither_asked_for_nor_drawn():
    """BERT's [CLS], [SEP] and [MASK] are 101 to 103, behind a hundred that are unused."""
    special = np.isin(np.arange(110), [0, 101, 102, 103])
    v = vocabulary(bos_id=101, eos_id=102, mask_id=103, sentinel_ids=(), vocab_size=110, special=special)
    noise = masked.noise_of(config.Masked(0.5, mask=0.0, random=1.0), v)
    tokens = np.array([101, *range(104, 109), 102])
    for seed in range(200):
        corrupted, chosen = noise(tokens, rng(seed))
        assert not {0, 6} & set(chosen.tolist()) and not {101, 102, 103} & set(corrupted[1:-1].tolist())


@pytest.mark.parametrize("ends", [False, True])
def test_masked_encoder_decoder_docstring(ends):
    noise = partial(masked.noise, rate=0.25, mask=1.0, random=0.0, **NOISE)
    tokens = np.array([BOS, 20, 21, 22, 23, EOS][slice(None) if ends else slice(1, -1)])
    make = lambda r: masked.encoder_decoder(tokens, r, noise=noise, bos=BOS, eos=EOS)
    e = first(make, lambda e: e.encoder.tokens[1] == MASK)
    equal(e.encoder.tokens, [20, MASK, 22, 23, EOS])
    equal(e.decoder.tokens, [BOS, 20, 21, 22, 23])
    equal(e.targets, [20, 21, 22, 23, EOS])
    equal(e.weights, [1, 1, 1, 1, 1])


def masking(tokens, rounds=400, **settings):
    """Shares of open places that are masked, replaced and kept, over many rounds."""
    counts = np.zeros(3)
    for s in range(rounds):
        corrupted, chosen = masked.noise(tokens, rng(s), **(dict(rate=0.15, mask=0.8, random=0.1) | NOISE | settings))
        assert (np.diff(chosen) > 0).all()
        assert (tokens[chosen] >= RESERVED).all()
        changed = np.flatnonzero(corrupted != tokens)
        assert np.isin(changed, chosen).all()
        became = corrupted[chosen]
        counts += [(became == MASK).sum(), ((became != MASK) & (became != tokens[chosen])).sum(), 0]
        counts[2] += (became == tokens[chosen]).sum()
        assert ((became == MASK) | (became >= RESERVED)).all()
    return counts / (rounds * (tokens >= RESERVED).sum())


def test_masked_80_10_10():
    tokens = np.concatenate([[BOS], rng().integers(RESERVED, V, 254), [EOS]])
    shares = masking(tokens)
    n = 400 * 254 * 0.15
    for share, p in zip(shares / 0.15, (0.8, 0.1, 0.1), strict=True):
        assert abs(share - p) < 4 * (p * (1 - p) / n) ** 0.5 + 0.004  # 4 sigma, and rounding of the budget


def test_masked_of_nothing_but_specials():
    corrupted, chosen = masked.noise(np.array([BOS, EOS]), rng(), rate=0.15, mask=0.8, random=0.1, **NOISE)
    equal(corrupted, [BOS, EOS])
    assert len(chosen) == 0


@pytest.mark.parametrize("rate", [0.05, 0.15, 0.5])
def test_whole_words_are_never_split(rate):
    """A word starts where the tokenizer says, after a special, or at the piece's beginning."""
    word_start = rng(9).random(V) < 0.4
    boundaries = lambda tokens: np.where(word_start[tokens], WORD, CHARACTER)
    total = chosen_in_all = 0
    for s in range(200):
        tokens = rng(s, 1).integers(10, V, 60)
        words = np.cumsum(word_start[tokens] | (np.concatenate([[0], tokens[:-1]]) < RESERVED) | (tokens < RESERVED))
        settings = dict(rate=rate, mask=0.8, random=0.1, boundaries=boundaries)
        _, chosen = masked.noise(tokens, rng(s), **settings, **NOISE)
        for word in np.unique(words[chosen]):
            places = np.flatnonzero((words == word) & (tokens >= RESERVED))
            assert len(places) > 24 or np.isin(places, chosen).all()
        total, chosen_in_all = total + (tokens >= RESERVED).sum(), chosen_in_all + len(chosen)
    assert abs(chosen_in_all / total - rate) < 0.01


def test_random_tokens_are_those_of_texts():
    """Special tokens within the vocabulary are never drawn, and all others equally often."""
    ids = np.setdiff1d(np.arange(20, 40), [20, 24, 25, 26, 39])
    settings = dict(rate=1.0, mask=0.0, random=1.0, mask_id=MASK, text=np.isin(np.arange(40), ids))
    tokens = np.full(6000, 30)
    drawn, chosen = masked.noise(tokens, rng(), ids=ids, **settings)
    counts = np.bincount(drawn, minlength=40)
    assert len(chosen) == 6000 and set(np.flatnonzero(counts)) == set(ids)
    assert abs(counts[counts > 0] - 400).max() < 90 and (counts > 0).sum() == 15  # 4.6 sigma
    # Without special tokens among them the draw is a plain one.
    generator = rng(3)
    generator.random(), generator.choice(50, 50, replace=False), generator.random(50)
    equal(masked.noise(np.full(50, 30), rng(3), ids=np.arange(20, 40), **settings)[0], generator.integers(20, 40, 50).tolist())


@pytest.mark.parametrize("whole_words", [False, True])
@pytest.mark.parametrize("n", [1, 2, 3, 5, 9, 30])
def test_the_rate_is_a_probability_on_short_texts(n, whole_words):
    """On average it is met exactly, whatever the words; no text is masked because it is short."""
    begins = lambda tokens: np.where(np.arange(len(tokens)) % 3 == 0, WORD, CHARACTER)
    settings = dict(rate=0.15, mask=0.8, random=0.1, boundaries=begins if whole_words else None)
    rounds = 4000
    taken = [len(masked.noise(np.arange(20, 20 + n), rng(s), **settings, **NOISE)[1]) for s in range(rounds)]
    word = min(3, n) if whole_words else 1
    sigma = (0.15 * n * word / rounds) ** 0.5
    assert abs(np.mean(taken) - 0.15 * n) < 4 * sigma and min(taken) <= 0.15 * n <= max(taken)


@pytest.mark.parametrize("n", [1, 6, 40])
def test_independent_tokens_are_chosen_any_number_of_times(n):
    """The number of chosen ones is binomial, from none to all, and each place is as likely as another."""
    rounds, rate = 4000, 0.4
    settings = dict(rate=rate, mask=1.0, random=0.0, independent=True, **NOISE)
    tokens = np.array([BOS, *range(20, 20 + n), EOS])
    chosen = [masked.noise(tokens, rng(s), **settings)[1] for s in range(rounds)]
    counts = np.array([len(places) for places in chosen])
    assert abs(counts.mean() - rate * n) < 4 * (n * rate * (1 - rate) / rounds) ** 0.5
    assert abs(counts.var() / (n * rate * (1 - rate)) - 1) < 0.15
    if n <= 6:
        assert set(counts) == set(range(n + 1))
    places = np.bincount(np.concatenate(chosen), minlength=n + 2)
    assert places[0] == places[-1] == 0 and abs(places[1:-1] / rounds - rate).max() < 4.5 * (rate * (1 - rate) / rounds) ** 0.5


@pytest.mark.parametrize("n", [6, 126])
def test_a_row_has_room_for_what_is_chosen_independently(n):
    """Rows of documents of n words: all predictions are in the row, which has no more places than tokens."""
    c = config.Masked(0.5, independent=True)
    o = build(c, "encoder", config.Data(encoder_length=128))
    assert o.lengths.predicted == 96
    rows = Rows({"a": MemoryStore(np.tile([BOS, *[30] * n, EOS], 400), [n + 2] * 400)}, o, 0)
    counts = rows.rows(np.arange(200)).weights.sum(axis=1)
    due = 128 * n / (n + 2) / 2
    assert counts.max() < 96 and abs(counts.mean() - due) < 4 * (due / 2 / 200) ** 0.5


@pytest.mark.parametrize(("rate", "mean_span"), [(0.15, 3.0), (0.5, 3.0), (0.5, 8.0)])
def test_spans_have_the_mean_length_and_every_place_is_as_likely(rate, mean_span):
    n, rounds = 60, 3000
    settings = dict(rate=rate, mask=1.0, random=0.0, mean_span=mean_span, **NOISE)
    tokens = np.array([BOS, *range(20, 20 + n), EOS])
    taken = np.zeros((rounds, n + 2), bool)
    for number in range(rounds):
        taken[number, masked.noise(tokens, rng(number), **settings)[1]] = True
    assert not taken[:, [0, -1]].any()
    inner = taken[:, 1:-1]
    assert inner.sum(axis=1).mean() == pytest.approx(rate * n, rel=0.02)
    begins = (inner & ~np.roll(inner, 1, axis=1)).sum(axis=1)  # where the ends of the text meet, a span is in two parts
    assert inner.sum() / begins.sum() == pytest.approx(rate * n / round(rate * n / mean_span), rel=0.03)
    sigma = (rate * (1 - rate) / rounds) ** 0.5
    assert abs(inner.mean(axis=0) - rate).max() < 4.5 * sigma


@pytest.mark.parametrize(("rate", "taken"), [(0.01, {0, 1}), (1.0, {1, 2, 3})])
def test_spans_of_short_texts_keep_the_rate(rate, taken):
    counts = {
        n: [
            len(masked.noise(np.arange(20, 20 + n), rng(s), rate=rate, mask=1.0, random=0.0, mean_span=3.0, **NOISE)[1])
            for s in range(99)
        ]
        for n in (1, 2, 3)
    }
    assert set().union(*counts.values()) <= taken | {0, 1}
    assert rate < 1 or all(set(found) == {n} for n, found in counts.items())


def test_spans_beside_another_choice_are_refused():
    with pytest.raises(UserError, match="mean_span=3 chooses spans of tokens, and whole_word=True does not"):
        config.Masked(mean_span=3.0, whole_word=True)
    with pytest.raises(UserError, match="mean_span=3 chooses spans of tokens, and independent=True does not"):
        config.Masked(mean_span=3.0, independent=True)


def test_independent_words_are_refused():
    with pytest.raises(UserError, match="independent=True chooses each token by itself, and whole_word=True complete words"):
        config.Masked(independent=True, whole_word=True)


UNBROKEN = {
    "one run": lambda tokens: np.where(np.arange(len(tokens)) == 0, WORD, CHARACTER),
    "bytes of a run": lambda tokens: np.where(np.arange(len(tokens)) % 3 == 0, CHARACTER, INSIDE),
    "two halves": lambda tokens: np.where(np.arange(len(tokens)) % (len(tokens) // 2) == 0, WORD, CHARACTER),
    "a run among words": lambda tokens: np.where((np.arange(len(tokens)) < 90) & (np.arange(len(tokens)) > 0), CHARACTER, WORD),
}


@pytest.mark.parametrize("name", UNBROKEN)
@pytest.mark.parametrize("n", [10, 126])
def test_text_without_spaces_is_not_masked_whole(name, n):
    settings = dict(rate=0.15, mask=1.0, random=0.0, boundaries=UNBROKEN[name], **NOISE)
    shares = [len(masked.noise(np.arange(20, 20 + n), rng(s), **settings)[1]) / n for s in range(600)]
    assert abs(np.mean(shares) - 0.15) < (0.04 if n == 10 else 0.01) and max(shares) <= (0.5 if n == 10 else 0.3)


def test_no_character_is_masked_in_part():
    begins = lambda tokens: np.where(np.arange(len(tokens)) % 3 == 0, CHARACTER, INSIDE)
    for s in range(100):
        _, chosen = masked.noise(np.arange(20, 140), rng(s), rate=0.15, mask=1, random=0, boundaries=begins, **NOISE)
        assert np.isin(np.concatenate([chosen // 3 * 3 + k for k in range(3)]), chosen).all()
