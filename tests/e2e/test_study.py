"""The runner of studies: equal cost, going on after a kill with the same results, one runner beside another."""

import json
import os
import platform
import signal
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import jax
import pytest

from experiments import run, workers
from experiments.plan import earlier, planned, power_table
from experiments.run import execute, main
from experiments.units import do, finished, folder, jobs_of, load_study, parse_shard, studies, units, work
from lm import config, saved
from lm.errors import UserError
from lm.training import jsonl
from tests.e2e.tiny_study import study
from tests.processes import wait_for

ROOT = Path(__file__).parents[2]


def results(workdir: Path) -> dict:
    """All that the reports are made of but the clock."""
    found = {p.parent: json.loads(p.read_text()) for p in workdir.glob("*/*/result.json")}
    for result in found.values():
        assert result["ledger"].pop("device_seconds") > 0 and result["ledger"].pop("core_seconds") > 0
    return {f"{p.parent.name}/{p.name}": result for p, result in found.items()}


@pytest.fixture(scope="session")
def whole(corpus, tmp_path_factory):
    """A study that nothing disturbed."""
    workdir = tmp_path_factory.mktemp("study")
    assert execute(study(corpus), workdir)
    return workdir


@pytest.mark.parametrize("match", ["flops", "seen"])
def test_cells_cost_the_same_within_a_hundredth(corpus, whole, tmp_path, match):
    names = {"flops": "model_flops", "seen": "tokens_seen"}
    budget = {"flops": 3e9, "seen": 13_000}[match]
    made = study(corpus, match=match, budget=budget)
    workdir = whole
    if match != "flops":
        workdir = tmp_path
        assert execute(made, workdir)
    for name, cell in made.cells.items():
        spent = json.loads((folder(workdir, (name, 0)) / "result.json").read_text())["ledger"][names[match]]
        assert spent == pytest.approx(budget * cell.share, rel=0.01), name


def test_a_budget_that_whole_steps_miss_is_refused(corpus, tmp_path):
    with pytest.raises(UserError, match="miss the budget of .* by over 1 %; raise it"):
        execute(study(corpus, budget=3e8), tmp_path)


@pytest.mark.parametrize("name", ["causal", "spans"])
def test_a_table_of_plans_estimates_the_steps(corpus, tmp_path, name):
    made = study(corpus)
    exact, about = (planned(made, (name, 0), tmp_path, sample=sample).train.steps for sample in (None, 256))
    assert about == pytest.approx(exact, rel=0.02) and exact > 50


def test_the_power_is_that_of_earlier_results(corpus, tmp_path):
    made = study(corpus, seeds=3)
    assert "No earlier results" in power_table(made, earlier(made, tmp_path))
    for cell, of_seeds in {"causal": (0.30, 0.31), "spans": (0.20, 0.22)}.items():
        for seed, accuracy in enumerate(of_seeds):
            place = folder(tmp_path, (cell, seed))
            place.mkdir(parents=True)
            result = {"cell": cell, "seed": seed, "metrics": {"heldout/accuracy": accuracy}}
            (place / "result.json").write_text(json.dumps(result))
    table = power_table(made, earlier(made, tmp_path))
    assert "What 3 seeds can find" in table and "| causal > spans | accuracy | 0.0112 |" in table


def test_a_cell_starts_from_the_end_of_another(corpus, whole):
    assert units(study(corpus, seeds=2))[:4] == [("causal", 0), ("later", 0), ("spans", 0), ("causal", 1)]
    first, then = (folder(whole, (name, 0)) / "run" for name in ("causal", "later"))
    assert json.loads((then / "config.json").read_text())["train"]["init_from"] == str(first)
    fresh, adapted = ([r["loss"] for r in jsonl.read(run / "metrics.jsonl") if "loss" in r] for run in (first, then))
    assert adapted[0] < fresh[0] - 0.5


def test_a_cell_reads_the_run_of_another(corpus, whole, tmp_path):
    causal = study(corpus).cells["causal"]
    short = replace(causal, run=replace(causal.run, train=replace(causal.run.train, steps=2)))
    student = replace(short, run=replace(short.run, recipe=config.Distill("unset")), reads={"recipe.teacher": "teacher"})
    made = replace(study(corpus, match=None, seeds=2), cells={"student": student, "teacher": short}, relations=())
    assert units(made) == [("teacher", 0), ("student", 0), ("teacher", 1), ("student", 1)]
    assert made.root("teacher") == made.root("student") and all(len(jobs_of(made, tmp_path, (i, 2))) == 2 for i in range(2))
    other = replace(made, cells=made.cells | {"teacher": replace(short, share=0.0)})
    assert other.mark("student") != made.mark("student")
    assert execute(replace(made, seeds=1), tmp_path)
    read = json.loads((folder(tmp_path, ("student", 0)) / "run/config.json").read_text())["recipe"]["teacher"]
    assert read == str(folder(tmp_path, ("teacher", 0)) / "run")
    with pytest.raises(UserError, match="recipe.teacher='teach'; did you mean 'teacher'"):
        replace(made, cells=made.cells | {"student": replace(student, reads={"recipe.teacher": "teach"})})


def test_a_floor_is_measured_at_its_first_parameters(corpus, tmp_path):
    causal = study(corpus).cells["causal"]
    made = replace(study(corpus), cells={"none": replace(causal, share=0.0)}, relations=())
    assert execute(made, tmp_path)
    result = json.loads((folder(tmp_path, ("none", 0)) / "result.json").read_text())
    assert result["curve"] == [] and result["ledger"]["model_flops"] == result["ledger"]["tokens_seen"] == 0
    assert 5 < result["metrics"]["heldout/loss"] < 8  # log 512 is 6.2
    assert result["made_with"]["jax"] == jax.__version__ and result["made_with"]["python"] == platform.python_version()
    assert saved.open(folder(tmp_path, ("none", 0)) / "run").step == 0  # that a fine-tuning starts from


def test_a_trained_unit_that_is_a_fine_tuning_is_measured_later(tmp_path):
    made = load_study("grokking", {})
    name, cell = next(iter(made.cells.items()))
    cell = replace(cell, run=replace(cell.run, train=replace(cell.run.train, steps=1)), items={})
    made = replace(made, cells={name: cell}, relations=(), gates=())
    first = do(made, (name, 0), tmp_path)
    (folder(tmp_path, (name, 0)) / "result.json").unlink()
    again = do(made, (name, 0), tmp_path)
    assert again["metrics"] == first["metrics"]


def test_a_cell_that_names_no_other_is_refused(corpus):
    made = study(corpus)
    with pytest.raises(UserError, match="cell 'causal' has floor='cuasal'; did you mean 'causal'"):
        replace(made, cells=made.cells | {"causal": replace(made.cells["causal"], floor="cuasal")})


def test_killed_and_started_again_gives_the_same(corpus, whole, tmp_path):
    command = [sys.executable, str(ROOT / "tests/e2e/tiny_study.py"), str(tmp_path), str(corpus)]
    env = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(corpus / "compiled")}
    process = subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL)
    begun = ("causal/seed0/result.json", "later/seed0/run/metrics.jsonl")  # one cell is done, and another trains
    wait_for(lambda: all((tmp_path / file).exists() for file in begun), process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = (tmp_path / "causal/seed0/result.json").stat().st_mtime_ns
    with warnings.catch_warnings():  # killed before its first checkpoint, a run warns that it starts over
        warnings.filterwarnings("ignore", "(?s).*no checkpoint: the run starts over")
        assert execute(study(corpus), tmp_path)
    assert (tmp_path / "causal/seed0/result.json").stat().st_mtime_ns == before
    ours, theirs = results(tmp_path), results(whole)
    assert len(ours) == 3 and ours == theirs


def test_shards_together_do_all_and_wait_for_what_they_start_from(corpus, whole):
    made = study(corpus)
    parts = [[job.unit for job, _ in work(jobs_of(made, whole, (i, 2)))] for i in range(2)]
    assert sorted(parts[0] + parts[1]) == sorted(units(made)) and not set(parts[0]) & set(parts[1])


def test_results_of_other_settings_are_not_mixed_in(corpus, whole):
    with pytest.raises(UserError, match="made with other settings"):
        finished(study(corpus, budget=4e9), ("causal", 0), whole)


@pytest.fixture
def tiny(corpus, tmp_path, monkeypatch):
    """Studies on Python's path: `tiny`, whose second cell fails and which a third starts from, and `broken`."""
    for name, text in {"tiny": TINY, "broken": "def study(seeds=1):\n    raise ValueError('no such luck')\n"}.items():
        (tmp_path / "experiments" / name).mkdir(parents=True)
        (tmp_path / "experiments" / name / "study.py").write_text(text)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    monkeypatch.setenv("CORPUS", str(corpus))
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(corpus / "compiled"))
    monkeypatch.setitem(run.SUITES, "laptop", ("broken", "tiny"))
    yield tmp_path / "runs"
    for name in ("tiny", "broken"):
        sys.modules.pop(f"experiments.{name}.study", None)


TINY = """
import os
from dataclasses import replace
from pathlib import Path
from tests.e2e import tiny_study

def study(seeds=1):
    made = tiny_study.study(Path(os.environ["CORPUS"]), seeds=seeds)
    causal = made.cells["causal"]
    cells = {"good": causal, "bad": replace(causal, share=0.01), "after": replace(causal, start="bad")}
    return replace(made, cells=cells, relations=())
"""


def test_workers_go_on_after_a_unit_that_fails(tiny, capsys):
    assert "tiny" in studies() and main(["tiny", "--processes=2", f"--workdir={tiny}"]) == 2
    err = capsys.readouterr().err
    assert "tiny/bad seed 0 failed: " in err and "tiny/after seed 0 failed: 'bad', which it needs, failed" in err
    assert err.splitlines()[-1].startswith("error: 2 of 3 units failed, first tiny/bad seed 0: ")
    assert "over 1 %; raise it" in (tiny / "bad/seed0/error.txt").read_text()
    assert (tiny / "good/seed0/result.json").exists() and "1 of 3 runs are done" in (tiny / "report.md").read_text()


def test_a_study_that_raises_does_not_stop_a_suite(tiny, capsys):
    assert main(["laptop", "--dry_run", f"--workdir={tiny}"]) == 2
    _, err = capsys.readouterr()
    assert "ValueError: no such luck" in err and "broken, tiny did not run" in err.splitlines()[-1]  # tiny: misses its budget


def test_tuned_cells_are_planned_before_the_model_that_they_go_on_from_is_there(tmp_path, capsys):
    assert main(["rewards", "--dry_run", f"--workdir={tmp_path}"]) == 0
    table = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    sizes = {line[0].strip("| "): line[1] for line in table}
    assert (
        sizes["base model"].replace(",", "").isdigit()
        and sizes["GRPO"] == sizes["fine-tuned on worked answers"] == "as of base model"
    )


def test_a_worker_that_dies_is_reported(tmp_path):
    worker = workers.Worker("worker 1", [tmp_path], "0/1", workers.cores(), tmp_path / "worker1.log")
    worker.process.wait()
    assert worker.end.startswith("worker 1 ended with exit code 2: error: ") and "has no study.json" in worker.end


def test_the_suites_studies_are_there():
    for names in run.SUITES.values():
        assert set(names) <= set(studies()) and len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["scalling"], "did you mean 'scaling'"),
        (["scaling", "--set", "seed=3"], "seed"),
        (["scaling", "--set", "seeds"], "NAME=VALUE"),
        (["scaling", "--shard=2/2"], "I/N"),
        (["scaling", "--processes=0"], "--processes"),
        (["labtop"], "did you mean 'laptop'"),
    ],
)
def test_mistakes_take_one_line(words, said, capsys):
    assert main(words) == 2
    err = capsys.readouterr().err
    assert said in err and len(err.splitlines()) == 1


def test_shard():
    assert parse_shard("1/4") == (1, 4)
