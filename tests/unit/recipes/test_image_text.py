"""Models that write about images: what the engine writes is what a full pass gives, FLOPs are XLA's, and what is refused."""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from lm import config, flops
from lm.config import Sampling, resolve
from lm.data.image_questions import Described
from lm.data.image_text import Images, ImageTextRows
from lm.errors import UserError
from lm.evaluation.image_text import HeldOutImageText, by_kind
from lm.generation.engine import Engine, Request
from lm.models.transformer import Transformer
from lm.objectives import Lengths
from lm.recipes import recipe, task
from lm.recipes.image_data import stem_of
from lm.sharding import make_mesh
from lm.types import Example, TokenStream
from tests.fakes import random_params
from tests.unit.data.test_image_text import Spelling

ROOT = Path(__file__).parents[3]
TINY = ROOT / "tests" / "e2e" / "tiny_pictures.py"


def rows(**changes):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3)).astype(np.uint8)
    described = [Described(f"w{i} w{i + 1}", "w9", "yes" if i % 2 else "no") for i in range(5)]
    settings = dict(kinds=("caption", "colour"), length=4, text=12, seed=0, shuffle=False) | changes
    return ImageTextRows(Images(pixels, 8, described), Spelling(), **settings)


@pytest.mark.parametrize("join", ["cross", "prefix"])
def test_what_is_written_after_an_image_is_what_a_full_pass_gives(join):
    """Three images at once in two slots, prompts of other lengths: each token and its log-probability."""
    run, held_out = resolve.load(f"{TINY}:{join}"), rows()
    network = Transformer(run.model)
    params = random_params(network, held_out.rows(np.arange(2)), 0.3)
    prompts = [held_out.prompt(i) for i in (0, 3, 8)]
    requests = [Request(prompt, 6, Sampling(temperature=0.0), stream) for stream, prompt in prompts]
    written = Engine(network, params, slots=2, length=24, source=4, steps=2).write(requests)
    for (stream, prompt), (sample,) in zip(prompts, written, strict=True):
        ids = np.concatenate([prompt, [one.token for one in sample]])[None].astype(np.int32)
        places = np.arange(ids.shape[1], dtype=np.int32)[None]
        example = Example(stream, TokenStream(ids, places, np.ones_like(ids)), None, None)
        logits = jax.nn.log_softmax(network.apply({"params": params}, example)[0, len(prompt) - 1 : -1])
        assert np.argmax(logits, axis=-1).tolist() == [one.token for one in sample]
        np.testing.assert_allclose([one.log_prob for one in sample], logits.max(axis=-1), rtol=1e-4, atol=1e-5)
    first = [[one.token for one in sample] for (sample,) in written]
    assert len({tuple(tokens) for tokens in first}) > 1, "another image, another text"


@pytest.mark.parametrize("join", ["cross", "prefix"])
def test_as_many_flops_as_xla_counts(join):
    width, side, size, text = 256, 8, 8, 48
    block = config.Block(config.Attention(4), config.Mlp(4 * width, "relu"), norm=config.Norm("rms"))
    encoder = config.Stack(2, {"L": block}, stem=config.Patches(size, size * side, class_token=False))
    decoder = config.Stack(2, {"L": replace(block, cross=join == "cross")}, position=config.Rope())
    model = config.Model(2048, width, encoder, decoder, join=join)
    what = task(config.Run(model, recipe=config.ImageText()))
    zeros, patches = np.zeros((2, text), np.int32), np.zeros((2, side**2, 3 * size**2), np.uint8)
    places = np.zeros((2, side**2), np.int32)
    stream = TokenStream(places, places, places + 1, vectors=patches)
    example = jax.tree.map(jnp.asarray, Example(stream, TokenStream(zeros, zeros, zeros + 1), zeros, zeros + np.float32(1)))
    params = nn.unbox(jax.eval_shape(what.init, jax.random.key(0), example))
    loss = lambda params, example: what.loss(params, None, example, None)[0].total
    xla = jax.jit(jax.grad(loss)).lower(params, example).cost_analysis()["flops"]
    lengths = Lengths(side**2, text)
    count = lambda m, p: flops.count(m, batch=2, encoder=side**2, decoder=text, predicted=p, causal_share=1.0).train
    assert sum(count(m, p) for m, p in what.passes(lengths)) == pytest.approx(xla, rel=0.03)


def test_held_out_figures_are_of_all_rows_and_of_each_kind():
    run, held_out = resolve.load(f"{TINY}:cross"), rows()
    network, what = Transformer(run.model), task(run)
    params = random_params(network, held_out.rows(np.arange(2)), 0.1)
    scores = jax.jit(what.scores)
    trained = [held_out.asked(i) for i in range(held_out.count)]
    mesh = make_mesh(config.Mesh(), jax.devices()[:1])
    test = HeldOutImageText(network, held_out, trained, lambda p, b: scores(p, None, b), 4, mesh)
    found = test(params)
    whole = scores(params, None, held_out.rows(np.arange(held_out.count)))
    assert found["loss"] == pytest.approx(float(whole["loss"].mean), rel=1e-5) and repr(found["items"]) == "10"
    # Colours are "no", "yes", "no", "yes", "no", and each caption is another one.
    assert found["colour/guess"] == 0.6 and found["caption/guess"] == 0.2 and found["guess"] == pytest.approx(0.4)
    assert {"exact", "f1", "caption/exact", "colour/f1"} <= set(found)


def test_means_of_a_single_kind_are_given_once():
    values = {"exact": np.array([1.0, 0.0])}
    assert by_kind(values, ["a", "a"]) == {"exact": 0.5}
    assert by_kind(values, ["a", "b"]) == {"exact": 0.5, "a/exact": 1.0, "b/exact": 0.0}


def refused(what, **changes):
    run = resolve.load(f"{TINY}:{what}")
    return recipe(run), replace(run, **changes) if changes else run


def test_settings_that_are_not_of_images_are_refused():
    kind, run = refused("cross")
    mesh = make_mesh(config.Mesh(), jax.devices()[:1])
    text = replace(run.data, sources={"a": config.Source("jsonl", "x")})
    check = lambda run: kind.check(run, task(run), mesh)
    with pytest.raises(UserError, match="format=text has no images"):
        check(replace(run, data=text))
    with pytest.raises(UserError, match="train_share=0.5"):
        check(replace(run, data=replace(run.data, train_share=0.5)))
    with pytest.raises(UserError, match="stem of kind 'patches'"):
        stem_of(replace(run.model, encoder=replace(run.model.encoder, stem=None)))
    with pytest.raises(UserError, match="each once"):
        config.ImageText(writes=("name", "name"))


def test_the_captioner_takes_both_ways_of_joining():
    cross, prefix = (resolve.load(f"{ROOT}/configs/encdec_captioner.py{end}") for end in ("", ":prefix"))
    assert cross.model.join == "cross" and prefix.model.join == "prefix"
    assert [r.model.decoder.blocks["L"].cross for r in (cross, prefix)] == [True, False]
    assert replace(prefix, model=cross.model) == cross
