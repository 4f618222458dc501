"""The figures that trials are judged by: which way is better, and between which runs they compare. No model is trained."""

from dataclasses import replace

import pytest

from experiments.sweep import figures, trials
from experiments.sweep.trials import Trial
from lm import config
from lm.config import resolve
from lm.errors import UserError
from tests.swept import FILE, done, sweep


def test_a_figure_that_is_not_finite_is_that_of_a_trial_that_diverged():
    assert figures.judged({"heldout": {"loss": "nan"}, "flags": {}}, "loss") == {
        "heldout": {"loss": "nan"},
        "metrics": {},
        "flags": {"diverged": "held-out loss is nan"},
    }
    found = {"heldout": {"loss": "inf", "accuracy": 0.5}, "flags": {}}
    assert figures.judged(found, "accuracy")["metrics"] == {"accuracy": 0.5}
    assert figures.judged({"flags": {"diverged": "why"}}, "loss") == {"metrics": {}, "flags": {"diverged": "why"}}
    assert figures.judged(found, "f1")["flags"] == {"lacks": "f1"}


def test_a_sweep_without_the_figure_stops_and_is_ranked_anew_by_another(tmp_path):
    of = sweep(metric="f1")
    trials.remember(of, tmp_path)
    done(of, tmp_path, 0, {0: 2.0}, "accuracy")
    with pytest.raises(
        trials.Lacks, match=r"error: the runs have no held-out 'f1', but accuracy; the same command with"
    ) as stop:
        trials.stop_if_lacking(of, tmp_path)
    assert stop.value.code == 2 and "no held-out 'f1', but accuracy" in Trial(of, tmp_path, 0, 0).outcome().why
    with pytest.raises(trials.Lacks):  # nothing more is trained
        Trial(of, tmp_path, 1, 0).do()
    other = replace(of, metric="accuracy")
    trials.remember(other, tmp_path)
    trials.stop_if_lacking(trials.read(tmp_path), tmp_path)
    assert [t.number for t in trials.ranked(other, tmp_path, 0)] == [0]
    assert "hold out data" in figures.lacking("f1", [])
    halved = sweep(rungs=(2,), metric="f1")
    trials.remember(halved, tmp_path / "halved")
    trials.remember(replace(halved, metric="accuracy"), tmp_path / "halved")  # before it has decided anything
    done(halved, tmp_path / "halved", 0, {0: 0.1, 1: 0.2, 2: 0.3, 3: 0.4}, "accuracy")
    assert trials.promoted(trials.read(tmp_path / "halved"), tmp_path / "halved", 1) == {2, 3}
    with pytest.raises(UserError, match="metric: accuracy there, loss here"):
        trials.remember(replace(halved, metric="loss"), tmp_path / "halved")


def test_which_way_is_better():
    more = ["accuracy", "margin", "reward_chosen", "log_prob_chosen", "tiny/exact", "reward/format", "later_1_accuracy"]
    less = ["loss", "nll", "bits_per_byte_bound", "perplexity", "tiny/loss", "divergence", "ece", "log_prob_rejected"]
    assert all(map(figures.higher, more)) and not any(map(figures.higher, less)) and sweep(metric="margin").higher
    assert not set(figures.HIGHER) & set(figures.LOWER)
    for name in ("kl", "items", "majority", "tokens", "lss"):
        with pytest.raises(UserError, match=f"--metric={name}: no figure that trials can be ranked by"):
            figures.higher(name)


def test_the_figure_that_trials_are_judged_by():
    run = resolve.load(FILE)
    masked = resolve.load(f"{FILE}:encoder.masked")
    assert figures.default([run, run]) == "bits_per_byte" and figures.default([masked]) == "loss"
    finetune = replace(run, recipe=config.Finetune("text"), train=replace(run.train, init_from="D"))
    assert figures.default([finetune]) == "nll"
    with pytest.raises(UserError, match="give --metric"):
        figures.default([run, masked])
    for recipe in (config.Preference("ipo"), config.Reward()):
        assert figures.default([replace(run, recipe=recipe)]) == "accuracy"


def test_a_figure_that_a_swept_key_rescales_does_not_rank():
    run = resolve.load(FILE)
    of = lambda *recipes: [replace(run, recipe=recipe) for recipe in recipes]
    betas = of(config.Preference("ipo", beta=0.1), config.Preference("ipo", beta=1.0))
    methods = of(config.Preference("dpo"), config.Preference("hinge"))
    for metric in ("loss", "margin", "reward_chosen"):
        with pytest.raises(UserError, match=f"'{metric}' does not compare .* recipe.beta, .*: give --metric=accuracy"):
            figures.check(metric, betas)
    with pytest.raises(UserError, match="recipe.method"):
        figures.check("loss", methods)
    with pytest.raises(UserError, match="recipe.method"):  # of single answers, and of pairs
        figures.check("accuracy", of(config.Preference("dpo"), config.Preference("kto")))
    figures.check("accuracy", betas)
    figures.check("accuracy", methods)
    sizes = [resolve.replaced(run, {"data.tokenizer.vocab_size": n}) for n in (300, 400)]
    figures.check("bits_per_byte", sizes)
    for metric in ("loss", "accuracy", "perplexity"):  # of tokens
        with pytest.raises(UserError, match="give --metric=bits_per_byte"):
            figures.check(metric, sizes)
    figures.check("bits_per_byte", [run, resolve.replaced(run, {"data.sources.tiny.weight": 2.0})])
    graders = [config.Policy(graders={"a": config.Grader(weight=w)}) for w in (1.0, 2.0)]
    with pytest.raises(UserError, match=r"'reward' does not compare .* recipe.graders.a.weight, .*: give --metric=exact"):
        figures.check("reward", of(*graders))
    figures.check("exact", of(*graders))
    figures.check("reward", of(config.Policy(group=4), config.Policy(group=8)))
    own = resolve.replaced(run, {"data.holdout": 0.0, "data.sources.held": {"kind": "jsonl", "path": "x", "use": "holdout"}})
    figures.check("loss", [own])


def test_figures_of_a_batch_need_equal_batches():
    run = resolve.load(f"{FILE}:encoder.contrastive")
    runs = [resolve.replaced(run, {"train.batch_size": n}) for n in (4, 8)]
    with pytest.raises(UserError, match="batches of different sizes, .*: give --config.evaluate.batch_size=4 to all"):
        figures.check("loss", runs)
    figures.check("loss", [resolve.replaced(run, {"evaluate.batch_size": 4}) for run in runs])
    figures.check("loss", [resolve.replaced(resolve.load(FILE), {"train.batch_size": n}) for n in (4, 8)])
