"""The noise of masked diffusion: how many tokens are masked, what they weigh, and that rows spread it evenly."""

from dataclasses import replace
from math import comb

import numpy as np
import pytest

from lm import config
from lm.data.rows import Rows
from lm.errors import UserError
from lm.objectives import masked_diffusion as diffusion
from lm.objectives.dummy_vocabulary import DummyVocabulary
from lm.recipes.pretrain import objective_of
from tests.fakes import MemoryStore, small_model
from tests.unit.objectives.common import BOS, DATA, EOS, MASK, build, equal, first, rng, text

TEXT = np.array([BOS, 20, 21, 22, 23, EOS], np.int32)


def test_docstring():
    make = lambda r: diffusion.encoder(TEXT, r, 0.5, bos=BOS, mask_id=MASK, time_steps=5)
    e = first(make, lambda e: e.weights[1] and e.weights[3] and e.weights[5])
    equal(e.encoder.tokens, [BOS, MASK, 21, MASK, 23, MASK])
    equal(e.targets, TEXT.tolist())
    assert e.weights == pytest.approx([0, 5 / 3, 0, 5 / 3, 0, 5 / 3]) and e.where is None
    equal(e.encoder.types, [2] * 6)


def test_the_weight_is_the_integral_over_all_rates():
    """In continuous time a mask counts 1/t, and k of n tokens are masked with the binomial probability of t: integrated over
    t, which is uniform, this is the weight 1/k of a number that is drawn evenly, times its probability."""
    n, t = 6, (np.arange(200_000) + 0.5) / 200_000
    for k in range(1, n + 1):
        integral = np.mean(comb(n, k) * t ** (k - 1) * (1 - t) ** (n - k))
        weight = diffusion.encoder(text(n), rng(), (k - 0.5) / n, bos=BOS, mask_id=MASK).weights.max()
        assert weight / n == pytest.approx(integral, rel=1e-4)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "square"])
def test_a_schedule_changes_how_often_and_not_how_much(schedule):
    """Every number of masks has the same share of the loss, whatever its frequency."""
    n, of = 8, text(8)
    shares = (np.arange(4_000) + 0.5) / 4_000
    found = [diffusion.encoder(of, rng(i), a, bos=BOS, mask_id=MASK, schedule=schedule).weights for i, a in enumerate(shares)]
    number = np.array([(w > 0).sum() for w in found])
    assert set(number) == set(range(1, n + 1))
    sums = np.array([w.sum() for w in found])
    for k in range(1, n + 1):
        assert sums[number == k].sum() / len(shares) == pytest.approx(1.0, rel=2e-2)  # the weights of a text sum to n
    assert diffusion.part(diffusion.share(shares, schedule), schedule) == pytest.approx(shares)
    few = (number <= n // 2).mean()
    assert {"linear": few == 0.5, "cosine": few > 0.6, "square": few < 0.3}[schedule]


def test_a_flat_loss_counts_every_mask_alike():
    assert set(diffusion.encoder(TEXT, rng(), 0.9, bos=BOS, mask_id=MASK, flat=True).weights.tolist()) == {0.0, 1.0}
    e = diffusion.encoder(TEXT[:1], rng(), bos=BOS, mask_id=MASK)
    equal(e.encoder.tokens, [BOS])
    assert e.weights.sum() == 0


@pytest.mark.parametrize("documents", [[4000], [7] * 600])
def test_consecutive_rows_have_evenly_spread_shares_of_masks(documents):
    """Of any 16 rows, neighbouring shares differ by a tenth or less (three gaps); random draws leave gaps of a fifth."""
    store = MemoryStore(text(sum(documents)), documents)
    rows = Rows({"a": store}, build(config.MaskedDiffusion(), "encoder"), 3)
    for start in (0, 5, 1000):
        batch = rows.rows(np.arange(start, start + 16))
        masked = batch.encoder.tokens == MASK
        if len(documents) == 1:
            assert np.diff(np.sort(masked.mean(axis=1)), prepend=0, append=1).max() < 0.13
        assert batch.weights.sum() == pytest.approx((batch.encoder.segments > 0).sum(), rel=1e-5)
        assert (batch.weights > 0).tolist() == masked.tolist()
        assert (batch.targets[~masked] == batch.encoder.tokens[~masked]).all()  # what is read is carried over
    again = Rows({"a": store}, build(config.MaskedDiffusion(), "encoder"), 3).rows(np.arange(1003, 1005))
    assert np.array_equal(again.encoder.tokens, batch.encoder.tokens[3:5])  # a row is a function of its number


def test_the_share_of_masks_is_told_if_asked_for():
    o = build(config.MaskedDiffusion(time_steps=4), "encoder")
    assert o.lengths.types == 4
    for at in (0.0, 0.3, 0.6, 0.99):
        e = o.make(text(40), rng(), at=at)
        equal(np.unique(e.encoder.types), [int(at * 4)])
    assert not build(config.MaskedDiffusion(), "encoder").lengths.types


def test_what_cannot_be_is_refused():
    with pytest.raises(UserError, match="'masked_diffusion' needs a mask token"):
        build(config.MaskedDiffusion(), "encoder", DATA, mask_id=None)
    with pytest.raises(UserError, match="does not suit the encoder_decoder"):
        build(config.MaskedDiffusion(), "encoder_decoder")
    with pytest.raises(UserError, match="objective.anneal=0.5 is of decoders"):
        build(config.MaskedDiffusion(anneal=0.5), "encoder")


# ------------------------------------------------------------------------------------------------------- a decoder


def test_decoder_docstring():
    make = lambda r: diffusion.decoder(TEXT, r, 0.5, bos=BOS, mask_id=MASK, time_steps=5)
    e = first(make, lambda e: e.weights[0] and e.weights[2] and e.weights[4])
    equal(e.decoder.tokens, [BOS, MASK, 21, MASK, 23, MASK])
    equal(e.decoder.prefix, [True] * 6)
    equal(e.targets, [20, 21, 22, 23, EOS, 0])
    assert e.weights == pytest.approx([5 / 3, 0, 5 / 3, 0, 5 / 3, 0]) and e.where is None and e.encoder is None
    equal(e.decoder.types, [2] * 6)


def test_a_decoder_reads_and_does_not_predict_the_first_token():
    """The window before has predicted it, as with next tokens; the weights are those of the others."""
    for number in range(50):
        e = diffusion.decoder(text(6), rng(number), bos=BOS, mask_id=MASK)
        assert e.decoder.tokens[0] == text(6)[0]
        assert e.weights.sum() == pytest.approx(5)
        masked = e.decoder.tokens[1:] == MASK
        equal(masked, (e.weights[:-1] > 0).tolist())
        equal(e.targets[:-1], text(6)[1:].tolist())
    alone = diffusion.decoder(TEXT[:1], rng(), bos=BOS, mask_id=MASK)
    assert alone.weights.sum() == 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [(dict(position=config.Buckets()), "position is buckets"), (dict(window=4), "attention.window reaches back alone")],
)
def test_positions_and_windows_of_what_is_before_alone_are_refused(changes, said):
    model, objective = small_model("decoder"), config.MaskedDiffusion()
    block = model.decoder.blocks["L"]
    block = replace(block, attention=replace(block.attention, window=changes.get("window")))
    stack = replace(model.decoder, blocks={"L": block}, position=changes.get("position", config.Rope()))
    run = config.Run(replace(model, decoder=stack), config.Data(decoder_length=16), objective)
    with pytest.raises(UserError, match=said):
        objective_of(run, DummyVocabulary(64))
    encoder = replace(run, model=replace(model, encoder=replace(stack, position=config.Rope()), decoder=None))
    objective_of(replace(encoder, data=config.Data(encoder_length=16)), DummyVocabulary(64))


def test_what_follows_comes_into_sight_as_training_goes_on():
    rows = Rows({"a": MemoryStore(text(4000), [4000])}, build(config.MaskedDiffusion(anneal=0.5), "decoder"), 3, total=1000)
    seen = lambda first: rows.rows(np.arange(first, first + 20)).decoder.prefix.mean()
    assert seen(0) < 0.05
    assert seen(240) == pytest.approx(0.5, abs=0.05)
    assert seen(400) == pytest.approx(0.82, abs=0.05)
    assert seen(500) == seen(5000) == 1.0
    held_out = Rows({"a": MemoryStore(text(4000), [4000])}, build(config.MaskedDiffusion(anneal=0.5), "decoder"), 3)
    assert held_out.rows(np.arange(20)).decoder.prefix.all()
    with pytest.raises(UserError, match="objective.parts.a.objective.anneal"):
        build(config.Mixture({"a": config.Part(config.MaskedDiffusion(anneal=0.5))}), "decoder")
