"""Noises, pairs, rearranged texts and mixtures: what their docstrings show, the published rates, and that nothing is lost."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

from lm import config, objectives
from lm.config import resolve
from lm.data.rows import Rows, blank, fill, pack
from lm.errors import UserError
from lm.objectives import denoise, fim, masked, mass, mixture, next_sentence, special_tokens

BOS, EOS, MASK, RESERVED, V = 1, 2, 4, 20, 500
SENTINELS = tuple(range(5, 17))
ENDS = dict(bos=BOS, eos=EOS)
STOP, NEWLINE = 30, 31
DATA = config.Data(encoder_length=64, decoder_length=64)


GENERATOR = config.Model(V, 16, encoder=config.Stack(1, {"L": config.Block(config.Attention(2), config.Mlp(16))}))


def sentence_ends(tokens):
    return np.isin(tokens, (STOP, NEWLINE))


def rng(*seed):
    return np.random.default_rng(seed or 0)


def first(make, wanted, seeds=5000):
    return next(made for made in (make(rng(s)) for s in range(seeds)) if wanted(made))


def vocabulary(**changes):
    known = dict(vocab_size=V, bos_id=BOS, eos_id=EOS, mask_id=MASK, sentinel_ids=SENTINELS, reserved=RESERVED)
    return SimpleNamespace(**(known | dict(special=np.arange(V) < RESERVED, sentence_ends=sentence_ends) | changes))


def build(c, architecture="encoder_decoder", data=DATA, **changes):
    return objectives.build(c, architecture, data, vocabulary(**changes))


def text(n, *seed):
    return rng(*seed, 77).integers(RESERVED, V, n).astype(np.int32)


def equal(array, expected):
    assert np.asarray(array).tolist() == expected


# --------------------------------------------------------------------------------------------------------- denoising


def test_infill_docstring():
    make = lambda r: denoise.infill(np.arange(20, 26), r, rate=0.5, mean_span=2.0, mask_id=MASK)
    wanted = [20, MASK, 23, MASK, 24, MASK]
    equal(first(make, lambda x: x.tolist() == wanted), wanted)


@pytest.mark.parametrize("rate,mean_span", [(0.3, 3.0), (0.15, 1.0), (0.5, 8.0), (1.0, 3.0)])
def test_infill_takes_the_rate_in_poisson_spans(rate, mean_span):
    """Kept tokens are in order; the number gone is exact; spans are as long as Poisson's, empty ones as frequent."""
    n, spans, masks, empty = 200, 0, 0, 0
    for s in range(300):
        tokens = np.arange(100, 100 + n)
        noised = denoise.infill(tokens, rng(s), rate=rate, mean_span=mean_span, mask_id=MASK)
        kept = noised[noised != MASK]
        assert (np.diff(kept) > 0).all() and n - len(kept) == round(rate * n) and len(noised) <= n
        masks += len(noised) - len(kept)
        # Masks with no token gone at them, counted where no other mask stands next to them.
        padded = np.concatenate([[99], noised, [100 + n]])
        alone = np.flatnonzero((padded[1:-1] == MASK) & (padded[:-2] != MASK) & (padded[2:] != MASK))
        gone = padded[2:][alone] - padded[:-2][alone] - 1
        spans, empty = spans + len(alone), empty + (gone == 0).sum()
    if rate < 1:
        assert abs(masks / 300 - rate * n / mean_span) < 0.12 * rate * n / mean_span + 1  # the last span is cut short
        assert abs(empty / spans - np.exp(-mean_span)) < 0.06


def test_permute_docstring():
    tokens = np.array([20, 21, STOP, 22, STOP, NEWLINE, 23, 24, 25, STOP])
    make = lambda r: denoise.permute(tokens, r, share=1.0, sentence_ends=sentence_ends)
    wanted = [22, STOP, NEWLINE, 23, 24, 25, STOP, 20, 21, STOP]
    equal(first(make, lambda x: x.tolist() == wanted), wanted)
    assert {make(rng(s)).tolist()[0] for s in range(60)} == {20, 22, 23}


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_permute_keeps_sentences_whole(share):
    sentences = [[100 + 10 * i, 101 + 10 * i, STOP] for i in range(10)]
    moved = 0
    for s in range(200):
        noised = denoise.permute(np.concatenate(sentences), rng(s), share=share, sentence_ends=sentence_ends).reshape(10, 3)
        assert sorted(noised.tolist()) == sentences
        stayed = sum(a == b for a, b in zip(noised.tolist(), sentences, strict=True))
        assert stayed >= 10 - round(share * 10)
        moved += 10 - stayed
    assert abs(moved / 200 - max(0, share * 10 - 1)) < 0.4  # a permutation has one fixed point on average


def test_rotate_delete_and_mask_docstrings():
    tokens = np.arange(20, 25)
    equal(first(lambda r: denoise.rotate(tokens, r, share=1.0), lambda x: x[0] == 23), [23, 24, 20, 21, 22])
    equal(first(lambda r: denoise.delete(tokens, r, rate=0.4), lambda x: x.tolist() == [20, 22, 23]), [20, 22, 23])
    make = lambda r: denoise.mask(tokens, r, rate=0.4, mask_id=MASK)
    equal(first(make, lambda x: x.tolist() == [20, MASK, 22, 23, MASK]), [20, MASK, 22, 23, MASK])
    assert {denoise.rotate(tokens, rng(s), share=1.0)[0] for s in range(80)} == set(range(20, 25))
    assert np.mean([denoise.rotate(tokens, rng(s), share=0.5)[0] != 20 for s in range(1000)]) == pytest.approx(0.4, abs=0.05)


def test_shuffle_docstring():
    wanted = [22, 20, 24, 21, 23]
    equal(first(lambda r: denoise.shuffle(np.arange(20, 25), r), lambda x: x.tolist() == wanted), wanted)


def test_denoise_encoder_decoder_docstring():
    noise = partial(denoise.infill, rate=0.5, mean_span=3.0, mask_id=MASK)
    plain = np.array([20, 21, 22, 23])
    for tokens in (plain, np.array([BOS, *plain, EOS])):
        make = partial(lambda t, r: denoise.encoder_decoder(t, r, noise=noise, **ENDS), tokens)
        e = first(make, lambda e: e.encoder.tokens.tolist() == [20, MASK, 23, EOS])
        equal(e.decoder.tokens, [BOS, 20, 21, 22, 23])
        equal(e.targets, [20, 21, 22, 23, EOS])
        equal(e.weights, [1, 1, 1, 1, 1])


EVERYTHING = config.Denoise(mask=0.2, delete=0.2, rotate=1.0)


@pytest.mark.parametrize("c", [config.Denoise(), EVERYTHING, config.Denoise(0, 3, 0), config.Denoise(1, 1, 1, 1, 1, 1)])
@pytest.mark.parametrize("n", [2, 3, 10, 63])
def test_denoised_text_is_given_back_and_fits(c, n):
    o = build(c)
    for s in range(50):
        tokens = text(n, s)
        e, again = o.make(tokens, rng(s)), o.make(tokens, rng(s))
        equal(e.encoder.tokens, again.encoder.tokens.tolist())
        equal(e.targets, [*tokens, EOS])
        assert len(e.encoder.tokens) <= n + 1 and e.encoder.tokens[-1] == EOS
        assert np.isin(e.encoder.tokens, [*tokens, MASK, EOS]).all()
    if c == config.Denoise(0, 3, 0):
        equal(e.encoder.tokens, e.targets.tolist())


def test_all_noises_act():
    """Each field of the config changes what the encoder reads, and only where it is on."""
    tokens = np.append(np.arange(RESERVED + 20, RESERVED + 58), [STOP, 60, 61, STOP])
    reads = lambda **c: build(config.Denoise(**(dict(infill=0, permute=0) | c))).make(tokens, rng(3)).encoder.tokens[:-1]
    equal(reads(), tokens.tolist())
    n = len(tokens)
    assert (reads(mask=0.5) == MASK).sum() == n / 2 and len(reads(delete=0.5)) == n / 2
    assert (reads(infill=0.5) != MASK).sum() == n / 2 and len(reads(infill=0.5)) < n
    assert sorted(reads(rotate=1)) == sorted(tokens) and reads(rotate=1)[0] != tokens[0]
    permuted = [build(config.Denoise(infill=0)).make(tokens, rng(s)).encoder.tokens[:4].tolist() for s in range(9)]
    assert [60, 61, STOP, int(tokens[0])] in permuted


def test_deshuffle_has_the_same_tokens_in_another_order():
    o, tokens = build(config.Deshuffle()), text(40)
    e = o.make(np.concatenate([[BOS], tokens, [EOS]]), rng())
    equal(e.targets, [*tokens, EOS])
    assert (e.encoder.tokens[:-1] != tokens).any() and sorted(e.encoder.tokens[:-1]) == sorted(tokens)


# -------------------------------------------------------------------------------------------------------------- mass


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


# ------------------------------------------------------------------------------------------------- fill in the middle

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


# ------------------------------------------------------------------------------------------------------ next sentence


def test_next_sentence_docstring():
    noise = partial(masked.noise, rate=0.2, mask=1.0, random=0.0, mask_id=MASK, reserved=RESERVED, vocab_size=V)
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
    assert o.other and o.lengths.types
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


def test_without_another_text_the_next_one_follows():
    o = build(config.NextSentence(negatives=1.0), "encoder")
    assert all(o.make(text(30), rng(s), np.zeros(0, np.int32)).targets[0] == SENTINELS[0] for s in range(20))


class Store:
    """Documents of unique tokens."""

    def __init__(self, lengths):
        self.offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        self.num_tokens, self.num_documents = int(self.offsets[-1]), len(lengths)
        self.tokens = np.arange(self.num_tokens) + 1000

    def read(self, starts, length):
        assert (starts >= 0).all() and (starts + length <= self.num_tokens).all()
        return self.tokens[starts[:, None] + np.arange(length)].astype(np.int32)


@pytest.mark.parametrize("shuffle", [True, False])
def test_the_other_text_is_one_document_from_elsewhere(shuffle):
    o = build(config.NextSentence(masked=config.Masked(random=0.0, mask=0.0)), "encoder")
    store = Store([150, 40, 300, 90, 7, 200])
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
    o = build(config.NextSentence(negatives=1.0), "encoder")
    rows = Rows({"a": Store([400])}, o, 0, shuffle=False)
    assert (rows.rows(np.arange(rows.count - 1)).targets[:, 0] == SENTINELS[1]).all()


def test_a_source_of_one_window_has_nothing_elsewhere():
    o = build(config.NextSentence(negatives=1.0), "encoder")
    row = Rows({"a": Store([70])}, o, 0, shuffle=False).rows(np.array([0]))
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


# ----------------------------------------------------------------------------------------------------------- mixtures


def mix(**parts):
    return config.Mixture({name: config.Part(*part) if isinstance(part, tuple) else part for name, part in parts.items()})


def test_modes_are_counted_from_behind_the_marks():
    c = mix(b=(config.Causal(), 1.0, "s"), a=(config.Prefix(), 1.0, "r"), c=(config.Prefix(), 1.0, "s"), d=(config.Causal(),))
    assert special_tokens.modes(c, SENTINELS) == {"r": SENTINELS[-4], "s": SENTINELS[-5]}
    assert special_tokens.modes(config.Mixture(dict(reversed(c.parts.items()))), SENTINELS) == special_tokens.modes(
        c, SENTINELS
    )
    assert special_tokens.modes(mix(a=(config.Causal(),)), ()) == {}
    assert special_tokens.fill_in_middle(SENTINELS) == SENTINELS[-3:]


def test_with_mode_docstring():
    o = build(config.Causal(), "decoder")
    e = mixture.with_mode(np.array([5, 6, 7, 8]), rng(), make=o.make, mode=9)
    equal(e.decoder.tokens, [9, 5, 6, 7])
    equal(e.decoder.positions, [0, 1, 2, 3])
    equal(e.decoder.segments, [1, 1, 1, 1])
    equal(e.targets, [5, 6, 7, 8])
    equal(e.weights, [0, 1, 1, 1])
    prefix = build(config.Prefix(), "decoder")
    plain, e = prefix.make(text(9), rng()), mixture.with_mode(text(9), rng(), make=prefix.make, mode=9)
    equal(e.decoder.prefix, [True, *plain.decoder.prefix])
    o = build(config.NextSentence(), "encoder")
    plain = o.make(text(9), rng(), text(9, 1))
    e = mixture.with_mode(text(9), rng(), text(9, 1), make=o.make, mode=9)
    equal(e.encoder.tokens, [9, *plain.encoder.tokens])
    equal(e.encoder.types, [0, *plain.encoder.types])
    equal(e.where, (plain.where + 1).tolist())
    equal(e.targets, plain.targets.tolist())
    equal(e.weights, plain.weights.tolist())


def test_a_stretch_moves_with_its_text():
    """Behind a mode's token the decoder's positions are still those of the masks, at the text's beginning too."""
    starts = set()
    for c, shift in ((config.Mass(), 0), (mix(a=(config.Mass(), 1.0, "m")), 1)):
        o = build(c)
        for s in range(60):
            e = o.make(text(8), rng(s))
            equal(e.decoder.positions, np.flatnonzero(e.encoder.tokens == MASK).tolist())
            starts.add(int(e.decoder.positions[0]) - shift)
    assert starts == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("encoder,decoder,share", [(64, 64, 0.5), (128, 16, 0.5), (64, 8, 0.1)])
def test_the_reach_of_a_stretch(encoder, decoder, share):
    data = config.Data(encoder_length=encoder, decoder_length=decoder)
    mass, other = config.Mass(share), config.Part(config.Denoise())
    for c in (mass, mix(a=(mass, 1.0, "m")), mix(a=(mass, 1.0, "m"), b=config.Part(mass)), mix(a=(mass,), b=other)):
        o = build(c, data=data)
        made = [s for i in range(300) if (s := o.make(text(o.window), rng(i)).decoder).tokens[0] == MASK]
        assert o.reach == 1 + max(s.positions.max() for s in made) > max(len(s.tokens) for s in made)
    assert build(config.Denoise(), data=data).reach is None


def test_parts_come_by_their_weights_with_their_modes():
    c = mix(x=(config.Denoise(), 3.0), y=(config.Deshuffle(), 1.0, "m"), z=(config.Mass(), 0.0))
    o, tokens = build(c), text(60)
    drawn = np.zeros(2)
    for s in range(1000):
        reads = o.make(tokens, rng(s)).encoder.tokens
        shuffled = reads[0] == SENTINELS[-4]
        assert shuffled == (MASK not in reads)
        drawn[int(shuffled)] += 1
    assert abs(drawn[1] / 1000 - 0.25) < 0.05


R, X = config.SpanCorruption(0.15, 3.0), config.SpanCorruption(0.5, 8.0)
ONE_OF_EACH = {
    "decoder": mix(r=(R, 1.0, "r"), x=(X, 1.0, "x"), s=(config.Prefix(), 1.0, "s"), f=(config.FillInMiddle(), 1.0, "f")),
    "encoder": mix(a=(config.Masked(), 1.0, "a"), b=(config.NextSentence(), 1.0, "b"), c=(config.Masked(0.4),)),
    "encoder_decoder": mix(r=(R, 1.0, "r"), x=(X, 1.0, "x"), s=(config.Prefix(), 1.0, "s"), d=(config.Denoise(),)),
}


@pytest.mark.parametrize("architecture", ONE_OF_EACH)
@pytest.mark.parametrize("length", [24, 64, 129])
def test_rows_of_a_mixture_never_overflow(architecture, length):
    """A window that is one document comes out whole under every part; one of many documents gives rows of the shape."""
    data = config.Data(encoder_length=length, decoder_length=length)
    sentinels = tuple(range(300, 400))
    o = build(ONE_OF_EACH[architecture], architecture, data, sentinel_ids=sentinels, vocab_size=300)
    assert (o.lengths.encoder, o.lengths.decoder) == (
        None if architecture == "decoder" else length,
        None if architecture == "encoder" else length,
    )
    for s in range(150):
        tokens = rng(s).integers(RESERVED, 300, o.window).astype(np.int32)
        other = [tokens[::-1]] if o.other else []
        e = o.make(tokens, rng(s), *other)
        used = [(getattr(e, name), getattr(o.lengths, name)) for name in ("encoder", "decoder")]
        assert all(stream is None or len(stream.tokens) <= size for stream, size in used)
        assert e.where is None or len(e.where) <= o.lengths.predicted
        cuts = np.sort(rng(s, 1).choice(np.arange(1, o.window), 4, replace=False))
        row = fill(tokens, cuts, o, rng(s), *other)
        assert row.targets.shape == blank(o.lengths).targets.shape and row.weights.sum() > 0


def test_windows_of_a_mixture_overlap_where_a_part_needs_it():
    o = build(mix(a=(config.Causal(),), b=(config.SpanCorruption(),)), "decoder")
    assert o.window == build(config.SpanCorruption(), "decoder").window and o.window - o.stride == 1


@pytest.mark.parametrize(
    "c,architecture,changes,words",
    [
        (mix(a=(mix(b=(config.Causal(),)),)), "decoder", {}, "parts.a is a mixture itself"),
        (mix(a=(config.Causal(),), b=(config.Masked(),)), "decoder", {}, "'masked' does not suit the decoder"),
        (mix(a=(config.Masked(),), b=(config.Masked(dynamic=False),)), "encoder", {}, "dynamic and with static"),
        (mix(a=(X, 1.0, "x"), b=(R, 1.0, "r")), "decoder", dict(sentinel_ids=(5, 6, 7, 8, 9, 10)), "takes 8 sentinels"),
        (mix(a=(config.Causal(), 1.0, "x")), "decoder", dict(sentinel_ids=(5, 6, 7)), "take the last 4 sentinels"),
        (config.FillInMiddle(), "decoder", dict(sentinel_ids=(5, 6)), "take the last 3 sentinels"),
        (config.NextSentence(), "encoder", dict(sentinel_ids=(5,)), "answers with two sentinels"),
        (config.NextSentence(negatives=1.5), "encoder", {}, "objective.negatives is 1.5; it is a share"),
        (config.Denoise(infill=30), "encoder_decoder", {}, "objective.infill is 30"),
        (config.Denoise(mean_span=0.0), "encoder_decoder", {}, "mean_span is 0.0; set it to 1"),
        (config.ReplacedTokens(GENERATOR, rate=0.0), "encoder", {}, "objective.rate is 0.* set it above 0"),
        (mix(a=(config.ReplacedTokens(GENERATOR),)), "encoder", {}, "parts.a is 'replaced_tokens', which trains two models"),
        (config.Denoise(), "encoder_decoder", dict(mask_id=None), "'denoise' needs a mask token"),
        (config.Mass(), "encoder_decoder", dict(mask_id=None), "'mass' needs a mask token"),
    ],
)
def test_what_cannot_be_is_refused(c, architecture, changes, words):
    with pytest.raises(UserError, match=words):
        build(c, architecture, **changes)


def test_parts_that_predict_at_some_places_do_not_mix_with_those_that_predict_at_all(monkeypatch):
    everywhere = lambda c, data, v: objectives.Objective(lambda t, r: None, objectives.Lengths(64, None), 64, 64)
    suit = objectives.Suit(everywhere, factors=False, reads_prefix=False)
    monkeypatch.setitem(objectives.SUITS, ("encoder", config.Causal), suit)
    with pytest.raises(UserError, match="predict at every place and parts that predict at some"):
        build(mix(a=(config.Causal(),), b=(config.Masked(),)), "encoder")


def test_no_mask_token_is_needed_where_none_is_used():
    tokens = text(20)
    e = build(config.Denoise(infill=0.0, delete=0.2), mask_id=None).make(tokens, rng())
    equal(e.targets, [*tokens, EOS])


def test_a_mixture_comes_back_from_json():
    run = config.Run(config.Model(8, 8), objective=ONE_OF_EACH["encoder"])
    assert resolve.from_json(resolve.to_json(run)) == run
