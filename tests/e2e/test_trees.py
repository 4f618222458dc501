"""Runs on trees: they stop and go on to the bit; rows, FLOPs and refusals; what is wrong with a file is said in one line."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from lm import config, flops, recipes
from lm.config import resolve
from lm.data.rows import blank, stack
from lm.errors import UserError
from lm.models.transformer import Transformer
from lm.objectives import Lengths
from lm.training.assembly import assemble
from lm.types import TreeSizes
from tests import nested


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("trees")


@pytest.fixture(scope="module")
def files(home):
    return nested.files(home)


def parts(run):
    recipe = recipes.recipe(run)
    return assemble(recipe.complete(run, None), recipe, progress=False)


@pytest.mark.parametrize("children", [None, 2])
def test_a_stopped_run_goes_on_to_the_bit(files, home, children):
    run = nested.run(files["jsonl"], children)
    stopped, whole = (home / f"{children}.{name}" for name in ("stopped", "whole"))
    recipes.train(run, stopped, quiet=True, until=2)
    after, before = (recipes.train(run, folder, quiet=True) for folder in (stopped, whole))
    same = ("params_sha256", "heldout", "tokens_seen", "tokens_with_loss", "model_flops")
    assert [after[name] for name in same] == [before[name] for name in same]
    assert {"accuracy", "nll", "majority", "items"} <= set(before["heldout"])
    losses = [json.loads(line)["loss"] for line in (whole / "metrics.jsonl").read_text("utf-8").splitlines() if "loss" in line]
    assert all(np.isfinite(losses))


def test_a_line_of_labelled_brackets_is_a_record(files):
    """Of the same expressions, with each operator as the first of its arguments, and the same classes."""
    found = {name: parts(nested.run(path, recipe=dict(length=48))) for name, path in files.items()}
    assert found["txt"].run.recipe.classes == found["jsonl"].run.recipe.classes == tuple("0123456789")
    count = lambda name: sum(rows.report()["trees"]["records"] for rows in found[name].rows.values())
    assert count("txt") == count("jsonl") > 200
    read = {name: int(of.rows["train"].rows(np.arange(64)).tokens_read()) for name, of in found.items()}
    assert read["txt"] > read["jsonl"]


def test_rows_are_functions_of_their_numbers_and_hold_trees_or_sequences(files):
    for trees in ("given", "balanced", "right", "shuffled"):
        made = parts(nested.run(files["jsonl"], 2, recipe=dict(trees=trees, length=96)))
        rows = made.rows["train"]
        one, again = rows.rows(np.array([3, 9])), rows.rows(np.array([9]))
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[1], b[0]), one, again)
        tree = one.encoder.tree
        assert tree.steps.shape[1:] == (made.lengths.tree.steps, made.lengths.tree.width) and tree.children.shape[-1] == 2
        root = one.where[:, 0]
        assert (tree.edges[[0, 1], root] == -1).all()
        lengths = (one.encoder.segments > 0).sum(axis=1)
        assert (root == lengths - 1).all() and ((tree.edges >= 0).sum(axis=1) == lengths - 1).all()  # one tree in each row
    flat = replace(nested.model(None), encoder=flat_encoder())
    made = parts(nested.run(files["jsonl"], model=flat, recipe=dict(trees="none")))
    row = made.rows["train"].rows(np.array([3])).encoder
    assert row.tree is None and row.tokens[0, 0] == made.data.tokenizer.bos_id


def flat_encoder():
    block = config.Block(config.Attention(2), config.Mlp(32), norm=config.Norm("rms"))
    return config.Stack(2, {"L": block}, position=config.Rope())


def test_records_that_share_a_row_are_scored_as_alone(files):
    """Packed rows have the loss of the same records in rows of their own."""
    run = nested.run(files["jsonl"], packing=True, encoder_length=96)
    packed, alone = parts(run), parts(nested.run(files["jsonl"]))
    params = nn.unbox(jax.jit(alone.task.init)(jax.random.key(0), jax.tree.map(jnp.asarray, stack([alone.row]))))

    def total(made):
        rows = made.rows["train"]
        batch = rows.rows(np.arange(rows.count))
        loss, _ = jax.jit(lambda params, batch: made.task.loss(params, None, batch, {}))(params, batch)
        return loss.total, loss.weight, rows.count

    (loss, weight, few), (loss_alone, weight_alone, many) = total(packed), total(alone)
    assert few < many / 2 and weight == weight_alone == many
    np.testing.assert_allclose(loss, loss_alone, rtol=1e-5)


@pytest.mark.parametrize("children", [None, 3])
def test_as_many_flops_as_xla_counts(children):
    """Of a forward pass of one step, which XLA's count takes for any number of them; and with more steps, by hand."""
    lengths = Lengths(64, None, 1, tree=TreeSizes(1, 16, 3))
    model = replace(nested.model(children, 384), width=512)
    example = jax.tree.map(jnp.asarray, stack([blank(lengths)] * 4))
    module = Transformer(model)
    params = jax.eval_shape(lambda key: nn.unbox(module.init(key, example))["params"], jax.random.key(0))
    forward = jax.jit(lambda params, example: module.apply({"params": params}, example))
    xla = forward.lower(params, example).cost_analysis()["flops"]
    count = lambda tree: flops.count(model, batch=4, encoder=64, predicted=1, tree=tree)
    assert count(lengths.tree).forward == pytest.approx(xla, rel=0.02)
    products = 3 + 3 if children is None else 3 * 6  # of an inner node
    more = count(TreeSizes(5, 16, 3)).mixer - count(lengths.tree).mixer
    assert more == 2 * 2 * 4 * 64 * 384 * 384 * products  # two layers, four rows, 64 more nodes


def test_the_ledger_counts_nodes_and_children(files):
    made = parts(nested.run(files["jsonl"]))
    batch = made.rows["train"].rows(np.arange(16))
    tree, width, model = batch.encoder.tree, 16, made.run.model
    nodes, inner, below = (int(n) for n in (batch.tokens_read(), (tree.slots >= 0).sum(), (tree.children >= 0).sum()))
    assert below == nodes - 16 and inner < nodes / 2
    of_layer = nodes * (5 * width * width) + 3 * inner * width * width + below * width * width
    assert flops.of_rows(model, batch).mixer == 2 * 2 * of_layer
    assert made.flops_per_step > 0


# ------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "line, fault",
    [
        ("(1 (0 a) (1 b)", "field 'tree': a bracket is not closed"),
        ("(1 (0 a) ())", "has no label"),
        ("no brackets", "'no' at character 0 is outside of all brackets"),
        ('{"tree": "(a b))", "label": "1"}', r"field 'tree': '\)' at character 5 closes no bracket"),
        ('{"tree": 3, "label": "1"}', "field 'tree' is a int, not text"),
        ('{"tre": "(a b)", "label": "1"}', "no field 'tree'; did you mean 'tre'|no field 'tree'"),
    ],
)
def test_a_record_that_is_no_tree_is_named(tmp_path, line, fault):
    path = tmp_path / "mine.txt"
    path.write_text(f"(1 (0 a) (1 b))\n(0 (0 a) (1 c))\n{line}\n", "utf-8")
    with pytest.raises(UserError, match=f"mine.txt, line 3: .*{fault}") as error:
        parts(nested.run(path))
    assert "\n" not in str(error.value)


def test_what_does_not_fit_together_is_refused(files):
    run = nested.run(files["jsonl"])
    refused = {
        "recipe.trees=none reads sequences": nested.run(files["jsonl"], recipe=dict(trees="none")),
        "the encoder has no tree-LSTM": replace(run, model=replace(run.model, encoder=flat_encoder())),
        "has no trees: set format=tree": replace(
            run, data=replace(run.data, sources={"s": config.Source("package", "sentiment", format="labelled")})
        ),
        "trees of source 'trees' have more nodes": nested.run(files["jsonl"], recipe=dict(length=8)),
    }
    for fault, of in refused.items():
        with pytest.raises(UserError, match=fault):
            parts(of)
    with pytest.raises(UserError, match="set recipe.how=head"):
        config.Finetune(how="text", trees="given")
    with pytest.raises(UserError, match="a decoder writes a sequence"):
        replace(run.model, decoder=run.model.encoder, encoder=None)
    skipped = parts(nested.run(files["jsonl"], recipe=dict(length=8), on_long="skip"))
    assert skipped.rows["train"].report()["trees"]["answers_left_out"] > 0


def test_a_model_of_trees_reads_no_sequence(files):
    made = parts(nested.run(files["jsonl"]))
    batch = jax.tree.map(jnp.asarray, made.rows["train"].rows(np.arange(2)))
    params = nn.unbox(made.task.init(jax.random.key(0), batch))
    without = replace(batch, encoder=replace(batch.encoder, tree=None))
    with pytest.raises(UserError, match="reads trees"):
        Transformer(made.run.model).apply({"params": params}, without)


def test_the_config_resolves_with_a_file_of_ones_own(files):
    run = resolve.load(f"configs/encoder_tree.py:{files['txt']}", {})
    assert run.data.sources["trees"].path == str(files["txt"]) and run.recipe.trees == "given"
