"""Fine-tuning: each architecture learns by head and in words, the loss is the answer's alone, and scores are right."""

import dataclasses
import subprocess
import sys
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from lm import flops
from lm.config import Attention, Block, Head, Learned, Mlp, Model, Norm, Rope, Stack
from lm.data.labelled import Extractive, Labelled
from lm.errors import Diverged, UserError
from lm.models.transformer import Transformer
from lm.recipes.finetune import Finetune, Work, finetune, main, transplant
from lm.types import Example, TokenStream

WORDS = ["<pad>", "<s>", "</s>", *(f"w{i}" for i in range(20)), "yes", "no", "very"]
V = len(WORDS)
YES, NO, VERY = V - 3, V - 2, V - 1


class Tokenizer:
    """A token a word."""

    vocab_size, pad_id, bos_id, eos_id = V, 0, 1, 2
    special = np.arange(V) < 3
    mask_id, sentinel_ids = None, ()

    def encode_batch(self, texts, *, threads=None):
        return [np.array([WORDS.index(w) for w in t.split()], np.int32) for t in texts]

    def decode(self, ids):
        return " ".join(WORDS[i] for i in ids)

    def require(self, name):
        return getattr(self, f"{name}_id")


TOKENIZER = Tokenizer()


def model(architecture, **changes):
    block = Block(Attention(2), Mlp(64), Norm("rms"))
    encoder = Stack(1, {"L": block}, position=Rope()) if "encoder" in architecture else None
    cross = dataclasses.replace(block, cross=encoder is not None)
    decoder = Stack(1, {"L": cross}, position=Rope()) if "decoder" in architecture else None
    return dataclasses.replace(Model(V, 32, encoder=encoder, decoder=decoder), **changes)


def example(architecture):
    stream = TokenStream(*[np.ones((1, 4), np.int32)] * 3)
    return Example(*(stream if s in architecture else None for s in ("encoder", "decoder")), None, None)


@cache
def params(m, seed=0):
    return nn.unbox(jax.jit(Transformer(m).init)(jax.random.key(seed), example(m.architecture)))["params"]


def words(rng, n):
    return [f"w{i}" for i in rng.integers(1, 20, n)]


def contains(n, seed):
    """Texts of 3 to 8 words; is w0 among them?"""
    rng, items = np.random.default_rng(seed), []
    for i in range(n):
        text = words(rng, rng.integers(3, 9))
        if i % 2:
            text[rng.integers(len(text))] = "w0"
        items.append((" ".join(text), i % 2))
    return tuple(items)


TASK = Labelled("contains", ("no", "yes"), contains(400, 0), contains(100, 1))
QUICK = Finetune(steps=80, batch_size=16, learning_rate=1e-2, length=12, answer=3, rows=90)
CASES = [(a, h, p) for a in ("encoder", "decoder", "encoder_decoder") for h in ("head", "text") for p in (False, True)]
CASES = [(a, h, p) for a, h, p in CASES if (a, h) != ("encoder", "text") and ((a, h) == ("decoder", "text") or not p)]


@pytest.mark.parametrize("architecture,how,prefix", CASES)
def test_it_learns(architecture, how, prefix):
    m = model(architecture)
    before = params(m)
    kept = jax.tree.map(np.array, before)
    got = finetune(m, before, TOKENIZER, TASK, how=how, prefix=prefix, settings=QUICK)
    assert got["accuracy"] > 0.9 and got["nll"] < 0.4, got
    assert got["majority"] == 0.5 and got["test_items"] == 90 and got["train_items"] == 400 and got["skipped_steps"] == 0
    assert got["tokens_with_loss"] == 80 * 16 * (1 if how == "head" else 2)  # of a text: the class and its end
    assert got["new_parameters"] == (32 * 2 + 2 if how == "head" else 0)
    jax.tree.map(np.testing.assert_array_equal, before, kept)  # the pretrained parameters are the caller's still


def test_updates_that_are_not_finite_are_no_result():
    """Three steps are fewer than are allowed to be skipped in a row, and none of them trained anything."""
    m = model("encoder")
    with pytest.raises(Diverged, match="the last 3 of 3 steps were skipped"):
        finetune(m, params(m), TOKENIZER, TASK, how="head", settings=dataclasses.replace(QUICK, steps=3, learning_rate=np.inf))


def test_the_seed_decides_the_order():
    m, few = model("encoder"), dataclasses.replace(QUICK, rows=16)
    first, again, other = (Work(m, TOKENIZER, TASK, "head", False, few, seed) for seed in (3, 3, 4))
    tokens = lambda work, step: np.asarray(work.batch(step).encoder.tokens)
    np.testing.assert_array_equal(tokens(first, 1), tokens(again, 1))
    assert (tokens(first, 1) != tokens(other, 1)).any() and (tokens(first, 1) != tokens(first, 0)).any()
    epoch = np.concatenate([tokens(first, step) for step in range(25)])  # 400 items: each once
    assert sorted(map(tuple, epoch)) == sorted(
        tuple(e.encoder.tokens) + (0,) * (12 - len(e.encoder.tokens)) for e in first.train_items
    )


@pytest.mark.parametrize("how", ["head", "text"])
def test_padding_costs_no_flops(how):
    """FLOPs are those of the rows that are trained on, whatever room they have."""
    m, few = model("decoder"), dataclasses.replace(QUICK, steps=10, rows=16)
    work = Work(m, TOKENIZER, TASK, how, False, few, 0)
    batches = [jax.tree.map(np.asarray, work.batch(step)) for step in range(10)]
    assert work.flops == pytest.approx(sum(flops.of_rows(work.model, batch).train for batch in batches))
    roomy = Work(m, TOKENIZER, TASK, how, False, dataclasses.replace(few, length=40), 0)
    assert roomy.flops == work.flops
    longer = Work(m, TOKENIZER, TASK, how, False, dataclasses.replace(few, steps=20), 0)
    assert longer.flops == pytest.approx(2 * work.flops, rel=0.05)


@pytest.mark.parametrize("architecture", ["decoder", "encoder_decoder"])
def test_it_learns_to_extract(architecture):
    """The answer is the one word among "very": the decoder has to look for it, and end."""
    rng, items = np.random.default_rng(0), []
    for _ in range(500):
        text = ["very"] * 5
        text[rng.integers(5)] = answer = words(rng, 1)[0]
        items.append((" ".join(text), "very", answer))
    task = Extractive("find", tuple(items[:400]), tuple(items[400:]))
    m = model(architecture)
    got = finetune(m, params(m), TOKENIZER, task, how="text", settings=dataclasses.replace(QUICK, steps=300))
    assert got["exact"] > 0.9 and got["f1"] >= got["exact"] and got["nll"] < 0.3, got
    assert got["majority"] < 0.2


# -------------------------------------------------------------------------------------------------------------- surgery


def test_a_new_head_on_the_old_trunk():
    old = params(model("encoder", head=Head(tied=False)))
    new = params(model("encoder", head=Head(tied=False, bias=True, outputs=2)), seed=1)
    got, fresh = transplant(old, new, fresh=("head",))
    assert sorted(fresh) == ["head/out/bias", "head/out/kernel"]
    jax.tree.map(np.testing.assert_array_equal, got, {**old, "head": new["head"]})


def test_a_trunk_that_is_not_whole_is_refused():
    m = model("encoder", head=Head(tied=False, bias=True, outputs=2))
    new, old = params(m, seed=1), params(model("encoder"))
    without = {**old, "encoder": {k: v for k, v in old["encoder"].items() if k != "final_norm"}}
    with pytest.raises(UserError, match="have nothing at encoder/final_norm"):
        transplant(without, new, fresh=("head",))
    with pytest.raises(UserError, match="have nothing at head/out"):
        transplant(old, new)
    with pytest.raises(UserError, match="which the model lacks"):
        transplant({**old, "decoder": old["encoder"]}, new, fresh=("head",))
    wide = {**old, "embed": {"tokens": {"embedding": jnp.zeros((V + 1, 32))}}}
    with pytest.raises(UserError, match=rf"have \({V + 1}, 32\) at embed/tokens"):
        transplant(wide, new, fresh=("head",))


# --------------------------------------------------------------------------------------------------------- refusals


EXTRACTIVE = Extractive("first", (("w1", "", "w1"),), (("w1", "", "w1"),))
REFUSED = {
    "an encoder gives no text": (model("encoder"), TASK, "text"),
    "no head over the vocabulary": (model("decoder", head=Head(tied=False, outputs=1)), TASK, "text"),
    "has no classes that a head could": (model("decoder"), EXTRACTIVE, "head"),
    "takes 12 positions of the encoder, which has learned 8: shorten it with --length": (
        model("encoder", encoder=dataclasses.replace(model("encoder").encoder, position=Learned(8))),
        TASK,
        "head",
    ),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_makes_no_sense_is_refused(message):
    m, task, how = REFUSED[message]
    with pytest.raises(UserError, match=message):
        finetune(m, {}, TOKENIZER, task, how=how, settings=QUICK)


def test_the_command_says_what_is_wrong_in_a_line(tmp_path, capsys):
    assert main([f"--from={tmp_path}", "--task=spam", "--how=head"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and "is an empty folder" in err and err.count("\n") == 1


VALUES = ["rows=0", "batch_size=0", "length=1", "seed=-1", "steps=0", "answer=1"]
BEYOND = ["learning_rate=nan", "weight_decay=inf", "learning_rate=1e+39", "warmup=1.5", "seed=4294967296", "steps=4294967296"]


@pytest.mark.parametrize("flag", [*VALUES, *BEYOND])
def test_values_out_of_range_are_named_before_anything_is_read(flag, tmp_path, capsys):
    assert main([f"--from={tmp_path}", "--task=spam", "--how=head", f"--{flag}"]) == 2
    err = capsys.readouterr().err
    why = " is too small: give " if flag in VALUES else " is "
    assert err.startswith(f"error: --{flag}{why}") and "give " in err and err.count("\n") == 1


def test_the_library_does_not_start_xla_when_imported():
    """So that what the command sets for the CPU (`startup.before_jax`) is in time: a flag that XLA does not know ends it."""
    words = "import os, lm.recipes.finetune, jax; os.environ['XLA_FLAGS'] = '--xla_no_such_flag=1'; jax.devices()"
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True)
    assert done.returncode != 0 and "Unknown flag in XLA_FLAGS: --xla_no_such_flag" in done.stderr
