"""Which rows a run reads, what it logs of its steps, and how it ends if they are skipped; also if it is stopped and goes on."""

import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from lm import optim
from lm.data.rows import Rows
from lm.errors import EXIT_PREEMPTED
from lm.training.hooks import StopOnSignal
from lm.training.ledger import FEW

QUIET = ("--config.log.every=3", "--config.log.samples=()", "--config.evaluate.every=None", "--config.checkpoint.every=None")


def rows_of(path):
    return [json.loads(line, parse_constant=refused) for line in path.read_text().splitlines()]


def refused(name):
    raise AssertionError(f"{name} is not JSON")


@pytest.fixture
def read(monkeypatch):
    """The numbers of the training rows that runs read, in order."""
    numbers, original = [], Rows.rows

    def recorded(self, index):
        numbers.extend(np.asarray(index).tolist() if self.shuffle else [])
        return original(self, index)

    monkeypatch.setattr(Rows, "rows", recorded)
    return numbers


def stopped_at(monkeypatch, step):
    """From now on a run is told to stop when this step is done."""
    original = StopOnSignal.__call__

    def call(self, now, state, metrics):
        self.code = EXIT_PREEMPTED if now == step else 0
        original(self, now, state, metrics)

    monkeypatch.setattr(StopOnSignal, "__call__", call)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Of runs that several tests look at; the first that needs one makes it."""
    return tmp_path_factory.mktemp("steps")


@pytest.fixture
def whole(folder, train):
    """A run of 8 steps of 4 rows."""
    if not (folder / "whole").exists():
        code, err = train(folder / "whole", "decoder.causal", *QUIET, "--config.train.steps=8")
        assert code == 0, err
    return folder / "whole"


@pytest.fixture
def half(folder, train, tmp_path, monkeypatch):
    """The same, stopped after step 5: between two rows of its log."""
    if not (folder / "half").exists():
        with monkeypatch.context() as told:
            stopped_at(told, 5)
            code, err = train(folder / "half", "decoder.causal", *QUIET, "--config.train.steps=8")
        assert code == EXIT_PREEMPTED, err
    return shutil.copytree(folder / "half", tmp_path / "half")


def test_a_stopped_run_logs_what_it_would_have_logged(train, whole, half):
    code, err = train(half, "decoder.causal", *QUIET, "--config.train.steps=8")
    assert code == 0 and "going on from step 5" in err, err
    speed = ("tokens_per_second", "steps_per_second", "mfu")
    kept = [
        [{k: v for k, v in row.items() if k not in speed} for row in rows_of(folder / "metrics.jsonl")]
        for folder in (whole, half)
    ]
    assert kept[0] == kept[1]
    rates = {row["step"]: row["learning_rate"] for row in kept[0] if "learning_rate" in row}
    # Of a warm-up of 5 steps to 0.01; then the cosine begins, and step 8 is the third of it.
    expected = {3: 0.01 * 3 / 5, 6: 0.01, 8: 0.01 * (0.1 + 0.9 * (1 + np.cos(np.pi * 2 / 3)) / 2)}
    assert rates == pytest.approx(expected, rel=1e-5)


def test_another_batch_size_reads_on_where_the_rows_end(train, whole, half, read):
    """20 rows in 5 steps of 4, then 12 in two of 6, then 9 in three of 3: none twice, none left out."""
    summaries = []
    for size, steps in ((6, 7), (3, 10)):
        read.clear()
        flags = (*QUIET, f"--config.train.batch_size={size}", f"--config.train.steps={steps}", "--allow_changes")
        code, err = train(half, "decoder.causal", *flags)
        assert code == 0, err
        first = 20 if size == 6 else 32
        count = (steps - (5 if size == 6 else 7)) * size
        sampled, trained, counted = read[:FEW], read[FEW : FEW + count], read[FEW + count :]  # the last by the summary
        assert sampled == list(range(FEW)), "the manifest has the FLOPs of the first rows"
        assert trained == list(range(first, first + count)) and counted == list(range(first + count))
        summaries.append(json.loads((half / "summary.json").read_text()))
    of_whole = json.loads((whole / "summary.json").read_text())
    same = ("model_flops", "raw_bytes", "tokens_seen", "tokens_with_loss")
    assert [summaries[0][name] for name in same] == [of_whole[name] for name in same]
    assert summaries[1]["model_flops"] == pytest.approx(of_whole["model_flops"] * 41 / 32, rel=0.05)


@pytest.mark.parametrize("good", [0, 3])
def test_a_run_whose_last_steps_are_skipped_does_not_end_well(train, tmp_path, monkeypatch, good):
    """Fewer of them than train.max_skipped. What is saved is finite, and the run goes on from it once the cause is gone."""
    flags = ("--config.train.steps=6", "--config.checkpoint.every=2", "--config.log.every=2", "--config.evaluate.every=None")
    with monkeypatch.context() as broken:
        rate = lambda c, peak, steps: lambda step: jnp.where(step < good, peak, jnp.inf)
        broken.setattr(optim, "schedule", rate)
        code, err = train(tmp_path, "decoder.causal", *flags)
    assert code == 2 and f"the last {6 - good} of 6 steps were skipped" in err and err.count("error:") == 1, err
    assert not (tmp_path / "summary.json").exists()
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["2", "4"]
    rows = rows_of(tmp_path / "metrics.jsonl")
    assert [row["skipped"] for row in rows] == [max(0, step - good) for step in (2, 4, 6)]
    assert all(isinstance(row["loss"], float) for row in rows), "the loss was finite all the time"

    code, err = train(tmp_path, "decoder.causal", *flags)
    assert code == 0 and "going on from step 4" in err, err
    summary = json.loads((tmp_path / "summary.json").read_text(), parse_constant=refused)
    assert summary["skipped_steps"] == 4 - good and np.isfinite(summary["heldout"]["loss"])
    for file in [*tmp_path.glob("*.json"), *tmp_path.glob("*.jsonl")]:
        text = file.read_text()
        for part in text.splitlines() if file.suffix == ".jsonl" else [text]:
            json.loads(part, parse_constant=refused)
