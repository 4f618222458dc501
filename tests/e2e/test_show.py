"""`lm.show` on runs of every kind, against what they train on and ask."""

import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from lm import recipes, show
from lm.config import resolve
from lm.recipes.rollout import Sampler
from lm.training import loop
from lm.view import reading

LIFE = Path(__file__).parents[2] / "configs" / "life"


def shown(capsys, *words):
    capsys.readouterr()
    code = show.main([str(word) for word in words])
    out, err = capsys.readouterr()
    assert code == 0, err
    return out


def reads(out):
    """What the lines of a terminal say is read, without the columns."""
    return [word for line in out.splitlines() if line.startswith("reads") for word in line.split()[1:]]


def test_a_run_trains_on_what_was_shown(flags, corpus, tmp_path, monkeypatch):
    """The batches that the loop is given, against those that are shown."""
    run = resolve.load(*split(flags("encoder.masked", "--config.train.steps=3")))
    given, steps = {}, loop.run

    def spied(state, step_fn, source, hooks, **more):
        def watched(step, state):
            given[step + 1] = batch = source(step, state)
            return batch

        return steps(state, step_fn, watched, hooks, **more)

    monkeypatch.setattr(loop, "run", spied)
    recipes.train(run, tmp_path / "run", quiet=True)
    found = reading.read(run, "train", progress=False)
    assert [*given] == [1, 2, 3]
    for step, batch in given.items():
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(batch), found.batch(found.numbers(step)))


def split(words):
    """The config and the overrides of a command's flags."""
    (path,) = (word.removeprefix("--config=") for word in words if word.startswith("--config="))
    return path, dict(word.removeprefix("--config.").split("=", 1) for word in words if word.startswith("--config."))


def test_the_command_writes_nothing_but_the_page(flags, corpus, tmp_path, capsys):
    page = tmp_path / "show.html"
    out = shown(capsys, *flags("encoder_decoder.span_corruption"), "--steps=3", f"--out={page}")
    assert "span_corruption: Spans that sentinels replace" in out and "row 1, of step 1 of 12, of source tiny" in out
    assert "Shares of the sources in the first 3 steps" in out and "12 rows, " in out
    assert re.search(r"^tiny +1 +100.0% +100.0% +100.0% +100.0%", out, re.M)
    assert "most frequent tokens" in out and out.endswith(f"page: {page}\n")
    assert [*tmp_path.iterdir()] == [page] and "<extra_id_0>" in out and "&lt;extra_id_0&gt;" in page.read_text("utf-8")
    again = {file: file.stat().st_mtime_ns for file in (corpus / "cache").rglob("*")}
    one = shown(capsys, *flags("encoder_decoder.span_corruption"), "--row=5")
    assert {file: file.stat().st_mtime_ns for file in (corpus / "cache").rglob("*")} == again
    assert "row 5, of step 2 of 12" in one and "Shares" not in one and re.search(r"^id +\d+", one, re.M)


def test_held_out_rows_of_a_runs_own_config(runs, capsys):
    """From the config.json of a run; its rows have every held-out token once."""
    folder = runs / "decoder.causal"
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("*")}
    out = shown(capsys, f"--config={folder}/config.json", "--rows=1000", "--split=holdout")
    assert "held-out row 0 of " in out and "Shares" not in out
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*")} == before
    found = reading.read(resolve.load(f"{folder}/config.json"), "holdout", progress=False)
    store = found.rows.stores["tiny"]
    assert len(reads(out)) == store.num_tokens - store.num_documents  # a document's last token is only predicted
    assert show.main([f"--config={folder}/config.json", "--row=1000", "--split=holdout"]) == 2
    assert (
        capsys.readouterr().err
        == f"error: --row=1000 is beyond the last: the split has {found.count} rows, 0 to {found.count - 1}\n"
    )


@pytest.fixture(scope="module")
def records(corpus):
    """Files of records by their format, of made-up words."""
    words = [json.loads(line)["text"].split() for line in (corpus / "tiny.jsonl").read_text().splitlines()]
    made = {
        "pair": [{"question": " ".join(w[:2]), "answer": w[2]} for w in words],
        "preference": [{"prompt": w[0], "chosen": w[1], "rejected": f"not {w[1]}"} for w in words],
        "feedback": [{"prompt": w[0], "completion": w[1], "label": len(w[1]) > 4} for w in words],
    }
    for name, lines in made.items():
        (corpus / f"shown_{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return lambda name: {"mine": dict(kind="jsonl", path=f"{corpus}/shown_{name}.jsonl", format=name)}


def of_life(corpus, records, format, config, **more):
    settings = {"data.sources": records(format), "data.cache": f"{corpus}/cache", "data.holdout": 0.3, "train.batch_size": 4}
    settings |= {"recipe.length": 12, "recipe.answer": 8} | more
    return [f"--config={LIFE}/{config}", *(f"--config.{name}={value}" for name, value in settings.items())]


@pytest.mark.parametrize(("method", "names"), [("dpo", ["chosen", "rejected"]), ("kto", ["answer", "mismatched"])])
def test_preferences_beside_a_reference(method, names, corpus, records, runs, capsys):
    format = "feedback" if method == "kto" else "preference"
    more = {"train.init_from": runs / "decoder.causal", "recipe.answer": 16}
    out = shown(capsys, *of_life(corpus, records, format, f"preference.py:{method}.own", **more), "--rows=1")
    assert re.findall(r"^(\w+) decoder: \d+ of 27 tokens", out, re.M) == names
    assert re.search(r"^good: [01]$" if method == "kto" else r"^margin: 0$", out, re.M)
    assert out.count("<|end|>") >= 2 and f"method={method}" in out


def test_a_policy_is_shown_as_it_asks(corpus, records, runs, monkeypatch, tmp_path):
    """The questions that the sampler asks in its second step, against those that are shown of it."""
    more = {"train.init_from": runs / "decoder.causal", "recipe.group": 2, "recipe.draws": 3, "train.steps": 2}
    more |= {"recipe.graders": {"e": dict(kind="regex", pattern=".*e.*")}, "checkpoint.every": None, "evaluate.every": None}
    more |= {"evaluate.rows": 2, "log.tensorboard": False}
    path, overrides = split(of_life(corpus, records, "pair", "policy.py:dapo.pairs", **more))
    run, asked = resolve.load(path, overrides), []
    original = Sampler._asked

    def spied(self, numbers, params, *, draws):
        asked.append((draws, numbers.tolist(), self.rows.prompts(numbers)))
        return original(self, numbers, params, draws=draws)

    monkeypatch.setattr(Sampler, "_asked", spied)
    recipes.train(run, tmp_path / "run", quiet=True)
    found = reading.read(run, "train", progress=False)
    first = [(numbers, prompts) for draw, numbers, prompts in asked if draw == 1]
    assert len(first) == 2
    for step, (numbers, prompts) in enumerate(first, 1):
        assert found.numbers(step).tolist() == numbers and [found.step_of(n) for n in numbers] == [step, step]
        rows = found.shown(np.array(numbers))
        for row, (_, begun) in zip(rows, prompts, strict=True):
            ((strip,),) = row.parts.values()
            assert strip.ids == begun.tolist() and not any(strip.asked)
            assert row.facts["then"] == "the model writes 2 answers, and the loss is there" and row.facts["right answer"]


def test_a_distillation_and_one_on_policy(corpus, flags, records, runs, capsys):
    """The rows of a distillation are those of a pretraining on the same texts; the teacher does not read them for this."""
    own = shown(capsys, *flags("decoder.causal"), "--row=3")
    source = {"tiny": dict(kind="jsonl", path=f"{corpus}/tiny.jsonl")}
    settings = {"data.sources": source, "data.dedup.near": None, "data.holdout": 0.2, "data.decoder_length": 32}
    settings |= {"data.cache": f"{corpus}/cache", "train.batch_size": 4, "recipe.top_k": 2}
    settings |= {"recipe.teacher": runs / "decoder.causal"}
    words = [f"--config={LIFE}/distill.py:causal", *(f"--config.{name}={value}" for name, value in settings.items())]
    read = {*(corpus / "cache").glob("teacher-*")}  # by other tests
    out = shown(capsys, *words, "--row=3")
    assert reads(out) == reads(own) and "causal: Next token" in out and {*(corpus / "cache").glob("teacher-*")} == read
    more = {"recipe.teacher": runs / "decoder.causal", "train.init_from": runs / "decoder.causal"}
    out = shown(capsys, *of_life(corpus, records, "pair", "distill.py:on_policy", **more), "--rows=1")
    assert "on_policy: Train a model on what a teacher predicts" in out and "then: the model writes 1 answer, and" in out


def test_a_missing_folder_is_one_line(capsys):
    assert show.main([f"--config={LIFE}/sft.py", "--config.train.init_from=/nowhere"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and "/nowhere" in err and err.count("\n") == 1
