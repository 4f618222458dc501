"""Recipes of pictures, from a folder of files to a report: two encoders (CLIP) and classes (ViT)."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest
from flax import linen as nn

from lm import config, flops, recipes, saved
from lm.config import resolve
from lm.errors import UserError
from lm.losses import contrastive
from lm.models.transformer import Transformer
from lm.recipes.two_encoders import Pair
from lm.training.assembly import assemble
from lm.training.report import write_report

Image = pytest.importorskip("PIL.Image")
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220), "grey": (128, 128, 128)}
PLACES = {"left": (slice(None), slice(0, 8)), "right": (slice(None), slice(8, 16)), "above": (slice(0, 8), slice(None))}
BLOCK = config.Block(config.Attention(2), config.Mlp(64))
STEM = config.Patches(4, 16)
HEAD = config.Head(tied=False, outputs=16)
IMAGE = config.Stack(2, {"L": BLOCK}, position=config.Learned(STEM.length), stem=STEM)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """72 pictures of a coloured half, six of each colour and place with other noise."""
    home = tmp_path_factory.mktemp("pictures")
    rng, lines = np.random.default_rng(0), []
    for i in range(6):
        for colour, rgb in COLOURS.items():
            for place, where in PLACES.items():
                pixels = rng.integers(200, 256, (16, 16, 3)).astype(np.uint8)
                pixels[where] = rgb
                name = f"{colour}_{place}_{i}.png"
                Image.fromarray(pixels).save(home / name)
                lines.append({"image": name, "text": f"{colour} {place}", "label": colour})
    (home / "records.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    source = config.Source(kind="jsonl", path=str(home / "records.jsonl"), format="captioned")
    return config.Data(
        {"mine": source}, tokenizer=config.Tokenizer("word", 64), holdout=0.25, decoder_length=8, cache=str(home / "cache")
    )


def run_of(data, recipe, head=HEAD, **train):
    model = config.Model(32, 32, encoder=IMAGE, head=head)
    return config.Run(
        model,
        data,
        optimizer=config.Optimizer(learning_rate=3e-3, schedule=config.Schedule("constant", warmup=2)),
        train=config.Train(**{"steps": 30, "batch_size": 24} | train),
        checkpoint=config.Checkpoint(every=None),
        evaluate=config.Evaluate(every=None, batch_size=24),
        log=config.Log(samples=(), tensorboard=False),
        recipe=recipe,
    )


def two_encoders(data, **train):
    text = config.Model(64, 32, decoder=config.Stack(2, {"L": BLOCK}, position=config.Learned(8)), head=HEAD)
    return run_of(data, config.TwoEncoders(text, shift=1), **train)


def test_captions_and_pictures_find_each_other(data, tmp_path):
    """Held-out pictures, whose captions training has: retrieval far above chance, and a run that is resumed is the same."""
    run = two_encoders(data, steps=150)
    whole = recipes.train(run, tmp_path / "whole", quiet=True)
    found = whole["heldout"]
    assert repr(found["items"]) == "18" and found["chance@1"] < 0.2
    for way in ("image_to_text", "text_to_image"):
        assert found[f"{way}@1"] > 0.7 and found[f"{way}@5"] >= found[f"{way}@1"]
    assert whole["heldout_intervals"]["image_to_text@1"][0] > found["chance@1"]
    recipes.train(run, tmp_path / "parts", quiet=True, until=40)
    again = recipes.train(run, tmp_path / "parts", quiet=True)
    assert again["params_sha256"] == whole["params_sha256"] and again["heldout"] == found
    write_report(tmp_path / "whole", whole)
    page = (tmp_path / "whole" / "report.html").read_text(encoding="utf-8")
    assert "image_to_text@1" in page and "chance@1" in page
    opened = saved.open(tmp_path / "whole")
    assert opened.params().keys() == {"embed", "encoder", "head"}  # the encoder of pictures
    assert resolve.from_json((tmp_path / "whole" / "config.json").read_text(encoding="utf-8")) == run


@pytest.mark.parametrize("pool", ["first", "mean"])
def test_classes_are_told(data, tmp_path, pool):
    """Colours of held-out pictures; the run gives the model its head."""
    run = run_of(replace(data, decoder_length=None), config.ImageClasses(pool), config.Head(tied=False, outputs=3))
    summary = recipes.train(run, tmp_path / "run", quiet=True)
    found = summary["heldout"]
    assert found["accuracy"] > 0.9 > 2 * found["majority"] and repr(found["items"]) == "18"
    kept = resolve.from_json((tmp_path / "run" / "config.json").read_text(encoding="utf-8"))
    assert kept.recipe.classes == tuple(sorted(COLOURS)) and kept.model.head.outputs == 4
    recipes.train(run, tmp_path / "parts", quiet=True, until=11)
    assert recipes.train(run, tmp_path / "parts", quiet=True)["params_sha256"] == summary["params_sha256"]


def test_flops_are_those_of_xla(data):
    """The forward pass of both encoders and the comparison, which the ledger leaves out: 2 * 2 * B * B * E."""
    run = two_encoders(data)
    parts = assemble(run, recipes.recipe(run), progress=False)
    pair, batch = Pair(run.model, run.recipe), parts.rows["train"].rows(np.arange(24))
    params = nn.unbox(pair.init(jax.random.key(0), batch))

    def loss(params, batch):
        a, b = pair.vectors(params, batch)
        return contrastive.pairs(a, b, batch.weights[:, 0], pair.scale(params))[0].total

    compiled = jax.jit(loss).lower(params, batch).compile()
    sizes = dict(encoder=parts.lengths.encoder, decoder=parts.lengths.decoder, predicted=1, causal_share=1.0)
    counted = sum(flops.count(model, batch=24, **sizes).forward for model in (run.model, run.recipe.text))
    assert counted + 4 * 24 * 24 * 16 == pytest.approx(compiled.cost_analysis()["flops"], rel=0.1)  # XLA counts norms too


def test_an_encoder_of_pictures_begins_with_another(data, tmp_path):
    """CLIP's encoder from a run of classes, and the other way round."""
    first = run_of(replace(data, decoder_length=None), config.ImageClasses(), steps=3)
    recipes.train(first, tmp_path / "classes", quiet=True)
    same = two_encoders(data, steps=2)
    recipes.train(same, tmp_path / "clip", quiet=True)
    tuned = replace(first, train=replace(first.train, init_from=str(tmp_path / "clip")))
    assert recipes.train(tuned, tmp_path / "tuned", quiet=True)["step"] == 3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r: replace(r, train=replace(r.train, microbatches=2)), "would compare a picture with those of its own part"),
        (lambda r: replace(r, model=replace(r.model, head=config.Head(tied=False, outputs=8))), "project to one space"),
        (lambda r: replace(r, data=replace(r.data, decoder_length=12)), "has learned 8"),
        (lambda r: replace(r, model=r.recipe.text), "reads pictures: give it an encoder alone"),
    ],
)
def test_refusals(data, change, words):
    run = change(two_encoders(data))
    with pytest.raises(UserError, match=words):
        assemble(run, recipes.recipe(run), progress=False)


def test_a_text_side_that_is_none_is_refused():
    with pytest.raises(UserError, match="give it a decoder alone"):
        config.TwoEncoders(config.Model(32, 32, encoder=IMAGE, head=HEAD))
    with pytest.raises(UserError, match="raise one of them"):
        text = config.Model(64, 32, decoder=config.Stack(1, {"L": BLOCK}), head=HEAD)
        config.TwoEncoders(text, temperature=0.001)


def test_the_vector_of_a_mean_leaves_padding_out(data):
    """`pool="mean"`: against NumPy."""
    from lm.recipes.image_classes import pooled

    run = run_of(data, config.ImageClasses("mean"))
    parts = assemble(two_encoders(data), recipes.recipe(two_encoders(data)), progress=False)
    batch = replace(parts.rows["holdout"].rows(np.arange(3)), decoder=None)
    model = Transformer(run.model)
    params = nn.unbox(model.init(jax.random.key(0), batch))["params"]
    hidden = model.apply({"params": params}, replace(batch, where=None), method="hidden")
    found = pooled(model.apply, {"params": params}, batch, method="hidden")
    np.testing.assert_allclose(found[:, 0], np.asarray(hidden).mean(axis=1), rtol=1e-5, atol=1e-6)
