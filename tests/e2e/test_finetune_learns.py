"""Fine-tuning: each architecture learns by head and in words, from records in files, and what makes no sense is refused."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest

from lm import config, flops, recipes, saved
from lm.config import Head, Learned
from lm.data.records import Labelled
from lm.errors import Diverged, UserError
from lm.evaluation.predictions import Predictor
from lm.evaluation.qa_metrics import exact
from lm.recipes.finetune import FineTuning
from lm.training.assembly import assemble
from lm.training.ledger import of_a_row
from tests.fakes import small_model

VOCAB = 400
WORDS = "target harbour winter silver garden planet candle forest".split()
QUIET = dict(
    checkpoint=config.Checkpoint(every=None, keep=1, keep_best=False),
    log=config.Log(tensorboard=False),
)


def words(rng, n):
    return [WORDS[i] for i in rng.integers(1, len(WORDS), n)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Records: is the target among 2 to 5 words? And: which word stands among five of "very"?"""
    root, rng = tmp_path_factory.mktemp("records"), np.random.default_rng(0)
    with open(root / "labelled.jsonl", "w") as file:
        for i in range(500):
            text = words(rng, rng.integers(2, 6))
            if i % 2:
                text[rng.integers(len(text))] = "target"
            file.write(json.dumps({"text": " ".join(text), "label": ["no", "yes"][i % 2], "number": i}) + "\n")
    with open(root / "pair.jsonl", "w") as file:
        for _ in range(500):
            text = ["very"] * 5
            text[rng.integers(5)] = answer = words(rng, 1)[0]
            record = {"context": " ".join(text), "question": f"very {' '.join(words(rng, 3))}", "answer": answer}
            file.write(json.dumps(record) + "\n")
    return root


@pytest.fixture
def made(folder):
    """A run from scratch."""

    def make(
        architecture, format="labelled", *, steps=200, model="small", rows=80, seed=0, optimizer=None, words=False, **recipe
    ):
        source = config.Source(kind="jsonl", path=f"{folder}/{format}.jsonl", format=format)
        data = config.Data(
            sources={"mine": source},
            tokenizer=config.Tokenizer("word" if words else "bpe", VOCAB),
            holdout=0.2,
            cache=f"{folder}/cache",
        )
        model = small_model(architecture, vocab_size=VOCAB) if model == "small" else model
        warm = config.Schedule("linear", warmup=0.1, final=0.0)
        return config.Run(
            model,
            data,
            optimizer=optimizer or config.Optimizer(learning_rate=1e-2, schedule=warm, weight_decay=0.01),
            train=config.Train(steps=steps, batch_size=16, seed=seed),
            evaluate=config.Evaluate(every=None, rows=rows),
            recipe=config.Finetune(**{"length": 24, **recipe}),
            **QUIET,
        )

    return make


def parts_of(run):
    recipe = FineTuning()
    return assemble(recipe.complete(run, None), recipe, progress=False)


def predicted(workdir):
    """What `lm.predict` says of the texts on which the run was tested, with their right answers."""
    kept, recipe = saved.open(workdir), FineTuning()
    (held,) = recipe.evaluators(assemble(recipe.complete(kept.run, workdir), recipe, progress=False), None)
    records = [held.records[name][number] for name, number in held.rows.records(held.index)]
    texts = [r.text if isinstance(r, Labelled) else f"{r.context}\n{r.question}" for r in records]
    answers = [r.label if isinstance(r, Labelled) else r.answer for r in records]
    return list(zip(Predictor(kept, 16)(texts), answers, strict=True))


CASES = [(a, h, p) for a in ("encoder", "decoder", "encoder_decoder") for h in ("head", "text") for p in (False, True)]
CASES = [(a, h, p) for a, h, p in CASES if (a, h) != ("encoder", "text") and ((a, h) == ("decoder", "text") or not p)]


@pytest.mark.parametrize("architecture,how,prefix", CASES)
def test_it_learns(architecture, how, prefix, made, tmp_path):
    summary = recipes.train(made(architecture, how=how, prefix=prefix), tmp_path, quiet=True)
    got = summary["heldout"]
    assert got["accuracy"] > 0.9 and got["nll"] < 0.4, got
    assert 0.4 < got["majority"] < 0.6 and got["items"] == 80 and summary["skipped_steps"] == 0
    counted = summary["records"]["train"]
    assert all(one["answers_left_out"] == 0 and one["answers"] == one["records"] == one["rows"] for one in counted.values())
    ends = {"head": 1, "text": None}[how]  # in text an answer is its words and its end
    assert summary["tokens_with_loss"] == 200 * 16 * ends if ends else summary["tokens_with_loss"] >= 200 * 16 * 2
    said = predicted(tmp_path)
    assert np.mean([one.text == label for one, label in said]) == got["accuracy"]
    assert -np.mean([np.log(one.probabilities[label]) for one, label in said]) == pytest.approx(got["nll"], rel=1e-4)


@pytest.mark.parametrize("architecture,words", [("decoder", False), ("encoder_decoder", False), ("decoder", True)])
def test_it_learns_to_extract(architecture, words, made, tmp_path):
    """The answer is the one word among "very": the decoder has to look for it, and end."""
    run = made(architecture, "pair", steps=300, how="text", rows=60, words=words)
    got = recipes.train(run, tmp_path, quiet=True)["heldout"]
    assert got["exact"] > 0.9 and got["f1"] >= got["exact"] and got["nll"] < 0.3, got
    assert got["majority"] < 0.3
    assert np.mean([exact(one.text, answer) for one, answer in predicted(tmp_path)]) == got["exact"]


def test_updates_that_are_not_finite_are_no_result(made, tmp_path):
    """Three steps are fewer than are allowed to be skipped in a row, and none of them trained anything."""
    infinite = config.Optimizer(learning_rate=np.inf)
    with pytest.raises(Diverged, match="the last 3 of 3 steps were skipped"):
        recipes.train(made("encoder", steps=3, optimizer=infinite), tmp_path, quiet=True)


def test_the_seed_decides_the_order(made):
    first, again, other = (parts_of(made("encoder", seed=seed)).rows["train"] for seed in (3, 3, 4))
    tokens = lambda rows, step: rows.rows(np.arange(16 * step, 16 * (step + 1))).encoder.tokens
    np.testing.assert_array_equal(tokens(first, 1), tokens(again, 1))
    assert (tokens(first, 1) != tokens(other, 1)).any() and (tokens(first, 1) != tokens(first, 0)).any()
    epochs = [sorted(map(bytes, rows.rows(np.arange(rows.count)).encoder.tokens)) for rows in (first, other)]
    assert epochs[0] == epochs[1]  # each record once


def test_labels_among_other_answers_are_written_as_text(made, tmp_path):
    """Pairs have no class, so a model of both is judged by what it writes."""
    run, other = made("decoder", how="text", answer=32, steps=1, rows=4), made("decoder", "pair").data.sources["mine"]
    both = dataclasses.replace(run, data=dataclasses.replace(run.data, sources=run.data.sources | {"other": other}))
    got = recipes.train(both, tmp_path, quiet=True)["heldout"]
    assert got["items"] == 8 and {"exact", "f1", "nll", "majority"} <= got.keys() and "accuracy" not in got
    with pytest.raises(UserError, match="^'other' has no classes that a head could tell apart"):
        parts_of(dataclasses.replace(both, recipe=dataclasses.replace(both.recipe, how="head")))


def test_a_share_of_the_training_records_is_used(made):
    run = made("encoder", how="head")
    complete = parts_of(run).rows
    part = parts_of(dataclasses.replace(run, data=dataclasses.replace(run.data, train_share=0.1))).rows
    assert part["train"].count == round(0.1 * complete["train"].count)
    assert part["holdout"].count == complete["holdout"].count


@pytest.mark.parametrize("how", ["head", "text"])
def test_padding_costs_no_flops(how, made):
    """FLOPs are those of the rows that are trained on, whatever room they have."""
    parts, roomy = (parts_of(made("decoder", how=how, length=length)) for length in (48, 80))
    rows = parts.rows["train"].rows(np.arange(160))
    expected = flops.of_rows(parts.run.model, rows).train
    assert of_a_row(parts.task, parts.rows["train"], 160).of(160)["model_flops"] == pytest.approx(expected)
    assert of_a_row(roomy.task, roomy.rows["train"], 160).of(160)["model_flops"] == pytest.approx(expected)


# ------------------------------------------------------------------------------------------------------------ refusals


def learned(model, length):
    return dataclasses.replace(model, encoder=dataclasses.replace(model.encoder, position=Learned(length)))


REFUSED = {
    "needs a model to start from: give --config.train.init_from=RUN.* or --config.model": lambda made: made(
        "decoder", model=None
    ),
    "an encoder writes no text: set --config.recipe.how=head": lambda made: made("encoder", how="text"),
    "no head over the vocabulary, so it writes no text: set --config.recipe.how=head": lambda made: made(
        "decoder", how="text", model=small_model("decoder", vocab_size=VOCAB, head=Head(tied=False, outputs=1))
    ),
    "'mine' has no classes that a head could tell apart: set --config.recipe.how=text": lambda made: made(
        "decoder", "pair", how="head"
    ),
    "takes 24 positions of the encoder, which has learned 8: shorten it with --config.recipe.length": lambda made: made(
        "encoder", model=learned(small_model("encoder", vocab_size=VOCAB), 8)
    ),
    "recipe.classes are .'yes', 'no'.* leave them out": lambda made: made("encoder", classes=("yes", "no")),
    "evaluate.baselines are models of text": lambda made: dataclasses.replace(
        made("encoder"), evaluate=config.Evaluate(baselines=True)
    ),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_makes_no_sense_is_refused(message, made):
    with pytest.raises(UserError, match=message):
        parts_of(REFUSED[message](made))


def test_the_library_does_not_start_xla_when_imported():
    """So that what a command sets for the CPU (`startup.before_jax`) is in time: a flag that XLA does not know ends it."""
    program = "import os, lm.recipes, jax; os.environ['XLA_FLAGS'] = '--xla_no_such_flag=1'; jax.devices()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode != 0 and "Unknown flag in XLA_FLAGS: --xla_no_such_flag" in done.stderr


def test_the_old_command_says_the_new_one():
    done = subprocess.run([sys.executable, "-m", "lm.recipes.finetune", "--task=spam"], capture_output=True, text=True)
    assert done.returncode == 2 and "python -m lm.train --config=configs/finetune.py:TASK" in done.stderr
