"""What a study keeps of a run: seconds that survive restarts, a curve with its cost."""

import numpy as np
import pytest

from experiments.measure import curve, named, stored, trained, tuning
from experiments.study import Finetune, Task
from lm import config
from lm.config import resolve


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


@pytest.mark.parametrize("name,kind,form", [("topics", "package", "labelled"), ("spans", "cloze", "pair")])
def test_a_tasks_fine_tuning_is_a_run(name, kind, form, tmp_path):
    """Everything that decides its result, from the task's settings and the cell's run."""
    cell = config.Run(config.Model(8, 8), train=config.Train(seed=3), data=config.Data(cache="elsewhere"))
    task = Task(
        name, "text", Finetune(steps=50, batch_size=4, learning_rate=0.5, weight_decay=0.25, length=20, answer=6, rows=7)
    )
    run = tuning(task, cell, tmp_path)
    ((_, source),) = run.data.sources.items()
    assert (source.kind, source.path, source.format, run.data.cache) == (kind, name, form, "elsewhere")
    assert run.recipe == config.Finetune(how="text", length=20, answer=6) and run.model is None
    assert (run.train.steps, run.train.batch_size, run.train.seed, run.train.init_from) == (50, 4, 3, str(tmp_path))
    assert (run.optimizer.learning_rate, run.optimizer.weight_decay, run.evaluate.rows) == (0.5, 0.25, 7)
    assert run.optimizer.schedule == config.Schedule("linear", warmup=5, final=0.0)
    assert resolve.from_json(resolve.to_json(run)) == run


def test_values_of_items_are_kept_short_and_their_means_are_the_metrics():
    hits, nats = np.array([0.0, 1.0, 1.0]), np.array([1.23456, 1234.56, 0.0])
    found = named("mine", {"exact": hits, "nats": nats}, {"nats": "not normalised"})
    assert found.metrics == {"mine/exact": pytest.approx(2 / 3), "mine/nats": pytest.approx(nats.mean())}
    assert found.flags == {"mine/nats": "not normalised"}
    assert {name: stored(values) for name, values in found.items.items()} == {
        "mine/exact": "011",
        "mine/nats": [1.235, 1235.0, 0.0],
    }
