"""Distillation as a run: students of every architecture, what is kept of a teacher, resuming, and what is refused."""

import json
from pathlib import Path

import pytest
from flax import traverse_util

from lm import config, integrity, recipes, saved
from lm.config import resolve
from lm.errors import UserError
from lm.recipes.distill import Distillation
from lm.training.run import train
from tests.e2e.conftest import TINY

WHOLE = {"recipe.hidden": "1.0", "recipe.relations": "0.5", "recipe.temperature": "2.0", "recipe.beta": "0.5"}


@pytest.fixture(scope="module")
def distilled(corpus, runs):
    """Makes the run of a student of `runs / what`, in the middle of which nothing is evaluated."""

    def make(what, **changes):
        settings = {"data.sources.tiny.path": f"{corpus}/tiny.jsonl", "data.cache": f"{corpus}/cache", "train.steps": "4"}
        settings |= {"checkpoint.every": "2", "evaluate.every": "None", "log.every": "1", "log.samples": "()"}
        settings |= {"recipe.kind": "distill", "recipe.teacher": str(runs / what)}
        return resolve.load(f"{TINY}:{what}", settings | {name.replace("__", "."): str(v) for name, v in changes.items()})

    return make


def params(folder):
    return traverse_util.flatten_dict(saved.open(folder).params(), sep="/")


def logged(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("what", ["encoder.masked", "encoder_decoder.span_corruption"])
def test_a_student_of_half_the_depth_matches_logits_hidden_vectors_and_relations(distilled, runs, tmp_path, what):
    """It begins with the teacher's last layers, costs three passes of its own and one of the teacher's, and has its own
    checkpoint, without the teacher, which no step changes."""
    stacks = [name for name in ("encoder", "decoder") if name in what]
    layers = {name: (1,) for name in stacks}
    files = integrity.digests(saved.open(runs / what).folder)
    run = distilled(what, model=None, train__init_from=runs / what, train__init_layers=layers, **WHOLE)
    summary = recipes.train(run, tmp_path / "run", quiet=True)
    assert all(getattr(saved.open(tmp_path / "run").model, name).num_layers == 1 for name in stacks)
    rows = [row for row in logged(tmp_path / "run") if "loss" in row]
    for row in rows:
        parts = 0.5 * row["divergence"] + 0.5 * row["cross_entropy"] + row["hidden"] + 0.5 * row["relations"]
        assert row["loss"] == pytest.approx(parts, rel=1e-5) and row["hidden"] > 0 and row["relations"] > 0
    assert summary["heldout"].keys() >= {"loss", "divergence"} and summary["heldout"]["divergence"] > 0
    assert integrity.digests(saved.open(runs / what).folder) == files
    own, theirs = params(tmp_path / "run"), params(runs / what)
    assert summary["parameters"] == sum(x.size for x in own.values()) < sum(x.size for x in theirs.values())


def test_a_teacher_that_is_its_own_student_is_matched(distilled, runs, tmp_path):
    run = distilled("decoder.causal", train__init_from=runs / "decoder.causal", train__steps=0, evaluate__rows=4)
    summary = recipes.train(run, tmp_path / "run", quiet=True)
    teacher = json.loads((runs / "decoder.causal" / "summary.json").read_text(encoding="utf-8"))
    assert summary["heldout"]["loss"] == pytest.approx(teacher["heldout"]["loss"], abs=1e-6)
    assert abs(summary["heldout"]["divergence"]) < 1e-6 and summary["params_sha256"] == teacher["params_sha256"]


class Dies(Distillation):
    """Of which the process dies before step 3."""

    def source(self, parts, position, steps):
        inner = super().source(parts, position, steps)

        def batch(step, state):
            if step == 3:
                raise RuntimeError("the process dies")
            return inner(step, state)

        return batch


def test_a_distillation_resumes_to_the_bit_and_only_with_its_teacher(distilled, runs, tmp_path):
    what, (once, twice) = "decoder.causal", (tmp_path / "once", tmp_path / "twice")
    run = distilled(what, **WHOLE | {"recipe.hidden": 0, "model.width": 16})
    whole = recipes.train(run, once, quiet=True)
    with pytest.raises(RuntimeError, match="the process dies"):
        train(run, Dies(), twice, quiet=True)
    other = distilled(what, **WHOLE | {"recipe.hidden": 0, "model.width": 16, "recipe.teacher": str(once)})
    with pytest.raises(UserError, match="recipe.teacher_sha256"):
        recipes.train(other, twice, quiet=True)
    resumed = recipes.train(run, twice, quiet=True)
    assert resumed["params_sha256"] == whole["params_sha256"] and resumed["heldout"] == whole["heldout"]
    without = lambda workdir: [{k: v for k, v in row.items() if "per_second" not in k} for row in logged(workdir)]
    assert without(once) == without(twice)
    assert all("teacher" not in name for name in integrity.files(saved.open(once).folder / "checkpoints"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"recipe__logits": 0.0}, "nothing of the teacher is used"),
        ({"model__width": 16, "recipe__hidden": 1.0}, "one width"),
        ({"model__vocab_size": 640}, "vocab_size=512"),
        ({"recipe__relations": 1.0, "recipe__relation_heads": 5}, "does not divide"),
        ({"train__init_layers": {"decoder": (0,)}}, "train.init_from"),
        ({"model": None, "train__init_from": "there", "train__init_layers": {"decoder": (0, 2)}}, "layers 0 to 1"),
        ({"model": None, "train__init_from": "there", "train__init_layers": {"encoder": (0,)}}, "has none"),
        ({"objective__kind": "multi_token"}, "a loss of its own"),
    ],
)
def test_what_cannot_be_distilled_is_refused(distilled, changes, words):
    with pytest.raises(UserError, match=words):
        run = distilled("decoder.causal", **changes)
        recipe = recipes.recipe(run)
        recipe.task(recipe.complete(run, None))


def test_a_teacher_of_another_architecture_or_tokenizer_is_refused(distilled, runs, corpus, tmp_path):
    run = distilled("decoder.causal", recipe__teacher=runs / "encoder.masked")
    with pytest.raises(UserError, match="architecture encoder and the model decoder"):
        recipe = recipes.recipe(run)
        recipe.task(recipe.complete(run, None))
    settings = {"data.sources.tiny.path": f"{corpus}/tiny.jsonl", "data.cache": f"{corpus}/cache", "train.steps": "0"}
    small = resolve.load(f"{TINY}:decoder.causal", settings | {"data.tokenizer.vocab_size": "410"})
    recipes.train(small, tmp_path / "small", quiet=True)
    (tmp_path / "other.model").write_bytes(saved.open(tmp_path / "small").tokenizer_bytes())
    with pytest.raises(UserError, match="is not that of recipe.teacher.*cannot be compared"):
        recipes.train(distilled("decoder.causal", data__tokenizer__path=tmp_path / "other.model"), tmp_path / "run", quiet=True)


LIFE = Path(__file__).parents[2] / "configs" / "life"


def test_the_configs_resolve_and_say_what_their_arguments_are():
    for what, kind in (
        ("causal", "distill"),
        ("masked", "distill"),
        ("span_corruption", "distill"),
        ("on_policy", "on_policy"),
    ):
        assert config.kind_of(type(resolve.load(f"{LIFE / 'distill.py'}:{what}").recipe)) == kind
    domain = {share: resolve.load(f"{LIFE / 'domain.py'}:{share}").data.sources for share in ("0", "0.2")}
    assert domain["0"]["sotu"].use == "holdout" and domain["0"]["stdlib"].weight == 1
    assert (domain["0.2"]["sotu"].weight, domain["0.2"]["stdlib"].weight) == (0.2, 0.8)
    for file, words in (
        ("distill.py:cause", "no distillation 'cause'"),
        ("domain.py:1.5", "is no share"),
        ("domain.py:x", "is no"),
    ):
        with pytest.raises(UserError, match=words):
            resolve.load(f"{LIFE / file}")
