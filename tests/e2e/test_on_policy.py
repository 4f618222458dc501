"""On-policy distillation as a run: it resumes to the bit, a teacher of itself teaches nothing, and others are refused."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from lm import config, recipes, saved, sharding
from lm.config import resolve
from lm.errors import UserError
from lm.recipes.on_policy import OnPolicyDistillation
from lm.training.run import train

CONFIG = Path(__file__).parents[2] / "configs" / "life" / "distill.py"


@pytest.fixture(scope="module")
def taught(corpus, runs):
    """Makes a run of three steps of a student that begins as `runs / "decoder.causal"`."""
    questions = corpus / "asked.jsonl"
    lines = (corpus / "tiny.jsonl").read_text(encoding="utf-8").splitlines()
    pairs = [dict(zip(("question", "answer"), json.loads(line)["text"].split(), strict=False)) for line in lines]
    questions.write_text("\n".join(map(json.dumps, pairs)), encoding="utf-8")

    def make(teacher, **changes):
        settings = {"data.sources": {"mine": dict(kind="jsonl", path=str(questions), format="pair")}, "log.every": 1}
        settings |= {"data.cache": f"{corpus}/cache", "data.tokenizer": dict(vocab_size=400), "log.tensorboard": False}
        settings |= {
            "train.init_from": str(runs / "decoder.causal"),
            "train.steps": 3,
            "train.batch_size": 4,
            "recipe.group": 2,
        }
        settings |= {"recipe.teacher": str(teacher), "checkpoint.every": 1, "evaluate.every": None, "evaluate.rows": 4}
        changes = {name.replace("__", "."): value for name, value in changes.items()}
        return resolve.load(f"{CONFIG}:on_policy", {key: str(value) for key, value in (settings | changes).items()})

    return make


class Dies(OnPolicyDistillation):
    """Of which the process dies in the rollout of step 2."""

    def source(self, parts, position, steps):
        inner = super().source(parts, position, steps)

        def batch(step, state):
            made = inner(step, state)
            if step == 2:
                raise RuntimeError("the process dies")
            return made

        return batch


def logged(workdir):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{k: v for k, v in row.items() if "per_second" not in k} for row in rows]


def test_it_resumes_to_the_bit_and_what_it_learns_from_is_its_teacher(taught, runs, talks, tmp_path):
    teacher = talks / "decoder.causal"  # the same tokens, tuned on conversations
    run = taught(teacher)
    whole = recipes.train(run, tmp_path / "once", quiet=True)
    with pytest.raises(RuntimeError, match="the process dies"):
        train(run, Dies(), tmp_path / "twice", quiet=True)
    resumed = recipes.train(run, tmp_path / "twice", quiet=True)
    assert resumed["params_sha256"] == whole["params_sha256"] and resumed["heldout"] == whole["heldout"]
    assert logged(tmp_path / "once") == logged(tmp_path / "twice")
    assert all(row["loss"] > 1e-4 and "reward" in row for row in logged(tmp_path / "once") if "loss" in row)
    own = recipes.train(taught(runs / "decoder.causal", train__steps=1), tmp_path / "own", quiet=True)
    assert abs(next(row for row in logged(tmp_path / "own") if "loss" in row)["loss"]) < 1e-5
    assert own["model_flops"] > 0 and np.isfinite(own["heldout"]["reward"])
    assert saved.open(tmp_path / "own").run.recipe.teacher_sha256 == saved.open(runs / "decoder.causal").digest()


def test_what_cannot_teach_is_refused(taught, runs):
    for changes, words in (
        (dict(recipe__kl="k3"), "on-policy distillation has none|init_from"),
        (dict(recipe__epochs=2), "one update"),
        (dict(recipe__teacher=runs / "encoder.masked"), "architecture encoder"),
    ):
        with pytest.raises(UserError, match=words):
            run = taught(runs / "decoder.causal", **changes)
            recipe = recipes.recipe(run)
            run = recipe.complete(run, None)
            recipe.check(run, recipe.task(run), sharding.make_mesh(config.Mesh(), jax.devices()[:1]))
