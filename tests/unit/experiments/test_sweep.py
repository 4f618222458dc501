"""What a sweep tries, which trials are halved, its report, and what a range test suggests. No model is trained."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from experiments.sweep import range_test, report, space, trials
from experiments.sweep.__main__ import listed, main, rungs_of
from experiments.sweep.board import TrialBoard
from experiments.sweep.trials import Setting, Sweep, Trial
from lm import config
from lm.config import resolve
from lm.errors import UserError

FILE = "tests/e2e/tiny.py"
RATE = "optimizer.learning_rate"


def axes(*texts):
    return [space.parse(text, FILE, {}) for text in texts]


# ---------------------------------------------------------------------------------------------------------- what is tried


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("train.batch=8,16", "unknown key config.train.batch; did you mean 'batch_size'?"),
        ("optimiser.learning_rate=1,2", "unknown key config.optimiser; did you mean 'optimizer'?"),
        ("train.batch_size=8,x", "config.train.batch_size is 'x'; it must be int"),
        ("train.batch_size=8,0", "config.train.batch_size=0 is too small"),
        ("train.batch_size=log(1e-4,1e-2)", "takes whole numbers: give whole ends, such as log(8,64)"),
        ("optimizer.learning_rate=log(-1,1)", "begins at -1, which has no logarithm"),
        ("optimizer.learning_rate=uniform(-1,1)", "config.optimizer.learning_rate=-1.0 is too small"),
        ("optimizer.learning_rate=log(1e-2,1e-4)", "give the smaller end first"),
        ("optimizer.learning_rate=lag(1,2)", "there is no range 'lag'; did you mean 'log'?"),
        ("optimizer.learning_rate=log(1e-4)", "is no range: give its ends"),
        ("optimizer.learning_rate=log(a,b)", "is no range: give its ends"),
        ("optimizer.learning_rate=log(1e-4,1e-2,1)", "give an int of 2 or more"),
        ("train.batch_size=8,8", "has 8 twice"),
        ("train.batch_size=8", "has one value: give it as --config.train.batch_size=8"),
        ("train.batch_size", "give KEY=VALUES, such as "),
        ("=8,16", "give KEY=VALUES, such as "),
    ],
)
def test_a_mistake_in_over_takes_one_line(text, said):
    with pytest.raises(UserError) as error:
        space.parse(text, FILE, {})
    assert str(error.value).startswith("--over") and said in str(error.value)


def test_lists_keep_their_types_and_a_flag_reads_them_back():
    given = {
        "optimizer.name": ("adamw", "lion"),
        "optimizer.clip": (None, 1.0),
        "log.samples": (("a, b",), ()),
        "train.seed": (0, 1),
        "data.cache": ("1", "a b"),  # a text that would be read as a number is quoted
    }
    written = {"data.cache": "'1',a b", "log.samples": "('a, b',),()"}
    for key, values in given.items():
        text = written.get(key, ",".join(map(str, values)))
        assert space.parse(f"config.{key}={text}", FILE, {}).values == values
        for value in values:
            run = space.made(FILE, {}, {key: value})
            assert resolve.flatten(resolve.to_dict(run))[key] == value


def test_a_range_with_a_count_is_evenly_spaced():
    log, uniform, whole = axes(
        f"{RATE}=log(1e-4,1e-2,5)", "model.decoder.blocks.L.dropout=uniform(0,0.4,3)", "train.steps=log(10,1000,3)"
    )
    assert log.values == pytest.approx(np.geomspace(1e-4, 1e-2, 5), rel=1e-3)
    assert uniform.values == (0.0, 0.2, 0.4) and whole.values == (10, 100, 1000)
    assert all(type(x) is int for x in whole.values)
    tried = space.grid([log, uniform])
    assert len(tried) == 15 and tried[0] == {RATE: 1e-4, uniform.key: 0.0} and tried[1][uniform.key] == 0.2


def test_draws_are_a_function_of_the_seed_and_even_in_the_logarithm():
    of = axes(f"{RATE}=log(1e-4,1e-2)", "train.batch_size=8,16", "train.steps=log(10,1000)")
    first = space.drawn(of, 200, 0)
    assert space.drawn(of, 20, 0) == first[:20] and space.drawn(of, 20, 1) != first[:20]
    rates = np.array([values[RATE] for values in first])
    assert stats.kstest(np.log(rates), stats.uniform(np.log(1e-4), np.log(100)).cdf).pvalue > 0.01
    assert 1e-4 <= rates.min() and rates.max() <= 1e-2
    assert {values["train.batch_size"] for values in first} == {8, 16}
    assert all(type(values["train.steps"]) is int and 10 <= values["train.steps"] <= 1000 for values in first)


def test_settings_are_not_tried_twice():
    of = axes("train.batch_size=8,16", "optimizer.name=adamw,lion")
    assert len({repr(values) for values in space.drawn(of, 4, 0)}) == 4
    with pytest.raises(UserError, match="--trials=5: --over has 4 settings in all"):
        space.drawn(of, 5, 0)
    with pytest.raises(UserError, match=r"a grid needs values: give log\(0.0001,0.01,5\)"):
        space.grid(axes(f"{RATE}=log(1e-4,1e-2)"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "--over is missing"),
        (["--over", "train.batch_size=8,16", "--over", "train.batch_size=4,2"], "--over train.batch_size is given twice"),
        (["--over", "train.batch_size=8,16", "--eta=2"], "--eta=2 is of --search=halving"),
        (["--over", "train.batch_size=8,16", "--first=2"], "--first=2 is of --search=halving"),
        (
            ["--over", "train.batch_size=8,16", "--search=halving"],
            "nothing to halve in 2 trials: give 3 or more, or a smaller --eta",
        ),
        (["--over", "train.steps=8,16,32", "--search=halving"], "leave train.steps out of --over"),
        (["--over", "train.batch_size=8,16", "--search=grid", "--trials=3"], "the grid has 2"),
        (["--over", "objective.kind=causal,teacherless"], "give --metric"),
        (["--over", "train.batch_size=8,16", "--range_test=1,2"], "--range_test is one run, and --over is for sweeps"),
        (["--range_test=2,1"], "give the lowest and the highest rate"),
        (["--range_test=0,1"], "give the lowest and the highest rate"),
        (["--range_test=1e-3"], "give the lowest and the highest rate"),
    ],
)
def test_flags_that_do_not_go_together(words, said, capsys):
    assert main([f"--config={FILE}", *words]) == 2
    err = capsys.readouterr().err
    assert said in err and err.startswith("error: ") and err.count("\n") == 1


def test_a_dry_run_lists_the_trials(capsys, tmp_path):
    words = [f"--config={FILE}", f"--workdir={tmp_path}/none", "--dry_run", "--config.train.steps=270"]
    assert main([*words, "--over", f"{RATE}=log(1e-4,1e-2,3)", "--over", "train.batch_size=8,16"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[:2] == ["trial   0  learning_rate=0.0001  batch_size=8", "trial   1  learning_rate=0.0001  batch_size=16"]
    assert out[-1] == "6 trials (grid), 1,620 steps in all, judged by held-out bits per byte" and len(out) == 7
    assert main([*words, "--over", f"{RATE}=log(1e-4,1e-2)", "--trials=27", "--search=halving"]) == 0
    out = capsys.readouterr().out.splitlines()
    # 27 x 10 + 9 x 20 + 3 x 60 + 1 x 180
    assert out[-2:] == [
        "rungs: 27 to step 10, 9 to step 30, 3 to step 90, 1 to step 270",
        "27 trials (halving), 810 steps in all, judged by held-out bits per byte",
    ]
    assert not (tmp_path / "none").exists()


def test_rungs():
    runs = lambda count, steps: [resolve.load(FILE, {"train.steps": str(steps)})] * count  # with a warm-up of 5 steps
    assert rungs_of(runs(27, 270), 3) == (10, 30, 90) and rungs_of(runs(16, 100), 4) == (6, 25)
    assert rungs_of(runs(15, 100), 4) == (25,) and rungs_of(runs(27, 270), 3, first=11) == (30, 90)
    assert rungs_of(runs(27, 108), 3) == (12, 36) and rungs_of(runs(27, 108), 3, first=1) == (4, 12, 36)
    with pytest.raises(UserError, match="after 1, 4 of 12 steps, within the warm-up of 5 steps: give more steps, or --first=4"):
        rungs_of(runs(9, 12), 3)


# ----------------------------------------------------------------------------------------------------------- halving


def sweep(values=(0.1, 0.2, 0.3, 0.4), rungs=(), eta=2, metric="bits_per_byte", steps=8, **changes):
    made = [space.made(FILE, {"train.steps": str(steps)}, {RATE: x}) for x in values]
    settings = tuple(Setting({RATE: str(x)}, run) for x, run in zip(values, made, strict=True))
    search = "halving" if rungs else "grid"
    return replace(Sweep(FILE, {}, search, 0, {RATE: False}, metric, tuple(rungs), eta, settings), **changes)


def result(value, metric="bits_per_byte", **flags):
    ledger = {"core_seconds": 2.0, "seconds": 1.5, "model_flops": 3e9}
    return {"metrics": {} if value is None else {metric: value}, "flags": flags, "ledger": ledger}


def done(of, workdir, rung, values, metric="bits_per_byte"):
    """Results of a rung by number; a text is why a trial diverged."""
    for number, value in values.items():
        trial = Trial(of, workdir, number, rung)
        trial.folder.mkdir(parents=True, exist_ok=True)
        found = result(None, diverged=value) if isinstance(value, str) else result(value, metric)
        trial.result.write_text(json.dumps(found))


@pytest.mark.parametrize(("metric", "kept"), [("bits_per_byte", {1, 3}), ("accuracy", {0, 4})])
def test_the_best_of_a_rung_go_on_once_all_have_reached_it(tmp_path, metric, kept):
    of = sweep((1, 2, 3, 4, 5), rungs=(2, 4), metric=metric)
    jobs = {(t.number, t.rung): t for t in trials.jobs_of(of, tmp_path)}
    assert len(jobs) == 15 and [jobs[0, rung].steps for rung in range(3)] == [2, 4, 8]
    done(of, tmp_path, 0, {0: 3.0, 1: 1.0, 2: 2.5, 3: 1.5}, metric)
    assert jobs[1, 1].outcome() is None and not jobs[1, 1].ready() and jobs[4, 0].ready()
    done(of, tmp_path, 0, {4: 4.0}, metric)
    goes = {k for k in range(5) if jobs[k, 1].outcome() is None and jobs[k, 1].ready()}
    assert goes == kept and all(jobs[k, 1].outcome()["flags"] == {"left": "left at step 2"} for k in set(range(5)) - kept)
    assert jobs[2, 2].outcome()["flags"] == {"left": "left at step 2"} and jobs[1, 2].ready() is False
    values = dict(zip(sorted(kept), (1.0, 2.0), strict=True))
    done(of, tmp_path, 1, values, metric)
    last = max(values, key=values.get) if metric == "accuracy" else min(values, key=values.get)
    assert [k for k in range(5) if jobs[k, 2].outcome() is None] == [last]


def test_what_diverged_or_failed_never_goes_on_and_of_equals_the_first_does(tmp_path):
    of = sweep((1, 2, 3, 4), rungs=(2,), eta=2)
    done(of, tmp_path, 0, {0: "loss is nan", 1: 2.0, 2: 2.0})
    failed = Trial(of, tmp_path, 3, 0)
    failed.folder.mkdir()
    failed.error.write_text("it broke\n\ntraceback")
    assert failed.outcome().why == "it broke"
    assert trials.promoted(of, tmp_path, 1) == {1, 2}
    assert [Trial(of, tmp_path, k, 1).outcome() is None for k in range(4)] == [False, True, True, False]
    narrow = replace(of, eta=4)
    assert trials.promoted(narrow, tmp_path, 1) == {1}
    all_gone = sweep((1, 2), rungs=(2,))
    done(all_gone, tmp_path / "gone", 0, {0: "nan", 1: "nan"})
    assert trials.promoted(all_gone, tmp_path / "gone", 1) == set()
    assert all(job.outcome() is not None for job in trials.jobs_of(all_gone, tmp_path / "gone"))


def test_a_figure_that_is_not_finite_is_that_of_a_trial_that_diverged(tmp_path):
    trial = Trial(sweep(), tmp_path, 0, 0)
    summary = dict(
        heldout={"bits_per_byte": math.nan}, seconds={"train": 1.0}, tokens_seen=8, tokens_with_loss=8, raw_bytes=1.0
    )
    summary |= dict(model_flops=1.0, parameters=1, parameters_without_embeddings=1)
    found = trial._measured(summary)
    assert found["flags"] == {"diverged": "held-out bits_per_byte is nan"} and "metrics" not in found
    assert trial._measured(summary | {"heldout": {"bits_per_byte": 2.0}})["metrics"] == {"bits_per_byte": 2.0}
    with pytest.raises(UserError, match="no held-out 'bits_per_byte'; known: accuracy, loss: give another --metric"):
        trial._measured(summary | {"heldout": {"loss": 1.0, "accuracy": 0.5}})
    with pytest.raises(UserError, match="hold out data"):
        trial._measured(summary | {"heldout": {}})


def test_the_figure_that_trials_are_judged_by():
    run = resolve.load(FILE)
    masked = resolve.load(f"{FILE}:encoder.masked")
    assert trials.of_runs([run, run]) == "bits_per_byte" and trials.of_runs([masked]) == "loss"
    finetune = replace(run, recipe=config.Finetune("text"), train=replace(run.train, init_from="D"))
    assert trials.of_runs([finetune]) == "nll"
    with pytest.raises(UserError, match="give --metric"):
        trials.of_runs([run, masked])
    assert sweep(metric="tiny/exact").higher and not sweep(metric="tiny/loss").higher


# ------------------------------------------------------------------------------------------------------- its folder


def test_a_folder_keeps_to_its_sweep(tmp_path):
    of = sweep()
    trials.remember(of, tmp_path)
    again = trials.read(tmp_path)
    assert [t.run for t in again.trials] == [t.run for t in of.trials] and vars(again) | {"trials": 0} == vars(of) | {
        "trials": 0
    }
    trials.remember(sweep((0.1, 0.2, 0.3, 0.4, 0.5)), tmp_path)  # more trials of the same search
    for other, why in [
        (sweep(), "5 trials there, 4 here"),
        (sweep((0.1, 0.25, 0.3, 0.4, 0.5)), r"trial 1 has optimizer.learning_rate=0.2 there, 0.25 here"),
        (sweep((0.1, 0.2, 0.3, 0.4, 0.5), steps=9), "trial 0 has train.steps=8 there, 9 here"),
        (sweep((0.1, 0.2, 0.3, 0.4, 0.5), seed=1), "seed: 0 there, 1 here"),
        (
            sweep((0.1, 0.2, 0.3, 0.4, 0.5), keys={"train.seed": False}),
            "--over: optimizer.learning_rate there, train.seed here",
        ),
    ]:
        with pytest.raises(UserError, match=f"holds another sweep \\({why}\\)"):
            trials.remember(other, tmp_path)
    halved = sweep((1, 2), rungs=(2,))
    trials.remember(halved, tmp_path / "halved")
    with pytest.raises(UserError, match="2 trials there, 3 here"):  # a rung would have to be judged again
        trials.remember(sweep((1, 2, 3), rungs=(2,)), tmp_path / "halved")
    with pytest.raises(UserError, match=r"has no sweep.json"):
        trials.read(tmp_path / "none")


# ------------------------------------------------------------------------------------------------------- its report


def test_the_report_of_a_grid(tmp_path):
    of = sweep((0.1, 0.2, 0.3, 0.4), overrides={"data.cache": "a b"})
    done(of, tmp_path, 0, {0: 3.0, 1: 1.25, 2: "held-out bits_per_byte is nan"})
    said = report.write(of, tmp_path).splitlines()
    assert said[0] == "best: trial 1, learning_rate=0.2: held-out bits per byte 1.2500"
    assert said[1] == (
        f"python -m lm.train --config={FILE} '--config.data.cache=a b' --config.optimizer.learning_rate=0.2 --workdir=runs/best"
    )
    text = (tmp_path / "report.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| ")][1:]
    assert rows == [
        "| **1** | **0.2** | **1.2500** | **8** | **1.5** | **3e+09** | **2.0** | **done** |",
        "| 0 | 0.1 | 3.0000 | 8 | 1.5 | 3e+09 | 2.0 | done |",
        "| 2 | 0.3 |  | 8 | 1.5 | 3e+09 | 2.0 | diverged |",
        "| 3 | 0.4 |  | 0 |  |  | 0.0 | to do |",
    ]
    assert "2 done, 1 diverged, 1 to do" in text and "Trial 2: held-out bits\\_per\\_byte is nan" in text and said[1] in text
    assert (tmp_path / "over_optimizer_learning_rate.png").stat().st_size > 5000
    assert "data:image/png" in (tmp_path / "report.html").read_text() and "was tried" not in text
    done(of, tmp_path, 0, {3: 1.0})
    report.write(of, tmp_path)
    assert "0.4 is the largest that was tried; a larger one may be better" in (tmp_path / "report.md").read_text()


def test_the_report_of_a_halving_ranks_by_the_rung_first(tmp_path):
    of = sweep((0.1, 0.2, 0.3, 0.4), rungs=(2, 4))
    done(of, tmp_path, 0, {0: 5.0, 1: 2.0, 2: 2.5, 3: 4.0})
    done(of, tmp_path, 1, {1: 1.9, 2: 1.5})
    done(of, tmp_path, 2, {2: 1.7})
    rows = [(row.number, row.value, row.step, row.state) for row in report.table_of(of, tmp_path)]
    assert rows == [(2, 1.7, 8, "done"), (1, 1.9, 4, "left"), (3, 4.0, 2, "left"), (0, 5.0, 2, "left")]
    report.write(of, tmp_path)
    assert (tmp_path / "rungs.png").exists() and "after 2 and 4 steps the best of every 2" in (
        tmp_path / "report.md"
    ).read_text()


def test_a_report_of_nothing_and_values_that_are_no_numbers(tmp_path):
    of = sweep()
    assert report.write(of, tmp_path) == str(tmp_path / "report.md")
    runs = [resolve.load(FILE, {"optimizer.name": name}) for name in ("adamw", "lion", "muon")]
    keys = {"optimizer.name": False, "train.seed": False}
    settings = [Setting({"optimizer.name": r.optimizer.name, "train.seed": str(k)}, r) for r in runs for k in range(2)]
    named = replace(of, keys=keys, trials=tuple(settings))
    done(named, tmp_path / "named", 0, {k: 1.0 + k for k in range(6)})
    assert "best: trial 0, name=adamw  seed=0" in report.write(named, tmp_path / "named")
    assert (tmp_path / "named/over_optimizer_name.png").exists()


def test_the_board_has_a_row_for_each_trial(tmp_path):
    of = sweep((0.1, 0.2), rungs=(2,))
    board = TrialBoard(trials.jobs_of(of, tmp_path))
    first, second = (Trial(of, tmp_path, k, 0) for k in range(2))
    board.outcomes |= {str(first): result(1.5), str(second): result(None, diverged="nan")}
    table = board.table()
    assert [column.header for column in table.columns] == ["trial", "step 2", "end"]
    assert [list(column.cells) for column in table.columns] == [
        ["learning_rate=0.1", "learning_rate=0.2"],
        ["1.5000", "diverged"],
        ["", ""],
    ]
    assert board.line(first, result(1.5)) == "learning_rate=0.1  bits_per_byte 1.5"
    assert "left at step 2" in board.line(second, result(None, left="left at step 2"))
    both = replace(of, keys={"model.encoder.num_layers": False, "model.decoder.num_layers": False})
    assert both.short("model.encoder.num_layers") == "model.encoder.num_layers" and of.short(RATE) == "learning_rate"
    assert listed(of).splitlines()[-2] == "rungs: 2 to step 2, 1 to step 8"


# ------------------------------------------------------------------------------------------------------- range test


def curve(rates, noise=0.0):
    """A loss that falls fastest at 1e-3, is least near 0.1 and then rises."""
    x = np.log10(rates)
    rng = np.random.default_rng(0)
    return 7 - 2 / (1 + np.exp(-4 * (x + 3))) + 5 / (1 + np.exp(-6 * (x - 0.5))) + noise * rng.standard_normal(len(x))


@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_a_range_test_finds_the_turns_of_a_curve(noise):
    rates = np.geomspace(1e-5, 10, 200)
    found = range_test.Found(rates, curve(rates, noise))
    fine = np.geomspace(1e-5, 10, 20_001)
    exact = curve(fine)
    least, steepest = fine[np.argmin(exact)], fine[np.argmin(np.gradient(exact, np.log(fine)))]
    assert abs(np.log10(found.rates[found.steepest] / steepest)) < (0.05 if not noise else 0.3)
    assert abs(np.log10(found.rates[found.least] / least)) < (0.1 if not noise else 1.0)
    assert found.tenth == pytest.approx(found.rates[found.least] / 10) and found.note == ""
    assert found.suggested == found.rates[found.steepest]


def test_a_range_test_that_shows_nothing_says_so():
    rates = np.geomspace(1e-5, 10, 100)
    assert "begin at a lower rate" in range_test.Found(rates, np.linspace(1, 2, 100)).note
    assert "end at a higher rate" in range_test.Found(rates, np.linspace(2, 1, 100)).note


def test_the_rates_of_a_range_test_keep_their_ratio():
    run = resolve.load(FILE, {"optimizer.name": "muon", RATE: "0.02", "optimizer.adam_learning_rate": "0.005"})
    made = range_test.tested(run, 1e-4, 20)
    assert made.optimizer.learning_rate == 1e-4 and made.optimizer.adam_learning_rate == pytest.approx(2.5e-5)
    assert made.optimizer.schedule.phases(made.train.steps) == (0, 4) and made.train.steps == 21
    assert range_test.ends("1e-6, 1") == (1e-6, 1.0)
