"""How much faster a model learns after another objective, from curves of held-out loss."""

import pytest

from experiments.wang_adapt.study import LOSS, cost_of, plot, speed_ups, study


def curve(*losses):
    """A point each 10 FLOPs."""
    return [{"step": i, "flops": 10.0 * i, "loss": loss} for i, loss in enumerate(losses, 1)]


def result(*losses):
    return {"metrics": {LOSS: losses[-1]} if losses else {}, "items": {}, "flags": {}, "ledger": {}, "curve": curve(*losses)}


def test_the_cost_of_a_loss_is_interpolated():
    assert cost_of(curve(4.0, 3.0, 2.0), 2.5) == 25.0
    assert cost_of(curve(4.0, 3.0), 4.5) == 10.0 and cost_of(curve(4.0, 3.0), 2.9) is None


def test_the_speed_up_is_the_cost_from_scratch_over_that_after_the_change():
    results = {
        "causal": {0: result(4.0, 3.0, 2.0, 1.0), 1: result(4.0, 3.9), 2: result()},
        "masked_then_causal": {0: result(2.5, 1.5), 1: result(3.0, 2.0), 2: result(3.0)},
    }
    adapted = speed_ups(results)["masked_then_causal"]
    assert adapted[0]["metrics"]["speed_up"] == pytest.approx(35 / 20)
    assert "speed_up" not in adapted[1]["metrics"] and "speed_up" not in adapted[2]["metrics"]  # scratch never got there


def test_what_is_compared_has_had_the_same_flops_under_its_objective(tmp_path):
    of = study()
    for relation in of.relations:
        better, than = of.cells[relation.better], of.cells[relation.than]
        assert better.run.objective == than.run.objective
        spent = better.share if relation.primary else better.share + of.cells[better.start].share
        assert spent == than.share and better.start is not None and than.start is None
    assert "adapting.png" in plot({"causal": {0: result(4.0, 3.0)}}, tmp_path) and (tmp_path / "adapting.png").exists()
