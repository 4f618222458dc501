"""The task of an autoencoder with codes: loss and FLOPs against torch and XLA, the images it makes, and what it refuses."""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from lm import config, flops
from lm.config import resolve
from lm.data.image_questions import Described
from lm.data.image_text import Images, PictureRows
from lm.data.images import patches
from lm.errors import UserError
from lm.evaluation.image_text import HeldOutCodes
from lm.models.autoencoder import Autoencoder, whole
from lm.models.stem import normalised
from lm.objectives import Lengths
from lm.recipes import task
from lm.recipes.drawing import codes_of
from lm.sharding import make_mesh

TINY = Path(__file__).parents[2] / "e2e" / "tiny_pictures.py"


@pytest.fixture(scope="module")
def run():
    return resolve.load(f"{TINY}:codes")


@pytest.fixture(scope="module")
def rows():
    pixels = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3)).astype(np.uint8)
    return PictureRows(Images(pixels, 8, [Described("a", "b", "c")] * 6), length=4, seed=0, shuffle=False)


@pytest.fixture(scope="module")
def params(run, rows):
    return nn.unbox(jax.jit(task(run).init)(jax.random.key(0), rows.rows(np.arange(2))))


def test_the_loss_is_the_papers_sum_over_patches_that_are_there(run, rows, params):
    torch = pytest.importorskip("torch")
    batch = rows.rows(np.array([0, 3, 9]))  # the last is blank
    loss, terms = task(run).loss(params, None, batch, None)
    both = Autoencoder(run.model, run.recipe)
    quantised = both.encode(params, batch.encoder)
    made = both.decode(params, quantised.vectors, batch.encoder)
    x = torch.tensor(np.asarray(batch.encoder.vectors[:2])) / 255.0 * 2.0 - 1.0
    made, z, e = (torch.tensor(np.asarray(v)[:2]) for v in (made, quantised.read, quantised.chosen))
    wanted = ((x - made) ** 2).mean(-1) + (1 + run.recipe.commitment) * ((z - e) ** 2).sum(-1)
    uneven = run.recipe.even * float(terms["unevenness"].mean) * 8
    assert float(loss.weight) == 8 and float(loss.total) == pytest.approx(wanted.sum().item() + uneven, rel=1e-5)
    assert set(terms) == {"error", "codebook", "commitment", "unevenness", "code_perplexity"} and uneven > 0
    np.testing.assert_allclose(normalised(batch.encoder.vectors, both.stem)[:2], x, atol=1e-6)


def test_the_codebook_and_both_networks_learn(run, rows, params):
    run = replace(run, recipe=replace(run.recipe, even=0.0))
    gradient = jax.grad(lambda p: task(run).loss(p, None, rows.rows(np.arange(4)), None)[0].total)(params)
    for name in ("model", "codebook", "decoder"):
        assert any(np.any(x) for x in jax.tree.leaves(gradient[name])), name
    used = np.unique(Autoencoder(run.model, run.recipe).encode(params, rows.rows(np.arange(4)).encoder).codes)
    moved = np.flatnonzero(np.abs(gradient["codebook"]["table"]).sum(-1))
    assert moved.tolist() == used.tolist(), "a row moves exactly if a vector has it"


@pytest.mark.parametrize("even", [0.0, 0.1])
def test_as_many_flops_as_xla_counts(even):
    """Wide enough that matrix products are nearly all of it. The stem's pixels have no gradient, which the ledger counts."""
    width, side, size, code, count = 256, 8, 8, 64, 512
    block = config.Block(config.Attention(4), config.Mlp(4 * width, "relu"), norm=config.Norm("rms"))

    def model(stem, outputs):
        stack = config.Stack(2, {"L": block}, stem=stem)
        return config.Model(8, width, encoder=stack, head=config.Head(tied=False, outputs=outputs))

    encoder = model(config.Patches(size, size * side, class_token=False), code)
    decoder = model(config.Patches(1, side, code, class_token=False), 3 * size**2)
    what = task(config.Run(encoder, recipe=config.ImageCodes(decoder, config.Codebook(count, code), even=even)))
    pixels = np.zeros((2, size * side, size * side, 3), np.uint8)
    rows = PictureRows(Images(pixels, size, [Described("a", "b", "c")] * 2), length=side**2, seed=0)
    example = jax.tree.map(jnp.asarray, rows.rows(np.arange(2)))
    params = nn.unbox(jax.eval_shape(what.init, jax.random.key(0), example))
    loss = lambda params, example: what.loss(params, None, example, None)[0].total
    xla = jax.jit(jax.grad(loss)).lower(params, example).cost_analysis()["flops"]
    lengths = Lengths(side**2, None)
    one = lambda m, p: flops.count(m, batch=2, encoder=lengths.encoder, predicted=p, causal_share=1.0)
    ours = sum(one(m, p).train for m, p in what.passes(lengths)) + sum(one(m, p).forward for m, p in what.reads(lengths))
    assert ours == pytest.approx(xla, rel=0.02)


def test_patches_become_the_image_that_they_were_cut_from():
    stem = config.Patches(4, 12, class_token=False)
    pixels = np.random.default_rng(1).integers(0, 256, (2, 12, 12, 3)).astype(np.uint8)
    cut = patches(pixels, 4)
    assert np.array_equal(whole(cut, stem), pixels)


def test_images_of_codes_are_what_the_decoder_makes(run, rows, params):
    both = Autoencoder(run.model, run.recipe)
    codes = codes_of(both, params, rows.images)
    assert codes.shape == (6, 4) and codes.dtype == np.int32
    batch = rows.rows(np.arange(6))
    quantised = both.encode(params, batch.encoder)
    assert np.array_equal(codes, quantised.codes)
    made = both.decode(params, quantised.chosen, batch.encoder)
    wanted = np.clip(np.asarray(made) * 0.5 + 0.5, 0, 1) * 255
    assert np.abs(whole(wanted, both.stem) - np.asarray(both.images(params, codes), np.float32)).max() <= 0.51


def test_held_out_codes_are_counted_over_all_images(run, rows, params):
    scores = jax.jit(task(run).scores)
    found = HeldOutCodes(rows, lambda p, b: scores(p, None, b), 4, make_mesh(config.Mesh(), jax.devices()[:1]))(params)
    codes = codes_of(Autoencoder(run.model, run.recipe), params, rows.images)
    shares = np.bincount(codes.ravel(), minlength=16) / codes.size
    assert found["codes_unused"] == (shares == 0).sum()
    used = shares[shares > 0]
    assert found["code_perplexity"] == pytest.approx(np.exp(-(used * np.log(used)).sum()), rel=1e-6)
    assert found["mse"] == pytest.approx(found["error"] / 4, rel=1e-5)  # pixels are scaled to -1 .. 1


def test_models_that_make_no_codes_are_refused(run):
    token = replace(run.model.encoder.stem, class_token=True)
    stack = replace(run.model.encoder, stem=token, position=config.Learned(5))
    with pytest.raises(UserError, match="class_token=False"):
        task(replace(run, model=replace(run.model, encoder=stack)))
    with pytest.raises(UserError, match="model must give 4 numbers for each patch: set --config.model.head.outputs=4"):
        task(replace(run, model=replace(run.model, head=config.Head(tied=False, outputs=5))))
    with pytest.raises(UserError, match="reads patches of 4 numbers, and a code has 3"):
        replace(run.recipe, codebook=config.Codebook(size=3))
    wide = replace(run.recipe.decoder.encoder, stem=config.Patches(1, 3, 4, class_token=False), position=config.Learned(9))
    recipe = replace(run.recipe, decoder=replace(run.recipe.decoder, encoder=wide))
    with pytest.raises(UserError, match="makes 4 codes of an image, and recipe.decoder reads 9"):
        task(replace(run, recipe=recipe))
