"""The benchmarks of speed run and report: their figures are of a busy machine, and not looked at."""

import json

import pytest

from experiments.speed import growth, run


def test_a_round_of_training_beside_pytorch(tmp_path):
    pytest.importorskip("torch")
    out = tmp_path / "results.json"
    asked = ["--workloads=W3", "--dtypes=float32", "--contenders=torch_eager,ours", "--rounds=1", "--steps=1", f"--out={out}"]
    assert run.main(asked) == 0
    (found,) = json.loads(out.read_text("utf-8"))["results"]
    both = found["contenders"]
    assert both.keys() == {"torch_eager", "ours"} and both["ours"]["parameters"] == both["torch_eager"]["parameters"]
    assert all(row["tokens_per_second"] > 0 for row in both.values()) and found["ratio"]["peer"] == "torch_eager"
    assert "W3" in out.with_suffix(".md").read_text("utf-8")


def test_growth_of_a_step_and_of_opening_documents(tmp_path):
    assert growth.main(["--along=batch,documents", "--points=2", f"--out={tmp_path}"]) == 0
    found = json.loads((tmp_path / "growth.json").read_text("utf-8"))["axes"]
    assert found["batch"]["4"]["flops"] == 4 * found["batch"]["1"]["flops"] > 0
    assert found["batch"]["4"]["memory"] > found["batch"]["1"]["memory"] > 1  # parameters and moments alone are 5 MiB
    assert found["documents"]["100000"]["memory"] < 100  # of 2.4 MB, and libraries
