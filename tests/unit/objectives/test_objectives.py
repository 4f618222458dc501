"""Each objective gives what its docstring shows; the noise has the published rates; what makes no sense is refused."""

from functools import partial
from types import SimpleNamespace
from typing import get_args

import numpy as np
import pytest

from lm import config, objectives
from lm.errors import UserError
from lm.objectives import REFUSED, SUITS, causal, masked, prefix, spans
from lm.types import CHARACTER, INSIDE, WORD

BOS, EOS, MASK, RESERVED, V = 1, 2, 4, 20, 500
SENTINELS = np.arange(5, 15, dtype=np.int32)
NOISE = dict(mask_id=MASK, reserved=RESERVED, vocab_size=V)


def rng(*seed):
    return np.random.default_rng(seed or 0)


def first(make, wanted, seeds=3000):
    """The example of the first seed for which `wanted` holds."""
    return next(e for e in (make(rng(s)) for s in range(seeds)) if wanted(e))


def vocabulary(**changes):
    known = dict(vocab_size=V, bos_id=BOS, eos_id=EOS, mask_id=MASK, sentinel_ids=tuple(range(5, 15)), reserved=RESERVED)
    ends = dict(boundaries=lambda t: np.where(t % 3 == 0, WORD, CHARACTER), sentence_ends=lambda t: t % 7 == 0)
    return SimpleNamespace(**(known | ends | dict(special=np.arange(V) < RESERVED) | changes))


def equal(array, expected):
    assert np.asarray(array).tolist() == expected


# ------------------------------------------------------------------------------------------------- docstring examples


def test_causal_docstring():
    e = causal.decoder(np.array([5, 6, 7, 8]), rng())
    assert e.encoder is None and e.where is None
    equal(e.decoder.tokens, [5, 6, 7])
    equal(e.decoder.positions, [0, 1, 2])
    equal(e.decoder.segments, [1, 1, 1])
    equal(e.targets, [6, 7, 8])
    equal(e.weights, [1, 1, 1])


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


def test_masked_docstring():
    noise = partial(masked.noise, rate=0.3, mask=0.8, random=0.1, mask_id=MASK, reserved=20, vocab_size=26)
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
    v = vocabulary(bos_id=101, eos_id=102, mask_id=103, reserved=1, sentinel_ids=(), vocab_size=110, special=special)
    noise = objectives._noise(config.Masked(0.5, mask=0.0, random=1.0), v)
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


# --------------------------------------------------------------------------------------------------- prefix and masked


def test_prefix_splits_everywhere():
    sizes = {prefix.split(6, rng(s)) for s in range(300)}
    assert sizes == {1, 2, 3, 4, 5}


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
    controls = [20, 24, 25, 26, 39]
    settings = dict(rate=1.0, mask=0.0, random=1.0, mask_id=MASK, reserved=20, vocab_size=40)
    tokens = np.full(6000, 30)
    drawn, chosen = masked.noise(tokens, rng(), controls=controls, **settings)
    counts = np.bincount(drawn, minlength=40)
    assert len(chosen) == 6000 and not counts[[*range(20), *controls]].any()
    assert abs(counts[counts > 0] - 400).max() < 90 and (counts > 0).sum() == 15  # 4.6 sigma
    # Without such tokens the draw is a plain one.
    generator = rng(3)
    generator.random(), generator.choice(50, 50, replace=False), generator.random(50)
    equal(masked.noise(np.full(50, 30), rng(3), **settings)[0], generator.integers(20, 40, 50).tolist())


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


# ------------------------------------------------------------------------------------------------------ span corruption

T5 = config.SpanCorruption(rate=0.15, mean_span=3.0)


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


# ---------------------------------------------------------------------------------------------------- what suits what

ARCHITECTURES = ("encoder", "decoder", "encoder_decoder")
GENERATOR = config.Model(V, 16, encoder=config.Stack(1, {"L": config.Block(config.Attention(2), config.Mlp(16))}))
REQUIRED: dict[type, dict] = {config.ReplacedTokens: dict(generator=GENERATOR)}
PAIRS = [(a, o) for a in ARCHITECTURES for o in get_args(config.Objective)]
DATA = config.Data(encoder_length=64, decoder_length=64)
MIXTURES = {
    "decoder": (config.Causal(), config.FillInMiddle(), config.SpanCorruption()),
    "encoder": (config.Masked(), config.NextSentence()),
    "encoder_decoder": (config.Prefix(), config.SpanCorruption(), config.Denoise()),
}


def example(o, architecture):
    """An objective of this class; a mixture of what suits the architecture, its first part without a mode."""
    if o is not config.Mixture:
        return o(**REQUIRED.get(o, {}))
    return o({f"p{i}": config.Part(c, mode=f"m{i}" if i else None) for i, c in enumerate(MIXTURES[architecture])})


@pytest.mark.parametrize("pair", PAIRS, ids=lambda p: f"{p[0]}-{p[1].__name__}")
def test_every_pair_is_taken_or_refused(pair):
    assert (pair in SUITS) != (pair in REFUSED)
    architecture, objective = pair
    made = example(objective, architecture)
    if pair in SUITS:
        built = objectives.build(made, architecture, DATA, vocabulary())
        tokens = rng().integers(RESERVED, V, built.window).astype(np.int32)
        e = built.make(tokens, rng(), *([tokens[::-1]] if built.other else []))
        for name in ("encoder", "decoder"):
            stream, length = getattr(e, name), getattr(built.lengths, name)
            assert (stream is None) == (length is None)
            assert stream is None or (len(stream.tokens) <= length and stream.tokens.dtype == np.int32)
        assert (e.where is None) == (built.lengths.predicted is None)
        assert e.weights.sum() > 0 and e.weights.dtype == np.float32
    else:
        with pytest.raises(UserError, match="does not suit") as error:
            objectives.build(made, architecture, DATA, vocabulary())
        assert REFUSED[pair] in str(error.value) and "; take '" in str(error.value)


def test_every_offer_is_taken():
    """What a refusal offers for the same architecture is in the table of what suits."""
    kinds = {config.kind_of(o): o for o in get_args(config.Objective)}
    for (architecture, _), reason in REFUSED.items():
        offered = reason.split("take '")[1].split("'")[0]
        assert (architecture, kinds[offered]) in SUITS


def test_no_table_has_a_pair_too_many():
    assert set(SUITS) | set(REFUSED) == set(PAIRS)


@pytest.mark.parametrize("pair", SUITS, ids=lambda p: f"{p[0]}-{p[1].__name__}")
def test_what_the_table_says_of_a_prefix_is_what_rows_have(pair):
    made = example(pair[1], pair[0])
    for c in (made, config.SpanCorruption(prefix=False)) if pair[1] is config.SpanCorruption else (made,):
        built = objectives.build(c, pair[0], DATA, vocabulary())
        assert objectives.reads_prefix(pair[0], c) == built.lengths.prefix


@pytest.mark.parametrize("pair", SUITS, ids=lambda p: f"{p[0]}-{p[1].__name__}")
def test_what_factors_asks_for_every_token_once(pair):
    """And nothing that does not: the loss is over the text's own tokens, each from those before it alone."""
    built = objectives.build(example(pair[1], pair[0]), pair[0], DATA, vocabulary())
    tokens = rng(2).integers(RESERVED, V, built.window).astype(np.int32)
    made = [built.make(tokens, rng(s), *([tokens] if built.other else [])) for s in range(8)]
    whole = [
        e.encoder is None and e.decoder.prefix is None and e.targets.tolist() == tokens[1:].tolist() and e.weights.all()
        for e in made
    ]
    assert objectives.SUITS[pair].factors == all(whole)


class Backwards:
    """An objective that no table knows."""


def test_a_new_objective_is_refused_by_name_until_it_says_what_it_is(monkeypatch):
    for ask in (
        lambda: objectives.build(Backwards(), "decoder", DATA, vocabulary()),
        lambda: objectives.reads_prefix("decoder", Backwards()),
    ):
        with pytest.raises(UserError, match="objective 'backwards' does not suit the decoder: the table"):
            ask()
    with pytest.raises(TypeError):
        objectives.Suit(lambda c, data, v: None)
    suit = objectives.Suit(objectives._causal, factors=False, reads_prefix=lambda c: isinstance(c, Backwards))
    monkeypatch.setitem(SUITS, ("decoder", Backwards), suit)
    assert objectives.reads_prefix("decoder", Backwards()) and not objectives.suited("decoder", Backwards()).factors


def test_special_tokens_are_none_of_texts():
    special = np.isin(np.arange(V), [*range(RESERVED), 100, 101, V - 1])
    v = vocabulary(special=special)
    assert objectives.controls(v) == [100, 101, V - 1]
    np.testing.assert_array_equal(objectives.of_texts(v, V + 3), [*~special, False, False, False])
    assert objectives.of_texts(v, 50).tolist() == (~special[:50]).tolist()


@pytest.mark.parametrize(
    "objective,architecture,data,changes,words",
    [
        (config.Causal(), "decoder", config.Data(), {}, "data.decoder_length is None"),
        (config.Causal(), "decoder", config.Data(decoder_length=4), {}, "8 or more"),
        (config.Masked(), "encoder", DATA, dict(mask_id=None), "needs a mask token"),
        (config.SpanCorruption(mean_span=1.0, rate=0.4), "decoder", DATA, {}, "sentinels, the tokenizer has 10"),
        (config.SpanCorruption(), "encoder_decoder", config.Data(encoder_length=64, decoder_length=8), {}, "length=14"),
    ],
)
def test_what_cannot_be_is_refused(objective, architecture, data, changes, words):
    with pytest.raises(UserError, match=words):
        objectives.build(objective, architecture, data, vocabulary(**changes))


def test_a_generator_reads_masks_alone():
    """All that is chosen is masked: 0/100/0 instead of BERT's 80/10/10."""
    built = objectives.build(config.ReplacedTokens(GENERATOR, rate=0.25), "encoder", DATA, vocabulary())
    tokens = rng(1).integers(RESERVED, V, 64).astype(np.int32)
    e = built.make(tokens, rng())
    assert len(e.where) == 16 and built.lengths.predicted >= 16
    np.testing.assert_array_equal(e.encoder.tokens, np.where(np.isin(np.arange(64), e.where), MASK, tokens))
    np.testing.assert_array_equal(e.targets, tokens[e.where])


def test_offered_decoder_length_suffices():
    data = config.Data(encoder_length=64, decoder_length=14)
    assert objectives.build(config.SpanCorruption(), "encoder_decoder", data, vocabulary()).window == spans.window(64, T5)
