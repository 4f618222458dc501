"""Runs that earlier code began, with the first layout of parameter names, go on to the parameters that it reached."""

import json
import tarfile
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from lm import layout, saved
from lm.models.transformer import abstract_params
from lm.train import main

ARCHIVE = Path(__file__).parents[1] / "checkpoints/first_layout.tar.xz"


@pytest.mark.parametrize("name", ["decoder", "encoder_decoder"])
def test_a_run_of_the_first_layout_goes_on_to_the_same_parameters(name, corpus, tmp_path, capsys):
    """From step 2 to 6, with dropout: equal parameters need equal data, moments, averages and random streams."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    workdir = tmp_path / "first_layout" / name
    places = [f"--config.data.sources.tiny.path={corpus}/tiny.jsonl", f"--config.data.cache={corpus}/cache"]
    code = main([f"--workdir={workdir}", f"--config={workdir}/config.json", *places, "--allow_changes"])
    err = capsys.readouterr().err
    assert code == 0 and "going on from step 2" in err, err

    model = saved.open(workdir).model
    found = saved.open(workdir).params(abstract_params(model))
    with np.load(workdir / "averages_at_step_6.npz") as reached:
        wanted = {layout.current_path(path): reached[path] for path in reached}
    names = {jax.tree_util.keystr(p, simple=True, separator="/"): x for p, x in jax.tree_util.tree_flatten_with_path(found)[0]}
    assert names.keys() == wanted.keys()
    for path, array in names.items():
        np.testing.assert_allclose(array, wanted[path], rtol=2e-5, atol=2e-6, err_msg=path)

    with ocp.PyTreeCheckpointer() as checkpointer:
        names = json.dumps(checkpointer.metadata(workdir / "checkpoints/6/state").item_metadata.tree, default=str)
    assert "group" in names and "turn" not in names
