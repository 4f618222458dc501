"""Distillation as a run: students of every architecture, what is kept of a teacher, resuming, and what is refused."""

import json
import re
from pathlib import Path

import pytest
from flax import traverse_util

from lm import config, integrity, recipes, saved
from lm.config import resolve
from lm.data.corpus.sotu import speeches
from lm.errors import UserError
from lm.prepare import prepared_for
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


# ------------------------------------------------------------------------------------------- what is kept of a teacher


def kept(corpus):
    return sorted((corpus / "cache").glob("teacher-*"))


def test_what_the_teacher_predicts_is_computed_once_and_all_of_it_is_the_teacher(distilled, corpus, tmp_path, monkeypatch):
    """With as many tokens as the vocabulary the losses are those beside the teacher; a second run reads what the first kept."""
    what, settings = "encoder.masked", {"model.width": 16, "recipe.temperature": 2.0, "recipe.beta": 0.5, "evaluate.rows": 4}
    recipes.train(distilled(what, **settings), tmp_path / "online", quiet=True)
    before = kept(corpus)
    first = recipes.train(distilled(what, **settings, recipe__top_k=512), tmp_path / "first", quiet=True)
    (folder,) = set(kept(corpus)) - set(before)
    assert (folder / "log_probs.npy").stat().st_size > 4 * 4 * 4 * 512, "4 steps of 4 rows"
    for online, stored in zip(logged(tmp_path / "online"), logged(tmp_path / "first"), strict=True):
        for name in online.keys() & {"loss", "divergence", "cross_entropy", "heldout/loss"}:
            assert stored[name] == pytest.approx(online[name], rel=1e-6, abs=1e-6), name
    assert first["heldout"]["loss"] > 0 and "divergence" not in first["heldout"]
    monkeypatch.setattr("lm.recipes.distill.predictor", lambda *_: pytest.fail("the teacher reads again"))
    second = recipes.train(distilled(what, **settings, recipe__top_k=512), tmp_path / "second", quiet=True)
    assert second["params_sha256"] == first["params_sha256"] and second["model_flops"] == first["model_flops"]


def test_a_run_on_kept_predictions_resumes_to_the_bit_and_refuses_other_rows(distilled, corpus, tmp_path):
    what, (once, twice) = "decoder.causal", (tmp_path / "once", tmp_path / "twice")
    before, settings = kept(corpus), {"model.width": 16, "recipe.top_k": 5}
    run = distilled(what, **settings)
    whole = recipes.train(run, once, quiet=True)
    (folder,) = set(kept(corpus)) - set(before)
    with pytest.raises(RuntimeError, match="the process dies"):
        train(run, Dies(), twice, quiet=True)
    resumed = recipes.train(run, twice, quiet=True)
    assert resumed["params_sha256"] == whole["params_sha256"]
    recipes.train(distilled(what, **settings, train__seed=1), tmp_path / "seed", quiet=True)
    (other,) = set(kept(corpus)) - {*before, folder}
    for name in ("log_probs.npy", "ids.npy", "rows.npy", "report.json"):
        (folder / name).write_bytes((other / name).read_bytes())
    with pytest.raises(UserError, match="of other rows"):
        recipes.train(run, tmp_path / "mixed", quiet=True)
    (folder / "ids.npy").write_bytes((folder / "ids.npy").read_bytes()[:-1])
    with pytest.raises(UserError, match="ids.npy was changed or cut short"):
        recipes.train(run, tmp_path / "cut", quiet=True)


# ------------------------------------------------------------------------------------------------------- of records


@pytest.fixture(scope="module")
def asked(corpus):
    """Settings of a distillation on forty questions; conversations are in the file of `talks`."""
    questions = corpus / "questions.jsonl"
    texts = [json.loads(line)["text"].split() for line in (corpus / "tiny.jsonl").read_text(encoding="utf-8").splitlines()]
    lines = [json.dumps({"question": " ".join(words[:3]), "answer": words[3]}) for words in texts]
    questions.write_text("\n".join(lines), encoding="utf-8")
    sources = {"mine": dict(kind="jsonl", path=str(questions), format="pair")}
    return {"data.sources": sources, "recipe.length": 24, "recipe.answer": 12, "evaluate.rows": 4, "evaluate.every": 2}


@pytest.mark.parametrize("what", ["decoder.causal", "encoder_decoder.span_corruption"])
def test_a_small_student_learns_what_its_teacher_answers(distilled, runs, asked, tmp_path, what):
    """Of half the width and one layer a stack, begun from the seed. There is loss at the answers alone."""
    small = {f"model.{name}.num_layers": 1 for name in ("encoder", "decoder") if name in what}
    changes = asked | small | {"model.width": 16, "recipe.labels": 0, "recipe.logits": 1, "train.steps": 6}
    summary = recipes.train(distilled(what, **changes), tmp_path / "run", quiet=True)
    student = saved.open(tmp_path / "run")
    assert student.model.width == 16 and student.run.recipe.prefix is False
    rows = logged(tmp_path / "run")
    assert all(row["loss"] == pytest.approx(row["divergence"], rel=1e-5) for row in rows if "loss" in row)
    found = [row["heldout/divergence"] for row in rows if "heldout/divergence" in row]
    assert len(found) == 3 and found[-1] < found[0] and {"exact", "f1", "nll", "majority"} <= summary["heldout"].keys()
    assert 0 < summary["tokens_with_loss"] <= 6 * 4 * 12, "6 steps of 4 answers"
    assert summary["tokens_with_loss"] < summary["tokens_seen"]


def test_adapters_learn_what_a_teacher_answers(distilled, runs, asked, tmp_path):
    """The student begins as its teacher, so that it is near to it after two steps; only its adapters move."""
    base = runs / "decoder.causal"
    changes = asked | {"model": None, "train.init_from": base, "adapter.rank": 2, "train.steps": 2}
    summary = recipes.train(distilled("decoder.causal", **changes), tmp_path / "run", quiet=True)
    before, after = params(base), params(tmp_path / "run")
    assert 0 < summary["heldout"]["divergence"] < 0.01 and 0 < summary["parameters"] < sum(x.size for x in before.values()) / 5
    changed = {name for name in before if (before[name] != after[name]).any()}
    assert changed and all(name.startswith("decoder/") and name.endswith("/kernel") for name in changed)


def test_the_teacher_of_conversations_is_matched_by_itself(distilled, talks, corpus, tmp_path):
    teacher = talks / "decoder.causal"
    sources = {"mine": dict(kind="jsonl", path=str(corpus / "messages.jsonl"), format="messages")}
    settings = {
        "data.sources": sources,
        "recipe.length": 40,
        "data.holdout": 0.3,
        "evaluate.rows": 2,
        "recipe.teacher": teacher,
    }
    run = distilled("decoder.causal", **settings, model=None, train__init_from=teacher, train__steps=0)
    summary = recipes.train(run, tmp_path / "run", quiet=True)
    before = json.loads((teacher / "summary.json").read_text(encoding="utf-8"))
    assert abs(summary["heldout"]["divergence"]) < 1e-6 and summary["params_sha256"] == before["params_sha256"]
    assert summary["heldout"]["nll"] == pytest.approx(before["heldout"]["nll"], abs=1e-6)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"recipe__top_k": 5, "recipe__hidden": 1.0}, "of its vectors"),
        ({"recipe__top_k": 513}, "more than the 512 tokens"),
        ({"recipe__everywhere": True, "objective__kind": "masked_diffusion"}, "masked ones alone"),
        ({"recipe__everywhere": True, "train__microbatches": 2}, "train.microbatches=1"),
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
        checked(distilled("decoder.causal", **changes))


def test_a_pair_that_does_not_suit_is_refused_before_data_are_prepared(distilled, tmp_path):
    run = distilled("decoder.causal", recipe__top_k=5, model__vocab_size=640, data__cache=tmp_path / "cache")
    with pytest.raises(UserError, match="vocab_size=512"):
        prepared_for(run)
    assert not (tmp_path / "cache").exists()


def checked(run):
    recipe = recipes.recipe(run)
    return recipe.task(recipe.complete(run, None))


def test_a_teacher_of_another_architecture_or_tokenizer_is_refused(distilled, runs, corpus, asked, tmp_path):
    with pytest.raises(UserError, match="an encoder writes no answers"):
        checked(distilled("encoder.masked", **asked))
    run = distilled("decoder.causal", recipe__teacher=runs / "encoder.masked")
    with pytest.raises(UserError, match="architecture encoder and the model decoder"):
        checked(run)
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
        ("stream.py:1960", "no period begins in '1960'"),
        ("stream.py:1950/1", "is no share"),
    ):
        with pytest.raises(UserError, match=words):
            resolve.load(f"{LIFE / file}")


def test_a_stream_of_documents_is_split_by_their_date():
    """No run reads a message that is held out, or that is of a later period; old and new are shares of its rows."""
    numbers = lambda source: {n for a, b in re.findall(r"\[(\d+):(\d+)\]", source.split) for n in range(int(a), int(b))}
    years = [int(file.stem[:4]) for file in speeches()]
    for what, first, last in (("base", 0, 1950), ("1950", 1950, 1975), ("2000/0.5", 2000, 3000), ("2000/0", 2000, 3000)):
        sources = resolve.load(f"{LIFE / 'stream.py'}:{what}").data.sources
        held_out = [numbers(source) for source in sources.values() if source.use == "holdout"]
        read = {name: numbers(source) for name, source in sources.items() if source.use == "train"}
        assert len(held_out) == 4 and not set().union(*held_out) & set().union(*read.values())
        new = read.get("new", read.get("old"))
        assert new and all(first <= years[n] < last for n in new)
        assert all(years[n] < (first or last) for n in read.get("old", ()))
        assert sum(source.weight for source in sources.values() if source.use == "train") == pytest.approx(1.0)
        assert ("old" in read) == (what != "2000/0") and all(max(part) - min(part) == 1 for part in held_out)
