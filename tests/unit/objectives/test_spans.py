"""Span corruption gives what its docstrings show, in T5's lengths, and loses nothing."""

import numpy as np
import pytest

from lm import config, objectives
from lm.objectives import spans
from tests.unit.objectives.common import BOS, EOS, RESERVED, V, equal, first, rng, vocabulary

SENTINELS = np.arange(5, 15, dtype=np.int32)
T5 = config.SpanCorruption(rate=0.15, mean_span=3.0)


def test_corrupt_docstring():
    tokens = np.arange(20, 30)
    make = lambda r: spans.corrupt(tokens, r, rate=0.3, mean_span=1.5, sentinels=SENTINELS)
    inputs, targets = first(make, lambda e: e[0].tolist()[-1] == 6 and len(e[1]) == 5 and e[1][1] == 23 and e[1][4] == 29)
    equal(inputs, [20, 21, 22, 5, 25, 26, 27, 28, 6])
    equal(targets, [5, 23, 24, 6, 29])
    drawn = [spans.noise_mask(10, rng(s), rate=0.3, mean_span=1.5).tolist() for s in range(300)]
    assert [0, 0, 0, 1, 1, 0, 0, 0, 0, 1] in drawn


def test_spans_docstrings():
    tokens, settings = np.arange(20, 26), dict(rate=1 / 3, mean_span=2.0, sentinels=SENTINELS, bos=BOS, eos=EOS)
    # The mask ends in noise; with one span it is the last two tokens.
    e = spans.encoder_decoder(tokens, rng(), **settings)
    equal(e.encoder.tokens, [20, 21, 22, 23, 5, EOS])
    equal(e.decoder.tokens, [BOS, 5, 24, 25])
    equal(e.targets, [5, 24, 25, EOS])
    equal(e.weights, [1, 1, 1, 1])
    e = spans.decoder(tokens, rng(), **settings)
    equal(e.decoder.tokens, [20, 21, 22, 23, 5, EOS, 5, 24, 25])
    equal(e.decoder.prefix, [1, 1, 1, 1, 1, 1, 0, 0, 0])
    equal(e.targets, [21, 22, 23, 5, EOS, 5, 24, 25, EOS])
    equal(e.weights, [0, 0, 0, 0, 0, 1, 1, 1, 1])


def test_t5_arithmetic():
    """The published lengths: 512 places of the encoder take 568 tokens, and give 114 targets."""
    assert spans.window(512, T5) == 568
    assert spans.lengths(568, T5) == (512, 114)
    assert spans.window(512, config.SpanCorruption(0.5, 3.0)) > 568


def brute_force(room, rate, mean_span):
    """The longest text whose inputs, counted out place by place, fit."""

    def laid_out(n):
        noise = min(max(int(round(n * rate)), 1), n - 1)
        num = max(int(round(noise / mean_span)), 1)
        inputs = ["text"] * (n - noise) + ["sentinel"] * num + ["eos"]
        targets = ["noise"] * noise + ["sentinel"] * num + ["eos"]
        return len(inputs), len(targets)

    best = max(n for n in range(3, 4 * room) if laid_out(n)[0] <= room)
    return best, laid_out(best)


@pytest.mark.parametrize("room", [16, 31, 64, 100, 128, 256, 512, 1000])
@pytest.mark.parametrize("rate,mean_span", [(0.15, 3.0), (0.15, 8.0), (0.25, 2.0), (0.4, 10.0)])
def test_lengths_against_brute_force(room, rate, mean_span):
    c = config.SpanCorruption(rate, mean_span)
    window, sides = brute_force(room, rate, mean_span)
    assert spans.window(room, c) == window
    assert spans.lengths(window, c) == sides
    settings = dict(rate=rate, mean_span=mean_span, sentinels=np.arange(200))
    inputs, targets = spans.corrupt(np.arange(200, 200 + window), rng(), **settings)
    assert (len(inputs) + 1, len(targets) + 1) == sides


def rebuilt(inputs, targets):
    """The text, from inputs and targets: each sentinel of the inputs gives way to what follows it in the targets."""
    behind = {}
    for t in targets.tolist():
        if t in SENTINELS:
            behind[t] = []
            last = t
        else:
            behind[last].append(t)
    text = []
    for t in inputs.tolist():
        text += behind.pop(t) if t in SENTINELS else [t]
    assert not behind
    return text


@pytest.mark.parametrize("seed", range(40))
def test_inputs_and_targets_hold_the_whole_text(seed):
    n, rate, mean_span = int(rng(seed).integers(2, 60)), rng(seed, 1).uniform(0.05, 0.6), rng(seed, 2).uniform(1, 6)
    settings = dict(rate=rate, mean_span=max(mean_span, rate * n / 9), sentinels=SENTINELS)
    tokens = rng(seed, 3).integers(RESERVED, V, n).astype(np.int32)
    inputs, targets = spans.corrupt(tokens, rng(seed, 4), **settings)
    assert rebuilt(inputs, targets) == tokens.tolist()
    noise, num = spans.counts(n, settings["rate"], settings["mean_span"])
    for side in (inputs, targets):  # sentinels in their order, from the first on
        equal(side[np.isin(side, SENTINELS)], SENTINELS[:num].tolist())
    assert len(targets) == noise + num
    both = dict(settings, bos=BOS, eos=EOS)
    e = spans.encoder_decoder(np.concatenate([[BOS], tokens, [EOS]]), rng(seed, 4), **both)
    equal(e.encoder.tokens, [*inputs, EOS])
    equal(e.targets, [*targets, EOS])
    equal(e.decoder.tokens, [BOS, *targets])
    one = spans.decoder(tokens, rng(seed, 4), **both)
    equal(one.decoder.tokens, [*inputs, EOS, *targets])
    equal(one.targets, [*inputs[1:], EOS, *targets, EOS])
    equal(one.decoder.prefix, [1] * (len(inputs) + 1) + [0] * len(targets))
    assert one.weights.sum() == len(targets) + 1 and one.weights[len(inputs)] == 1  # eos of the inputs predicts the first


def test_noise_is_everywhere():
    """Over many draws every place but the first is noise at times, at about the rate."""
    share = np.mean([spans.noise_mask(40, rng(s), rate=0.25, mean_span=2.5) for s in range(2000)], axis=0)
    assert share[0] == 0 and share[-1] == 1  # text first, noise last: as in T5
    assert abs(share.mean() - 0.25) < 1e-9 and 0.1 < share[3:-6].min() and share[3:-6].max() < 0.4


def test_rolled_noise_is_everywhere_equally():
    """A text with one span loses its last words without it, and any word with it; no form is longer than was said."""
    assert all(spans.noise_mask(8, rng(s), rate=0.15, mean_span=3.0).tolist() == [False] * 7 + [True] for s in range(20))
    for n, c in ((8, config.SpanCorruption(roll=True)), (12, config.SpanCorruption(0.5, 2.0, roll=True))):
        tokens, settings = np.arange(20, 20 + n), dict(rate=c.rate, mean_span=c.mean_span, roll=True)
        share = np.mean([spans.noise_mask(n, rng(s), **settings) for s in range(4000)], axis=0)
        rate = spans.counts(n, c.rate, c.mean_span)[0] / n
        assert abs(share - rate).max() < 4.5 * (rate * (1 - rate) / 4000) ** 0.5
        made = [spans.corrupt(tokens, rng(s), sentinels=SENTINELS, **settings) for s in range(100)]
        assert all(rebuilt(*sides) == tokens.tolist() for sides in made)
        longest = tuple(max(len(sides[i]) for sides in made) + 1 for i in range(2))
        assert longest == spans.lengths(n, c)


def test_offered_decoder_length_suffices():
    data = config.Data(encoder_length=64, decoder_length=14)
    assert objectives.build(config.SpanCorruption(), "encoder_decoder", data, vocabulary()).window == spans.window(64, T5)
