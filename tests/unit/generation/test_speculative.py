"""Writing with the heads of multi-token prediction: the text is the model's own, and good heads save passes through it."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from lm import config
from lm.data.rows import pack, stack
from lm.errors import UserError
from lm.generation.speculative import write
from lm.models.future import Future
from lm.models.transformer import Transformer
from lm.objectives import Lengths, causal
from lm.recipes import task
from tests import engines
from tests.fakes import small_model

MODEL = small_model("decoder")
HEADS, NEW = 3, 21
CYCLE = np.arange(5, 12)


@pytest.fixture(scope="module", params=[False, True], ids=["parallel", "sequential"])
def made(request):
    """The task and its parameters: random ones, and those that have learned to go round a cycle."""
    what = task(config.Run(MODEL, objective=config.MultiToken(HEADS, request.param)))
    rng = np.random.default_rng(0)
    texts = [np.resize(np.roll(CYCLE, -first), 17).astype(np.int32) for first in range(len(CYCLE))]
    batch = stack([pack([causal.decoder(text, rng)], Lengths(None, 16)) for text in texts])
    first = nn.unbox(what.init(jax.random.key(0), batch))
    drawn = jax.tree.map(lambda x: x + jnp.asarray(0.3 * rng.normal(size=x.shape), x.dtype), first)
    tx = optax.adam(1e-2)

    @jax.jit
    def step(carry, _):
        params, state = carry
        gradient = jax.grad(lambda p: what.loss(p, None, batch, None)[0].mean)(params)
        updates, state = tx.update(gradient, state)
        return (optax.apply_updates(params, updates), state), None

    (learned, _), _ = jax.lax.scan(step, (first, tx.init(first)), None, length=60)
    return Future(MODEL, HEADS, request.param), drawn, learned


def greedy(params, prompt, **settings):
    """What the model alone writes."""
    return engines.greedy(Transformer(MODEL), params["model"], prompt, NEW, **settings)


@pytest.mark.parametrize("size", [1, 2, 9])
def test_the_text_is_the_models_own_whatever_the_heads_guess(made, size):
    heads, drawn, _ = made
    for seed in range(3):
        prompt = np.random.default_rng(seed).integers(5, MODEL.vocab_size, size).astype(np.int32)
        text, rounds = write(Transformer(MODEL), drawn, heads, prompt, new_tokens=NEW)
        assert text.tolist() == greedy(drawn, prompt)
        assert NEW / (HEADS + 1) <= rounds <= NEW


def test_heads_that_know_the_text_save_passes(made):
    heads, _, learned = made
    prompt = np.resize(CYCLE, 4).astype(np.int32)
    text, rounds = write(Transformer(MODEL), learned, heads, prompt, new_tokens=NEW)
    assert text.tolist() == np.resize(CYCLE, 4 + NEW)[4:].tolist() == greedy(learned, prompt)
    assert rounds <= 1 + -(-(NEW - 1) // (HEADS + 1)) + 2  # all guesses are right, or nearly so


def test_it_stops_at_the_end_and_never_writes_what_is_forbidden(made):
    heads, _, learned = made
    prompt, eos = CYCLE[:3].astype(np.int32), int(CYCLE[6])
    text, rounds = write(Transformer(MODEL), learned, heads, prompt, new_tokens=NEW, eos_id=eos)
    assert text.tolist() == [8, 9, 10, *[eos] * (NEW - 3)]
    assert greedy(learned, prompt, ends=[eos]) == [8, 9, 10, eos]
    assert rounds <= 3
    never = np.arange(MODEL.vocab_size) == CYCLE[4]
    text, _ = write(Transformer(MODEL), learned, heads, prompt, new_tokens=NEW, forbidden=never)
    assert CYCLE[4] not in text.tolist() and text.tolist() == greedy(learned, prompt, never=[CYCLE[4]])


def test_one_token_takes_one_pass(made):
    heads, drawn, _ = made
    text, rounds = write(Transformer(MODEL), drawn, heads, CYCLE[:3].astype(np.int32), new_tokens=1)
    assert text.tolist() == greedy(drawn, CYCLE[:3].astype(np.int32))[:1] and rounds == 1


def test_guesses_need_positions_too():
    model = replace(MODEL, decoder=replace(MODEL.decoder, position=config.Learned(16)))
    with pytest.raises(UserError, match="16"):
        write(Transformer(model), {}, Future(model, HEADS, False), np.arange(10), new_tokens=4)
    with pytest.raises(UserError, match="the prompt is empty"):
        write(Transformer(model), {}, Future(model, HEADS, False), np.arange(0), new_tokens=4)
