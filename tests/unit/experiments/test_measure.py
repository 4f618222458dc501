"""What a study keeps of a run: seconds that survive restarts, a curve with its cost."""

from dataclasses import replace

import numpy as np
import pytest

from experiments.measure import curve, flags, named, stored, trained
from experiments.plan import planned
from experiments.study import Cell, Study
from lm import config
from lm.errors import UserError
from lm.evaluation.spans import Score


def row(step, tokens, speed=None):
    return {"step": step, "tokens_seen": tokens} | ({} if speed is None else {"tokens_per_second": speed})


def test_seconds_come_from_the_speeds_on_the_way():
    """100 tokens of unknown speed, 200 at 50/s, 100 at 100/s: 5 s for 300, and so 6.67 s for all 400."""
    rows = [row(1, 100), row(2, 300, 50.0), {"step": 2, "heldout/loss": 1.0}, row(3, 400, 100.0)]
    assert trained(rows, {"tokens_seen": 400, "seconds": {"train": 0.1}}) == pytest.approx(400 * 5 / 300)


def test_a_run_that_went_on_with_nothing_left_still_has_its_seconds():
    """Its last process trained for no time at all; what was logged before counts."""
    rows = [row(1, 100), row(2, 300, 50.0)]
    assert trained(rows, {"tokens_seen": 300, "seconds": {"train": 0.0}}) == pytest.approx(6.0)
    assert trained([row(1, 100)], {"tokens_seen": 100, "seconds": {"train": 2.5}}) == 2.5


def test_the_curve_has_the_cost_of_each_point():
    rows = [row(5, 100), {"step": 10, "heldout/loss": 3.0}, {"step": 20, "heldout/loss": 2.0}]
    expected = [{"step": 10, "flops": 50.0, "loss": 3.0}, {"step": 20, "flops": 100.0, "loss": 2.0}]
    assert curve(rows, 100.0, 20) == expected


def test_values_of_items_are_kept_short_and_their_means_are_the_metrics():
    hits, nats = np.array([0.0, 1.0, 1.0]), np.array([1.23456, 1234.56, 0.0])
    found = named("mine", {"exact": hits, "nats": nats}, {"nats": "not normalised"})
    assert found.metrics == {"mine/exact": pytest.approx(2 / 3), "mine/nats": pytest.approx(nats.mean())}
    assert found.flags == {"mine/nats": "not normalised"}
    assert {name: stored(values) for name, values in found.items.items()} == {
        "mine/exact": "011",
        "mine/nats": [1.235, 1235.0, 0.0],
    }


def test_flags_say_what_is_no_probability_and_what_is_far_from_training():
    score = Score("suffix", 1.0, 2, 3, 0.5, 0.5, False, "why", np.ones(1), np.ones(1), "far")
    assert flags(score, "nats", "exact") == {"nats": "not normalised: why; far", "exact": "far"}
    assert flags(replace(score, normalised=True, far=""), "nats", "exact") == {}


def test_items_that_a_model_cannot_be_asked_stop_a_study_before_it_trains(tmp_path):
    path = tmp_path / "items.jsonl"
    path.write_text('{"left": "a", "target": "b", "right": "c"}')
    block = config.Stack(1, {"L": config.Block(config.Attention(1), config.Mlp(4))})
    run = config.Run(config.Model(8, 4, decoder=block), objective=config.Causal())
    made = Study("a", "b", {"causal": Cell("causal", run, items={"gaps": str(path)})}, 1, (), ())
    with pytest.raises(UserError, match="item 1 has a right side, and a model of 'causal' cannot be asked for it"):
        planned(made, ("causal", 0), tmp_path)
    path.write_text("{}")
    with pytest.raises(UserError, match="items.jsonl, line 1 has no field 'left'"):
        planned(made, ("causal", 0), tmp_path)
