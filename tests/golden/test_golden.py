"""What every config resolves to, and where each of its parameters lies on a mesh, as text that a change has to own.

`python -m pytest tests/golden --update` writes the files anew: read their diff before you commit it.
"""

import json
from dataclasses import replace
from pathlib import Path

import jax
import pytest
from flax import linen as nn
from jax.sharding import AbstractMesh, AxisType

from lm import config, sharding
from lm.config import resolve
from lm.data.rows import blank, stack
from lm.models.stem import abstract_stream
from lm.objectives import Lengths
from lm.recipes import recipe, task

HERE = Path(__file__).parent
CONFIGS = sorted((HERE.parents[1] / "configs").glob("*.py"))


def resolved(run: config.Run) -> list[str]:
    """`a.b.c = value`, one a line."""

    def walk(tree, path: str) -> list[str]:
        if isinstance(tree, dict) and tree:
            return [line for k, v in tree.items() for line in walk(v, f"{path}.{k}" if path else k)]
        return [f"{path} = {json.dumps(tree)}"]

    return walk(resolve.to_dict(run), "")


def parameters(run: config.Run) -> list[str]:
    """`path dtype[shape] PartitionSpec`, on a mesh that has two devices on every axis; none where the model is not given."""
    model = run.model
    if model is None:
        return ["(the parameters of train.init_from)"]
    if (known := recipe(run).shapes(run)) is not None:
        row = stack([known[1]])
    else:
        row = stack([blank(Lengths(16 if model.encoder else None, 16 if model.decoder else None))])
    if model.encoder and model.encoder.stem:
        row = replace(row, encoder=abstract_stream(model.encoder))
    boxed = jax.eval_shape(task(run).init, jax.random.key(0), row)
    axes = sharding.AXES
    mesh = AbstractMesh((2,) * len(axes), axes, axis_types=(AxisType.Auto,) * len(axes))
    shardings = jax.tree.leaves(sharding.param_shardings(boxed, mesh))
    leaves = jax.tree_util.tree_flatten_with_path(nn.unbox(boxed))[0]
    return [
        f"{jax.tree_util.keystr(path, simple=True, separator='/')} {leaf.dtype}{list(leaf.shape)} {tuple(s.spec)}"
        for (path, leaf), s in zip(leaves, shardings, strict=True)
    ]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_config_and_parameters_are_as_recorded(path, request):
    run = resolve.load(str(path))
    text = "\n".join([*resolved(run), "", *parameters(run)]) + "\n"
    golden = HERE / f"{path.stem}.txt"
    if request.config.getoption("update"):
        golden.write_text(text)
    assert golden.exists(), f"{golden} is not there: python -m pytest tests/golden --update"
    assert text == golden.read_text()


def test_no_golden_file_is_left_over():
    assert {p.stem for p in HERE.glob("*.txt")} == {p.stem for p in CONFIGS}
