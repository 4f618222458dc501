"""Sweeps of a tiny model: halving that goes on from checkpoints to the bit, a kill in the middle, and a range test."""

import json
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from experiments.sweep import range_test, trials
from experiments.sweep.__main__ import main
from lm import recipes, startup
from lm.config import resolve
from lm.errors import UserError
from lm.training import jsonl
from tests.processes import wait_for

ROOT = Path(__file__).parents[2]
OVER = ("--over", "optimizer.learning_rate=0.01,0.02,1e30", "--search=halving", "--first=1")


@pytest.fixture(scope="module")
def words(flags):
    few = ("--config.evaluate.rows=8", "--config.train.max_skipped=2", "--config.log.every=1", "--config.checkpoint.every=3")
    return flags("decoder.causal", *few)


@pytest.fixture(scope="module")
def whole(words, tmp_path_factory):
    """A sweep that nothing disturbed."""
    workdir = tmp_path_factory.mktemp("sweep")
    assert main([*words, *OVER, f"--workdir={workdir}", "--processes=1"]) == 0
    return workdir


def results(workdir):
    """Everything that was measured but the clock, by trial and step."""
    found = {f"{p.parent.name}/{p.name}": json.loads(p.read_text(encoding="utf-8")) for p in workdir.glob("trial*/step*.json")}
    for result in found.values():
        assert result["ledger"].pop("core_seconds") > 0 and result["ledger"].pop("seconds", 1.0) > 0
    return found


def test_halving_leaves_the_worse_and_what_diverged(whole):
    found = results(whole)
    assert sorted(found) == ["trial000/step4.json", "trial001/step12.json", "trial001/step4.json", "trial002/step4.json"]
    bits = lambda name: found[name]["heldout"]["bits_per_byte"]
    assert bits("trial001/step4.json") < bits("trial000/step4.json")
    assert bits("trial001/step12.json") < bits("trial001/step4.json")
    assert "heldout" not in found["trial002/step4.json"] and "diverged" in found["trial002/step4.json"]["flags"]
    flops = [found[f"trial001/step{steps}.json"]["ledger"]["model_flops"] for steps in (4, 12)]
    assert flops[1] == pytest.approx(3 * flops[0], rel=0.02)
    assert json.loads((whole / "rung1.json").read_text(encoding="utf-8")) == {"step": 4, "chosen": [1]}
    report = (whole / "report.md").read_text(encoding="utf-8")
    assert "1 done, 1 left, 1 diverged" in report and "--config.optimizer.learning_rate=0.02 --workdir=runs/best" in report


def test_a_promoted_trial_is_the_run_that_was_never_stopped(whole, tmp_path):
    run = trials.read(whole).trials[1].run
    startup.after_jax()  # as the commands do, which the other tests call
    summary = recipes.train(run, tmp_path, quiet=True)
    promoted = json.loads((whole / "trial001/run/summary.json").read_text(encoding="utf-8"))
    for key in ("params_sha256", "heldout", "tokens_seen", "model_flops", "step"):
        assert promoted[key] == summary[key], key
    rows = [[r for r in jsonl.read(d / "metrics.jsonl") if "loss" in r] for d in (tmp_path, whole / "trial001/run")]
    seen = [[(r["step"], r["loss"], r["learning_rate"]) for r in of] for of in rows]
    assert seen[0] == seen[1] and len(seen[0]) == 12
    peak, warmup = 0.02, 5  # the schedule of 12 steps from the first step on: a warm-up, then a cosine to a tenth
    cosine = lambda step: peak * (0.1 + 0.9 * 0.5 * (1 + np.cos(np.pi * max(step - 1 - warmup, 0) / (12 - warmup))))
    expected = [peak * step / warmup if step <= warmup else cosine(step) for step in range(1, 13)]
    assert [rate for _, _, rate in seen[1]] == pytest.approx(expected, rel=1e-5)


def test_a_run_is_not_asked_for_less_than_it_has_done(whole, tmp_path):
    run = trials.read(whole).trials[1].run
    startup.after_jax()
    with pytest.raises(UserError, match="is at step 12, beyond until=4"):
        recipes.train(run, whole / "trial001/run", quiet=True, until=4)


def test_killed_and_started_again_gives_the_same(words, whole, corpus, tmp_path, capsys):
    command = [sys.executable, "-m", "experiments.sweep", *words, *OVER, f"--workdir={tmp_path}", "--processes=1"]
    env = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(corpus / "compiled")}
    process = subprocess.Popen(command, env=env, cwd=ROOT, stderr=subprocess.DEVNULL)
    wait_for(lambda: all((tmp_path / f).exists() for f in ("trial000/step4.json", "trial001/run/checkpoints/3")), process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = (tmp_path / "trial000/step4.json").stat().st_mtime_ns
    assert not (tmp_path / "trial001/step12.json").exists()
    with warnings.catch_warnings():  # killed before its first checkpoint was complete, a run warns that it starts over
        warnings.filterwarnings("ignore", "(?s).*no checkpoint: the run starts over")
        assert main([*words, *OVER, f"--workdir={tmp_path}", "--processes=2"]) == 0  # as workers
    assert (tmp_path / "trial000/step4.json").stat().st_mtime_ns == before
    assert results(tmp_path) == results(whole)
    digests = [
        json.loads((d / "trial001/run/summary.json").read_text(encoding="utf-8"))["params_sha256"] for d in (tmp_path, whole)
    ]
    assert digests[0] == digests[1]
    assert len(jsonl.read(tmp_path / "trial001/run/goodput.jsonl")) > len(jsonl.read(whole / "trial001/run/goodput.jsonl"))
    capsys.readouterr()
    assert main([*words, *OVER, f"--workdir={tmp_path}", "--seed=1", "--processes=1"]) == 2
    assert "holds another sweep (seed: 0 there, 1 here)" in capsys.readouterr().err


def test_a_trial_that_fails_does_not_stop_the_others(words, tmp_path, capsys):
    over = ("--over", "train.init_from=nowhere,None")
    assert main([*words, *over, "--config.train.steps=2", f"--workdir={tmp_path}", "--processes=1"]) == 2
    out, err = capsys.readouterr()
    assert "best: trial 1" in out and "1 of 2 units failed, first trial 0: " in err.splitlines()[-1]
    assert "nowhere" in (tmp_path / "trial000/step2.txt").read_text(encoding="utf-8") and "1 done, 1 failed" in (
        tmp_path / "report.md"
    ).read_text(encoding="utf-8")


def test_a_figure_that_runs_lack_costs_one_trial_and_another_ranks_it(words, tmp_path, capsys, monkeypatch):
    command = [*words, "--over", "optimizer.learning_rate=0.01,0.02", "--config.train.steps=2", f"--workdir={tmp_path}"]
    for _ in range(2):
        assert main([*command, "--metric=f1", "--processes=1"]) == 2
        err = capsys.readouterr().err
        said = "error: the runs have no held-out 'f1', but accuracy, loss, perplexity, bits_per_byte; "
        assert err.startswith(said) and err.count("\n") == 1
    assert [p.parent.name for p in tmp_path.glob("trial*/step*")] == ["trial000"]
    for metric in ("accuracy", "loss"):
        assert main([*command, f"--metric={metric}", "--processes=1"]) == 0
        assert f": held-out {metric} " in capsys.readouterr().out
        monkeypatch.setattr("lm.recipes.train", None)  # nothing is trained again
    found = [json.loads(p.read_text(encoding="utf-8"))["heldout"] for p in tmp_path.glob("trial*/step2.json")]
    assert len(found) == 2 and all({"loss", "accuracy", "bits_per_byte"} <= heldout.keys() for heldout in found)


def test_a_sweep_that_is_interrupted_leaves_a_report(words, tmp_path, monkeypatch):
    def interrupted(run, *args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("lm.recipes.train", interrupted)
    over = ("--over", "optimizer.learning_rate=0.01,0.02", "--processes=1")
    assert main([*words, *over, f"--workdir={tmp_path}"]) == 130
    assert "2 to do" in (tmp_path / "report.md").read_text(encoding="utf-8")


# ------------------------------------------------------------------------------------------------------------ range test


def test_a_range_test_of_one_rate_is_a_run_at_that_rate(words, tmp_path):
    overrides = dict(word.removeprefix("--config.").split("=", 1) for word in words if word.startswith("--config."))
    constant = {"optimizer.schedule.kind": "constant", "optimizer.schedule.warmup": "0", "train.steps": "8"}
    run = resolve.load(words[0].removeprefix("--config="), overrides | constant | {"log.samples": "()"})
    startup.after_jax()
    recipes.train(run, tmp_path, quiet=True)
    plain = [row["loss"] for row in jsonl.read(tmp_path / "metrics.jsonl") if "loss" in row]
    found = range_test.losses(run, 0.01, 0.01 * (1 + 1e-9), 7)
    assert found.losses == pytest.approx(plain[1:], rel=1e-5) and found.rates == pytest.approx(0.01, rel=1e-6)


def test_a_range_test_suggests_a_rate_and_ends_where_the_loss_has_risen(words, tmp_path, capsys):
    assert main([*words, "--range_test=1e-4,1e4", "--steps=40", f"--workdir={tmp_path}"]) == 0
    found = json.loads((tmp_path / "range.json").read_text(encoding="utf-8"))
    assert found["rates"] == pytest.approx(np.geomspace(1e-4, 1e4, 40)[: len(found["rates"])]) and 5 < len(found["rates"]) < 40
    assert 1e-4 < found["suggested"] < 1 and found["note"] == ""
    out = capsys.readouterr().out
    assert "Suggested: " in out and "--config.optimizer.learning_rate=" in out and (tmp_path / "range.png").exists()
