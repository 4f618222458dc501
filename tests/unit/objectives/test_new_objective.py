"""A new objective is its config and one declaration: what builds rows, trains, scores spans and writes samples reads these."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import config, objectives, optim, sharding
from lm.config import Attention, Block, Mlp, Model, Rope, Stack
from lm.data.rows import Rows
from lm.errors import UserError
from lm.evaluation.spans import score
from lm.generation import samples
from lm.models.transformer import Transformer
from lm.objectives import causal, prompts
from lm.objectives.declaration import required_length
from lm.objectives.dummy_vocabulary import DummyVocabulary
from lm.recipes import recipe, task
from lm.training.step import make_step, plan_state
from tests.fakes import MemoryStore

V, A = 140, 110  # "a" is token 110
TEXT = np.arange(A, A + 9, dtype=np.int32)


@dataclass(frozen=True)
class Backwards:
    """Next token, right to left."""


def decoder(tokens, rng):
    return causal.decoder(tokens[::-1], rng)


def build(c, data, v):
    length = required_length(data, "decoder_length")
    return objectives.Objective(decoder, objectives.Lengths(None, length), length + 1, length, shortest=2)


def ask(span, v):
    """The target from its end on, given what follows it."""
    text = prompts.join(span.target, span.right)[::-1]
    return [prompts.answer(text, len(span.target))]


def reverse(parts, tokenizer, new_tokens, rng):
    return [parts[0][::-1]]


DECLARED = objectives.Declaration(
    Backwards,
    suits={
        "decoder": objectives.Suit(
            build, factors=True, reads_prefix=False, spans={"infill": prompts.SpanPrompt(ask, True, "from its end")}
        )
    },
    refused={"encoder": "it sees the text; take 'masked'"},
    prompt=prompts.TextPrompt(reverse),
)


class Letters(DummyVocabulary):
    def encode(self, text):
        return np.array([ord(c) - 97 + A for c in text], np.int32)

    def decode(self, ids):
        return "".join(chr((i - A) % 26 + 97) for i in ids)


STORE = MemoryStore(A + np.arange(80) % 26, [40, 40])  # two documents of the alphabet


@pytest.fixture
def run(monkeypatch):
    monkeypatch.setitem(objectives.DECLARATIONS, Backwards, DECLARED)
    model = Model(V, 16, decoder=Stack(1, {"L": Block(Attention(2), Mlp(16))}, position=Rope()))
    return config.Run(model, config.Data(decoder_length=16), Backwards())


def test_it_trains_and_is_asked(run):
    built = objectives.build(run.objective, "decoder", run.data, Letters(V))
    what, tx = task(run), optim.make(run.optimizer, 2)[0]
    rows, mesh = Rows({"a": STORE}, built, 0), sharding.make_mesh(config.Mesh(), jax.devices()[:1])
    batches = [jax.tree.map(jnp.asarray, rows.rows(np.arange(4 * i, 4 * i + 4))) for i in range(2)]
    assert (np.diff(batches[0].decoder.tokens[0, :4]) % 26 == 25).all()
    with sharding.use(mesh):
        plan = plan_state(lambda key: what.init(key, batches[0]), tx, mesh, ema=False)
        step = make_step(what.loss, tx, plan, optimizer=run.optimizer, train=run.train, asked=what.asked)
        state = plan.create(0)
        first = jax.tree.leaves(jax.tree.map(np.array, state.params))
        for batch in batches:
            state, metrics = step(state, None, batch)
        assert int(state.step) == 2 and np.isfinite(metrics["loss"])
        assert all((a != b).any() for a, b in zip(first, jax.tree.leaves(state.params), strict=True))

        span = prompts.Span(TEXT[:2], TEXT[2:5], TEXT[5:], 3)
        found = score(Transformer(run.model), state.params, run.objective, Letters(V), [span], kind="infill")
        assert found.tokens == 3 and found.nats > 0 and (found.normalised, found.note) == (True, "from its end")
        settings = dict(new_tokens=4, temperature=0.0, seed=0)
        (shown,) = samples.samples(Transformer(run.model), state.params, Letters(V), run.objective, ("abc",), **settings)
        assert shown["prompt"] == "abc" and len(shown["text"]) <= 4


def test_a_run_of_it_passes_the_checks_of_every_run(run):
    mesh = sharding.make_mesh(config.Mesh(), jax.devices()[:1])
    recipe(run).check(run, task(run), mesh)
    samples.check(run.model, Letters(V), run.objective, ("abc",), new_tokens=4, seed=0)
    with pytest.raises(UserError, match="'backwards' does not suit the encoder: it sees the text"):
        objectives.build(run.objective, "encoder", run.data, Letters(V))
