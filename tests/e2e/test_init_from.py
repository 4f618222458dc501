"""`train.init_from`: a run begins with the parameters of another, or says in a line why it cannot."""

import json
import shutil

import jax
import numpy as np
import pytest
from flax import traverse_util

from lm import checkpoint, saved
from lm.errors import UserError
from lm.models.transformer import abstract_params
from lm.training.mapped import saved_path
from tests.processes import HANGS

FEW = "--config.train.steps=2"


def first_loss(workdir):
    return json.loads((workdir / "metrics.jsonl").read_text().splitlines()[0])["loss"]


def refused(result, *causes):
    code, err = result
    lines = [line for line in err.splitlines() if line.startswith("error:")]
    assert code == 2 and len(lines) == 1 and "Traceback" not in err, err
    assert all(cause in lines[0] for cause in causes), err


def tree(model):
    return traverse_util.unflatten_dict(abstract_params(model), sep="/")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, command):
    """The workdir of a causal run."""
    workdir = tmp_path_factory.mktemp("trained")
    process = command(workdir, "decoder.causal", "--config.train.steps=60", "--config.checkpoint.every=20")
    err = process.communicate(timeout=HANGS)[1]
    assert process.returncode == 0, err
    return workdir


@pytest.fixture
def converted(trained, tmp_path):
    """The same as `lm.convert` would leave it: the model by itself, and its own tokenizer."""
    folder = tmp_path / "converted"
    model = saved.open(trained).model
    checkpoint.save_params(folder, model, jax.tree.map(np.asarray, saved.open(trained).params(tree(model))))
    (folder / "hf").mkdir()
    (folder / "hf" / "tokenizer.model").write_bytes(saved.open(trained).tokenizer_bytes())
    return folder


def test_another_objective_begins_where_it_ended(train, trained, converted, tmp_path):
    assert train(tmp_path / "scratch", "decoder.prefix", FEW, "--config.log.every=1")[0] == 0
    for source in (trained, converted):
        begin = (FEW, "--config.log.every=1", f"--config.train.init_from={source}")
        workdir = tmp_path / f"from_{source.name}"
        code, err = train(workdir, "decoder.prefix", *begin)
        assert code == 0, err
        assert first_loss(workdir) < first_loss(tmp_path / "scratch") - 0.5
    # It goes on though what it began from has moved.
    moved = f"--config.train.init_from={tmp_path / 'elsewhere'}"
    code, err = train(workdir, "decoder.prefix", FEW, "--config.log.every=1", moved)
    assert code == 0 and "going on from step 2" in err, err


def test_what_does_not_match_is_named(train, trained, converted, tmp_path):
    for source in (trained, converted):
        begin = f"--config.train.init_from={source}"
        wide = train(tmp_path / "wide", "decoder.causal", FEW, begin, "--config.model.width=64")
        refused(wide, "of another model", "saved [", "(and ")
        other = train(tmp_path / "other", "decoder.causal", FEW, begin, "--config.data.tokenizer.vocab_size=410")
        refused(other, "another tokenizer", "data.tokenizer.path")
        with pytest.raises(UserError, match="has a single model, and no parameters for 'generator'"):
            saved.open(source).params({"model": {}, "generator": {}})
    for layers, cause in ((1, "wanted nothing"), (3, "saved nothing, wanted [")):
        deep = f"--config.model.decoder.num_layers={layers}"
        refused(train(tmp_path / "deep", "decoder.causal", FEW, begin, deep), "of another model", cause)


@pytest.mark.parametrize(
    ("what", "stacks"),
    [
        ("encoder.masked_diffusion", {"encoder": "decoder"}),
        ("encoder_decoder.span_corruption", {"encoder": "decoder", "decoder": "decoder"}),
    ],
)
def test_stacks_begin_with_those_of_another_architecture(train, trained, tmp_path, what, stacks):
    """LLM2Vec's encoder and T5Gemma's encoder-decoder of a decoder: all that it has, and cross-attention of their own."""
    begin = (f"--config.train.init_from={trained}", f"--config.train.init_map={stacks}", "--config.train.steps=0")
    code, err = train(tmp_path / "run", what, *begin)
    assert code == 0, err
    flat = lambda folder: traverse_util.flatten_dict(saved.open(folder).params(tree(saved.open(folder).model)))
    before, now = flat(trained), flat(tmp_path / "run")
    assert {path[1].split("_")[0] for path in now if "positions" in path[1]} == set(stacks)
    own = {"/".join(path) for path in now if saved_path(path, stacks) not in before}
    assert all("cross" in name for name in own) and bool(own) == ("decoder" in stacks)
    for path, array in now.items():
        if "/".join(path) not in own:
            assert np.array_equal(array, before[saved_path(path, stacks)])
    code, err = train(tmp_path / "more", what, *begin[:2], FEW)  # no array is updated in two places
    assert code == 0, err


def test_heads_of_further_tokens_begin_beside_a_model_of_next_tokens(train, trained, tmp_path):
    begin = (f"--config.train.init_from={trained}", "--config.train.steps=0")
    code, err = train(tmp_path / "run", "decoder.multi_token", *begin)
    assert code == 0, err
    flat = lambda folder: traverse_util.flatten_dict(saved.open(folder).params(tree(saved.open(folder).model)))
    before, now = flat(trained), flat(tmp_path / "run")
    assert before.keys() == now.keys() and all(np.array_equal(before[path], now[path]) for path in now)
    code, err = train(tmp_path / "more", "decoder.multi_token", begin[0], FEW)
    assert code == 0, err
    again = f"--config.train.init_from={tmp_path / 'more'}"  # now with its heads
    code, err = train(tmp_path / "again", "decoder.multi_token", again, FEW)
    assert code == 0, err
    others = "--config.objective.heads=2"
    refused(train(tmp_path / "other", "decoder.multi_token", again, FEW, others), "of another model", "future")


def test_what_cannot_be_mapped_is_named(train, trained, tmp_path):
    begin = (f"--config.train.init_from={trained}", FEW)
    refused(train(tmp_path, "encoder.masked", *begin), "of another model")
    encoder = "--config.train.init_map={'encoder': 'encoder'}"
    refused(train(tmp_path, "encoder.masked", *begin, encoder), "has no encoder; leave it out")
    mapped = "--config.train.init_map={'encoder': 'decoder'}"
    refused(train(tmp_path, "encoder.masked", *begin, mapped, "--config.model.width=64"), "give both models the same sizes")
    refused(train(tmp_path, "encoder.masked", FEW, mapped), "train.init_map", "train.init_from")


def test_a_run_of_two_models(train, tmp_path):
    both, alone = "encoder.replaced_tokens", tmp_path / "alone"
    head = ("--config.model.head.outputs=None", "--config.objective.predict=masked")
    first = tmp_path / "first"
    assert train(first, both, "--config.train.steps=30", *head)[0] == 0
    assert train(tmp_path / "scratch", both, FEW, "--config.log.every=1", *head)[0] == 0
    begin = f"--config.train.init_from={first}"
    code, err = train(tmp_path / "again", both, FEW, "--config.log.every=1", begin, *head)
    assert code == 0, err
    assert first_loss(tmp_path / "again") < 0.95 * first_loss(tmp_path / "scratch")
    # The model alone goes into a plain run, and a plain run's model is no pair.
    code, err = train(alone, "encoder.masked", FEW, begin, "--config.model.head.tied=False")
    assert code == 0, err
    refused(train(tmp_path / "pair", both, FEW, f"--config.train.init_from={alone}", *head), "a single model", "'generator'")


def test_the_latest_intact_checkpoint_is_read(trained, tmp_path):
    """A half-written last one is passed over by all that read a run; where none is whole, each is named."""
    run = shutil.copytree(trained, tmp_path / "run")
    model = saved.open(run).model
    last = saved.open(run).params(tree(model))
    steps = sorted((int(p.name) for p in (run / "checkpoints").iterdir() if p.name.isdigit()), reverse=True)
    assert len(steps) > 1
    (run / "checkpoints" / str(steps[0]) / "SHA256.json").unlink()
    with pytest.warns(UserWarning, match=rf"{steps[0]} is damaged: .*; step {steps[1]} is read instead"):
        found = saved.open(run)
    before = found.params(tree(model))
    assert any((a != b).any() for a, b in zip(jax.tree.leaves(last), jax.tree.leaves(before), strict=True))
    assert found.model == model and found.tokenizer_bytes()
    for step in steps[1:]:
        (run / "checkpoints" / str(step) / "tokenizer" / "metadata").write_text("")
    for read in (saved.open, lambda d: saved.open(d).params()):
        with pytest.raises(UserError, match=rf"no intact checkpoint .{steps[0]}: .*not finished; {steps[1]}: tokenizer"):
            read(run)


def test_the_tokenizer_of_a_converted_model(converted):
    """Whichever of its files there is."""
    kept = converted / "hf" / "tokenizer.model"
    found = saved.open(converted)
    assert found.tokenizer().proto == kept.read_bytes()
    assert jax.tree.map(np.shape, found.params()) == jax.tree.map(np.shape, tree(found.model))
    kept.rename(converted / "hf" / "spiece.model")
    assert saved.open(converted).tokenizer().proto == found.tokenizer().proto
    (converted / "hf" / "spiece.model").unlink()
    assert saved.open(converted).tokenizer_bytes() is None
    with pytest.raises(UserError, match="has no tokenizer; put"):
        saved.open(converted).tokenizer()
