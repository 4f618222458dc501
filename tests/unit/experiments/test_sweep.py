"""What a sweep tries, and which trials are halved. No model is trained."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from experiments.sweep import space, trials
from experiments.sweep.__main__ import main, rungs_of
from experiments.sweep.trials import Trial
from lm import moved
from lm.config import resolve
from lm.errors import UserError
from tests.swept import FILE, RATE, done, sweep


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
        (["--range_test=1e-4,1e6"], "give the lowest and the highest rate, above 0 and below 1,000,000"),
        (["--range_test=1e-4,1", "--seed=0"], "--range_test is one run, and --seed is for sweeps"),
        (["--range_test=1e-4,1", "--processes=2"], "--range_test is one run, and --processes is for sweeps"),
        (["--over", "train.batch_size=8,16", "--steps=20"], "--steps=20 is of --range_test: give --config.train.steps=20"),
        (["--over", "train.batch_size=8,16", "--metric=acuracy", "--dry_run"], "did you mean 'accuracy'?"),
        (["--over", "train.batch_size=8,16", "--metric=tokens", "--dry_run"], "no figure that trials can be ranked by"),
        (["--over", "train.batch_size=8,16", "--config.data.holdout=0"], "give --config.data.holdout=0.05"),
        (["--over", "data.holdout=0.1,0.2"], "trials that differ in data.holdout are tested on other data"),
        (["--over", "evaluate.rows=4,8"], "trials that differ in evaluate.rows are tested on other data"),
        (["--over", "data.sources.tiny.path=a,b"], "trials that differ in data.sources.tiny.path are tested on other data"),
        (
            ["--over", "data.tokenizer.vocab_size=300,400", "--metric=loss"],
            "'loss' does not compare between trials that differ in data.tokenizer.vocab_size, on which its scale depends: give "
            "--metric=bits_per_byte",
        ),
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
    failed.error.write_text("it broke\n\ntraceback", encoding="utf-8")
    assert failed.outcome().why == "it broke"
    assert trials.promoted(of, tmp_path, 1) == {1, 2}
    assert [Trial(of, tmp_path, k, 1).outcome() is None for k in range(4)] == [False, True, True, False]
    narrow = replace(of, eta=4)
    done(narrow, tmp_path / "narrow", 0, {0: "loss is nan", 1: 2.0, 2: 2.0, 3: 3.0})
    assert trials.promoted(narrow, tmp_path / "narrow", 1) == {1}
    all_gone = sweep((1, 2), rungs=(2,))
    done(all_gone, tmp_path / "gone", 0, {0: "nan", 1: "nan"})
    assert trials.promoted(all_gone, tmp_path / "gone", 1) == set()
    assert all(job.outcome() is not None for job in trials.jobs_of(all_gone, tmp_path / "gone"))


def test_who_goes_on_is_decided_once(tmp_path):
    """A trial that failed and is tried again finds its rung closed."""
    of = sweep((1, 2, 3, 4), rungs=(2,), eta=2)
    done(of, tmp_path, 0, {0: 3.0, 1: 2.0, 2: 1.0})
    failed = Trial(of, tmp_path, 3, 0)
    failed.folder.mkdir()
    failed.error.write_text("it broke", encoding="utf-8")
    assert trials.promoted(of, tmp_path, 1) == {1, 2}
    assert json.loads((tmp_path / "rung1.json").read_text(encoding="utf-8")) == {"step": 2, "chosen": [2, 1]}
    failed.error.unlink()  # as the next command does
    assert failed.outcome()["flags"] == {"left": "left at step 2, where it had failed"}
    done(of, tmp_path, 0, {3: 0.5})  # by a worker that had begun before
    assert trials.promoted(of, tmp_path, 1) == {1, 2} and Trial(of, tmp_path, 3, 1).outcome()["flags"]["left"]


def test_a_look_at_many_trials_is_not_exponential(tmp_path, monkeypatch):
    of = sweep([0.001 * (k + 1) for k in range(81)], rungs=(1, 3, 9, 27), eta=3, steps=81)
    for rung in range(4):
        kept = range(81 // 3**rung)
        done(of, tmp_path, rung, {k: float(k) for k in kept if (rung, k) != (3, 0)})
    ranked, calls = trials.ranked, []
    monkeypatch.setattr(trials, "ranked", lambda *args: calls.append(args[-1]) or ranked(*args))
    for _ in range(2):
        open_jobs = [(t.number, t.rung) for t in trials.jobs_of(of, tmp_path) if t.outcome() is None and t.ready()]
        assert open_jobs == [(0, 3)]
    assert calls == [0, 1, 2]  # once for each rung that has closed
    done(of, tmp_path, 3, {0: 0.0})
    assert [(t.number, t.rung) for t in trials.jobs_of(of, tmp_path) if t.outcome() is None and t.ready()] == [(0, 4)]


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


def test_a_sweep_of_an_earlier_version_is_read_under_the_names_of_now(tmp_path, monkeypatch):
    of = sweep()
    trials.remember(of, tmp_path)
    file = tmp_path / "sweep.json"
    file.write_text(file.read_text(encoding="utf-8").replace('"batch_size": 4', '"rows": 4'), encoding="utf-8")
    with pytest.raises(UserError, match="unknown key config.train.rows"):
        trials.read(tmp_path)
    monkeypatch.setitem(moved.KEYS, "Train.rows", "train.batch_size")
    assert [t.run for t in trials.read(tmp_path).trials] == [t.run for t in of.trials]
