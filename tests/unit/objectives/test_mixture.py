"""Mixtures: modes, weights, rows that fit every part."""

import numpy as np
import pytest

from lm import config, objectives
from lm.config import resolve
from lm.data.rows import blank, fill
from lm.errors import UserError
from lm.objectives import mixture
from tests.unit.objectives.common import GENERATOR, MASK, RESERVED, SENTINELS, build, equal, mix, rng, text


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
        other = [tokens[::-1]] if o.needs_other else []
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
        (
            mix(a=(config.ReplacedTokens(GENERATOR),)),
            "encoder",
            {},
            "parts.a is 'replaced_tokens', which has a loss",
        ),
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
    monkeypatch.setitem(objectives.DECLARATIONS, config.Causal, objectives.Declaration(config.Causal, {"encoder": suit}))
    with pytest.raises(UserError, match="predict every position and parts that predict some"):
        build(mix(a=(config.Causal(),), b=(config.Masked(),)), "encoder")


def test_a_mixture_comes_back_from_json():
    run = config.Run(config.Model(8, 8), objective=ONE_OF_EACH["encoder"])
    assert resolve.from_json(resolve.to_json(run)) == run
