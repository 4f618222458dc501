"""`experiments.speed.growth` without its measurements: exponents, what is marked, and what a part of the settings leaves."""

import json

import pytest

from experiments.speed import growth

POINTS = {1: {"step": 1.0, "flops": 10.0, "memory": 8.0}, 4: {"step": 2.0, "flops": 40.0, "memory": 8.0}}


def test_an_exponent_is_that_of_the_last_two_points():
    points = {1: {"step": 5.0}} | {4: {"step": 1.0}, 16: {"step": 16.0}}
    assert growth.exponent(points, "step") == pytest.approx(2.0)


def test_a_step_is_expected_to_grow_as_its_flops_and_what_exceeds_that_is_marked():
    axis = growth.AXES["batch"]
    assert growth.expected(axis, POINTS, "step") == pytest.approx(1.0) and growth.expected(axis, POINTS, "memory") == 1
    much = {1: POINTS[1], 4: POINTS[4] | {"step": 8.0}}
    lines = growth.markdown({"machine": {}, "axes": {"batch": POINTS, "vocabulary": much}}).splitlines()
    step = [line for line in lines if "s a step" in line]
    assert "| 0.50 | 1.0, of its FLOPs |" in step[0] and "| 1.50 **!** | 1.0, of its FLOPs |" in step[1]


def test_settings_that_are_not_measured_again_stay(tmp_path, monkeypatch, capsys):
    seen = []

    def measured(axis, value):
        seen.append((axis.name, value))
        return {"step": float(value), "flops": float(value), "memory": 1.0, "compile": 1.0, "trace": 1.0}

    monkeypatch.setattr(growth, "measured", measured)
    for name in ("width", "batch"):
        assert growth.main([f"--along={name}", "--points=2", f"--out={tmp_path}"]) == 0
    assert seen == [("width", 128), ("width", 256), ("batch", 1), ("batch", 4)]
    kept = json.loads((tmp_path / "growth.json").read_text("utf-8"))["axes"]
    assert list(kept) == ["width", "batch"] and kept["width"]["256"]["step"] == 256
    assert (tmp_path / "growth.png").stat().st_size > 10_000
    assert "| width | 128 to 256 | s a step | 128 | 256 | 1.00 |" in capsys.readouterr().out


@pytest.mark.parametrize(("flag", "cause"), [("--along=depth", "known are layers"), ("--points=1", "needs two or more")])
def test_what_is_refused(flag, cause, capsys):
    assert growth.main([flag]) == 2
    assert cause in capsys.readouterr().err
