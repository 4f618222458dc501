"""Reward models and preferences as runs: killed, they go on to the bit; their models score, and chat."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from lm import recipes, saved, score
from lm.config import resolve
from lm.data import chat
from lm.data.records import question_digest
from lm.errors import UserError
from lm.evaluation.findings import mean, share
from lm.evaluation.rewards import Rewarder
from lm.losses.preference import METHODS
from lm.training import loop

LIFE = Path(__file__).parents[2] / "configs" / "life"
SMALL = {
    "train.steps": "8",
    "train.batch_size": "4",
    "checkpoint.every": "4",
    "evaluate.every": "8",
    "log.every": "2",
    "log.tensorboard": "False",
    "recipe.length": "40",
    "recipe.answer": "20",
    "data.holdout": "0.3",
}


@pytest.fixture(scope="session")
def judged(corpus, runs):
    """Runs of reward and preference on made-up words: `judged(what, workdir)`; `start` is what they begin with."""
    talks = [json.loads(line)["text"].split() for line in (corpus / "tiny.jsonl").read_text(encoding="utf-8").splitlines()]
    pairs = [
        dict(prompt=f"{n} {' '.join(t[:4])}", chosen=" ".join(t[i : i + 2]), rejected=t[i + 2], margin=i / 8)
        for n, t in enumerate(talks)
        for i in (4, 7)
    ]
    marks = [dict(prompt=p["prompt"], completion=f"{i} {p['chosen']}", label=i % 3 > 0) for i, p in enumerate(pairs)]
    for name, records in (("pairs", pairs), ("marks", marks)):
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (corpus / f"{name}.jsonl").write_text(lines, encoding="utf-8")

    def run_of(what, start="decoder.causal", **changes):
        method = "reward.py:own" if what == "reward" else f"preference.py:{what}.own"
        settings = {"data.sources.own.path": f"{corpus}/{'marks' if what == 'kto' else 'pairs'}.jsonl"}
        settings |= {"data.cache": f"{corpus}/cache", "train.init_from": str(runs / start if isinstance(start, str) else start)}
        return resolve.load(f"{LIFE}/{method}", settings | SMALL | changes)

    return run_of


class Killed(Exception):
    pass


def stopped_after(monkeypatch, step):
    """Ends a training's process, as a kill would, before it takes this step."""
    plain = loop.prefetched

    def make(one, steps):
        batches = plain(one, steps)

        def batch(number, state):
            if number == step:
                raise Killed
            return batches(number, state)

        return batch

    monkeypatch.setattr("lm.training.recipe.prefetched", make)


@pytest.mark.parametrize("what", ["reward", "dpo", "kto"])
def test_killed_it_goes_on_to_the_bit(what, judged, monkeypatch, tmp_path):
    whole = recipes.train(judged(what), tmp_path / "whole", quiet=True)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        stopped_after(patch, 6)
        recipes.train(judged(what), tmp_path / "killed", quiet=True)
    resumed = recipes.train(judged(what), tmp_path / "killed", quiet=True)
    for key in ("params_sha256", "heldout", "tokens_seen", "tokens_with_loss", "step"):
        assert resumed[key] == whole[key]
    wanted = {"kl", "reward_good", "log_prob_bad"} if what == "kto" else {"margin", "ece", "reward_chosen"}
    sizes = [whole["records"][split]["own"]["rows"] for split in ("train", "holdout")]
    assert wanted <= whole["heldout"].keys() and repr(whole["heldout"]["items"]) == str(sizes[1]), "a count is an integer"
    assert whole["model_flops"] > 0 and sum(sizes) == 80


def test_the_reference_is_the_model_that_the_run_began_with(judged, runs, tmp_path):
    """At the first step nothing is ahead of it. A run does not go on with another reference, and one without needs none."""
    still = {"train.steps": "2", "optimizer.learning_rate": "0.0", "checkpoint.every": "1", "log.samples": "('a b',)"}
    for start in ("decoder.causal", "encoder_decoder.span_corruption"):
        run, workdir = judged("dpo", start, **still), tmp_path / start
        summary = recipes.train(run, workdir, quiet=True)
        assert summary["heldout"]["margin"] == 0 and summary["heldout"]["accuracy"] == 0
        (sample,) = (json.loads(line) for line in (workdir / "samples.jsonl").read_text(encoding="utf-8").splitlines())
        assert sample["prompt"] == "a b" and sample["text"]
    with pytest.raises(UserError, match=r"recipe.reference_sha256: "):
        recipes.train(judged("dpo", "decoder.prefix", **still | {"train.steps": "3"}), tmp_path / "decoder.causal", quiet=True)
    with pytest.raises(
        UserError, match="recipe.method=dpo compares with the model that it starts from: give --config.train.init"
    ):
        recipe = dataclasses.replace(run, train=dataclasses.replace(run.train, init_from=None))
        recipes.train(recipe, tmp_path / "none", quiet=True)


@pytest.mark.parametrize("start", ["decoder.causal", "encoder.masked", "encoder_decoder.span_corruption"])
def test_a_reward_model_of_each_architecture_scores_what_it_was_tested_on(start, judged, piped, tmp_path):
    """The score of a text is that of the row that the run is tested on, whatever else is in the batch."""
    run = judged("reward", start, **{"train.steps": "2", "optimizer.learning_rate": "0.01"})
    summary = recipes.train(run, tmp_path / "reward", quiet=True)
    source = saved.open(tmp_path / "reward")
    assert source.model.head.outputs == 1
    made = recipes.recipe(source.run)
    complete = made.complete(source.run, tmp_path / "reward")
    data = made.data(complete, progress=False)
    records = data.records("own", "holdout")
    asked = [{question_digest(record) for record in data.records("own", split)} for split in ("train", "holdout")]
    assert len(asked[0] | asked[1]) == 40 and not asked[0] & asked[1]  # each question has two records
    rewarder = Rewarder(source, batch_size=5)
    prompts = [record.messages for record in records]
    chosen, rejected = (rewarder.scores(prompts, [getattr(r, name) for r in records]) for name in ("chosen", "rejected"))
    np.testing.assert_allclose(np.mean(chosen), summary["heldout"]["reward_chosen"], rtol=1e-4)
    np.testing.assert_allclose(np.mean(chosen > rejected), summary["heldout"]["accuracy"], rtol=1e-6)
    ends, wanted = summary["heldout_intervals"], mean(chosen)
    np.testing.assert_allclose(ends["reward_chosen"], [wanted.low, wanted.high], rtol=1e-4)
    right = share(int(np.sum(chosen > rejected)), len(chosen))
    np.testing.assert_allclose(ends["accuracy"], [right.low, right.high], rtol=1e-6)
    assert chosen.dtype == np.float32 and np.ptp(chosen) > 0
    np.testing.assert_allclose(rewarder.scores(prompts[:1], [records[0].chosen]), chosen[:1], rtol=1e-4)
    lines = [dict(prompt=r.messages[0].content, completion=r.chosen, id=i) for i, r in enumerate(records[:3])]
    code, out, err = piped(score.main, [f"--from={tmp_path}/reward", "--jsonl"], "\n".join(map(json.dumps, lines)))
    assert code == 0, err
    found = [json.loads(line) for line in out.splitlines()]
    assert [one.pop("reward") for one in found] == pytest.approx(chosen[:3].tolist(), abs=2e-5) and found == lines
    code, _, err = piped(score.main, [f"--from={tmp_path}/reward"], "a text")
    assert code == 2 and "is a reward model, which scores answers: give lines of" in err
    with pytest.raises(UserError, match="tokens are before an answer of .* reads 40 and 20: shorten them"):
        rewarder.scores(["a " * 60], ["b"])


def test_a_tuned_model_chats_and_only_a_reward_model_gives_rewards(judged, runs, tmp_path):
    recipes.train(judged("orpo", **{"train.steps": "1"}), tmp_path / "orpo", quiet=True)
    source = saved.open(tmp_path / "orpo")
    ids = chat.of(source).ids([{"role": "user", "content": "ab"}])
    assert ids[-1] == source.tokenizer().role_ids["<|assistant|>"]
    assert jax.tree.structure(source.params()) == jax.tree.structure(saved.open(runs / "decoder.causal").params())
    with pytest.raises(UserError, match="is no reward model: train one with configs/life/reward.py"):
        Rewarder(source)
    for change, message in (
        ({"data.packing": "True"}, "data.packing puts several records into a row"),
        ({"recipe.answer": "2"}, r"\d+ records of source 'own' have no room in a row"),
    ):
        with pytest.raises(UserError, match=message):
            recipes.train(judged("orpo", **change), tmp_path / "refused", quiet=True)
    with pytest.raises(UserError, match="the model writes no text"):
        recipes.train(judged("simpo", "encoder.masked"), tmp_path / "refused", quiet=True)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_a_config(method):
    run = resolve.load(f"{LIFE}/preference.py:{method}", {"train.init_from": "x"})
    assert run.recipe.method == method
    assert run.data.sources["manners"].format == ("feedback" if METHODS[method].feedback else "preference")
