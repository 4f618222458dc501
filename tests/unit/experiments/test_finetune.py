"""Fine-tunings of a study: which settings are chosen, by what, and what is made of several seeds."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from experiments import finetune
from experiments.finetune import choose, fine_tune, tuning
from experiments.study import Finetune, Task
from lm import config
from lm.config import resolve
from lm.errors import Diverged

CELL = config.Run(config.Model(8, 8), train=config.Train(seed=3), data=config.Data(cache="elsewhere"))


@pytest.mark.parametrize("name,kind,form", [("topics", "package", "labelled"), ("spans", "cloze", "pair")])
def test_a_tasks_fine_tuning_is_a_run(name, kind, form, tmp_path):
    """Everything that decides its result, from the task's settings and the cell's run."""
    s = Finetune(
        steps=50,
        batch_size=4,
        learning_rate=0.5,
        weight_decay=0.25,
        length=20,
        answer=6,
        rows=7,
        labels=9,
        compare="symbols",
    )
    run = tuning(Task(name, "text", s), s, CELL, tmp_path, seed=8, develop=5)
    ((_, source),) = run.data.sources.items()
    assert (source.kind, source.path, source.format, run.data.cache) == (kind, name, form, "elsewhere")
    assert run.recipe == config.Finetune(how="text", length=20, answer=6, labels=9, develop=5, compare="symbols")
    assert (run.train.steps, run.train.batch_size, run.train.seed, run.train.init_from) == (50, 4, 8, str(tmp_path))
    assert (run.optimizer.learning_rate, run.optimizer.weight_decay, run.evaluate.rows) == (0.5, 0.25, 7)
    assert run.optimizer.schedule == config.Schedule("linear", warmup=5, final=0.0) and run.model is None
    assert resolve.from_json(resolve.to_json(run)) == run
    mine = config.Data(sources={"mine": config.Source(kind="jsonl", path="mine.jsonl", format="pair")})
    assert tuning(Task("mine", "text", s, mine), s, CELL, tmp_path, seed=0).data == mine


@pytest.fixture
def trained(monkeypatch):
    """Replaces training: `trained.reached[rate]` is the held-out accuracy and loss of a run; None diverges. Notes the runs."""
    noted = SimpleNamespace(reached={}, runs=[])

    def train(run, workdir):
        noted.runs.append(run)
        accuracy, nll = noted.reached[run.optimizer.learning_rate] or (0, 0)
        if noted.reached[run.optimizer.learning_rate] is None:
            raise Diverged("it did")
        workdir.mkdir(parents=True)
        summary = {"model_flops": run.train.steps * 10.0, "heldout": {"accuracy": accuracy, "nll": nll}}
        (workdir / "summary.json").write_text(json.dumps(summary))

    monkeypatch.setattr(finetune, "train", train)
    return noted


GRID = ((0.1, 10), (0.2, 10), (0.3, 20))


@pytest.mark.parametrize(
    "reached,best",
    [
        (((0.5, 1.0), (0.7, 2.0), (0.6, 0.1)), 0.2),
        (((0.5, 1.0), (0.5, 0.9), (0.5, 0.8)), 0.3),
        (((0.1, 9.0), None, None), 0.1),
    ],
)
def test_the_most_accurate_setting_is_chosen_on_records_that_are_set_apart(reached, best, trained, tmp_path):
    trained.reached = dict(zip((0.1, 0.2, 0.3), reached, strict=True))
    task = Task("topics", "head", Finetune(grid=GRID, rows=11, labels=9))
    chosen, flops = choose(task, CELL, tmp_path, tmp_path)
    assert (chosen.learning_rate, chosen.steps) in GRID and chosen.learning_rate == best
    assert flops == sum(10.0 * steps for (_, steps), found in zip(GRID, reached, strict=True) if found)
    assert {run.recipe.develop for run in trained.runs} == {11} and {run.train.seed for run in trained.runs} == {3999}


def test_a_grid_without_a_choice_costs_nothing(trained, tmp_path):
    for grid, expected in (((), (1e-3, 200)), (((0.5, 7),), (0.5, 7))):
        chosen, flops = choose(Task("topics", "head", Finetune(grid=grid)), CELL, tmp_path, tmp_path)
        assert (chosen.learning_rate, chosen.steps) == expected and flops == 0 and not trained.runs
    trained.reached = {0.1: None, 0.2: None, 0.3: None}
    with pytest.raises(Diverged, match="every setting of the grid of task 'topics' diverged"):
        choose(Task("topics", "head", Finetune(grid=GRID)), CELL, tmp_path, tmp_path)


def test_seeds_are_averaged_and_each_is_kept(trained, tmp_path, monkeypatch):
    trained.reached = {0.1: (0.5, 1.0), 0.2: (0.6, 1.0), 0.3: (0.4, 1.0)}
    values = [np.array([1.0, 0.0]), np.array([1.0, 1.0]), np.array([0.0, 0.0])]
    folders = [tmp_path / f"seed{k}" for k in range(3)]
    monkeypatch.setattr(finetune, "tested", lambda folder: {"accuracy": values[folders.index(folder)]})
    monkeypatch.setattr(
        finetune, "facts", lambda _, folder: {"accuracy": values[folders.index(folder)].mean(), "model_flops": 100.0}
    )
    found = fine_tune(Task("topics", "head", Finetune(grid=GRID, seeds=3)), CELL, tmp_path, tmp_path)
    assert found.metrics["topics/accuracy"] == 0.5 and found.nested["topics/accuracy"] == [0.5, 1.0, 0.0]
    assert found.items["topics/accuracy"] == pytest.approx([2 / 3, 1 / 3]) and found.flops == 400 + 300
    assert (found.metrics["topics/learning_rate"], found.metrics["topics/steps"]) == (0.2, 10)
    last = trained.runs[-3:]
    assert [run.train.seed for run in last] == [3000, 3001, 3002]
    assert all(run.recipe.develop is None and run.optimizer.learning_rate == 0.2 for run in last)
