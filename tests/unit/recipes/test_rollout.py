"""What the engine writes for a policy: the same tokens and log-probabilities that the loss reads."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from lm import config
from lm.generation.engine import Engine, Request
from lm.generation.tools import Calling, Tool, write
from lm.losses import policy
from lm.models import adapters
from lm.models.transformer import Transformer, boxed_params, head_params
from lm.objectives import Lengths
from lm.recipes.rollout import blank_row, ends_of, gathered, seed_of

V, EOS, LENGTH, NEW, GROUP = 64, 2, 12, 5, 4
PROMPTS = [np.arange(5, 5 + n, dtype=np.int32) for n in (3, 7, 4)]
LENGTHS = {"decoder": Lengths(None, LENGTH + NEW - 1, NEW), "encoder_decoder": Lengths(LENGTH, NEW, None)}


class Made:
    def __init__(self, architecture, **dtypes):
        block = config.Block(config.Attention(2), config.Mlp(32), cross=architecture == "encoder_decoder")
        stack = config.Stack(2, {"L": block}, position=config.Rope())
        encoder = config.Stack(1, {"L": config.Block(config.Attention(2), config.Mlp(32))}, position=config.Rope())
        self.lengths = LENGTHS[architecture]
        self.model = Transformer(
            config.Model(V, 16, encoder=encoder if self.lengths.encoder else None, decoder=stack, **dtypes)
        )
        rows = jax.tree.map(lambda x: jnp.asarray(x)[None], blank_row(self.lengths))
        params = nn.unbox(self.model.init(jax.random.key(0), rows.example)["params"])
        self.params = jax.tree.map(lambda x: 3 * x, params)  # sharper than a model that knows nothing
        self.never = np.arange(V) % 7 == 3
        self.never[EOS] = False
        size = dict(length=self.lengths.decoder + 1, source=self.lengths.encoder or 0)
        self.engine = Engine(self.model, self.params, slots=8, steps=NEW, eos=(EOS,), forbidden=self.never, **size)

    def prompt(self, ids):
        return (ids, np.array([1], np.int32)) if self.lengths.encoder else (None, ids)

    def write(self, temperature, params=None, calling=None):
        self.engine.params = self.params if params is None else params
        prompts = [self.prompt(ids) for ids in PROMPTS]
        how = lambda i: config.Sampling(temperature=temperature, seed=seed_of(0, i))
        asked = [Request(b, NEW, how(i), e, samples=GROUP) for i, (e, b) in enumerate(prompts)]
        written = [answer for answers in write(self.engine, asked, calling) for answer in answers]
        given = [prompt for prompt in prompts for _ in range(GROUP)]
        return written, gathered(given, written, np.arange(len(written)), self.lengths, ends=(EOS,))

    def judged(self, batch, temperature, forbidden, params=None):
        params = self.params if params is None else params
        hidden = self.model.apply({"params": params}, batch.example, method="hidden")
        settings = dict(vocab_size=V, temperature=temperature, forbidden=forbidden)
        return policy.judged(head_params(params), self.model.apply, hidden, batch.example.targets, **settings)


@pytest.fixture(scope="module", params=LENGTHS)
def made(request):
    return Made(request.param)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_sampler_and_trainer_agree(made, temperature):
    """Up to the rounding of float32: other shapes of the same sums. With another temperature or without the tokens that are
    never written they would not."""
    written, batch = made.write(temperature)
    mask = batch.mask
    found = made.judged(batch, temperature, made.never)
    apart = np.abs(np.asarray(found.log_probs) - batch.log_probs)[mask]
    assert apart.max() < 2e-5 and mask.sum() == sum(len(answer.tokens) for answer in written) > 30
    assert np.abs(np.asarray(made.judged(batch, temperature, None).log_probs) - batch.log_probs)[mask].max() > 1e-3
    assert np.abs(np.asarray(made.judged(batch, 0.8, made.never).log_probs) - batch.log_probs)[mask].max() > 1e-2
    assert (np.asarray(found.entropy)[mask] > 0).all() and np.isfinite(found.entropy).all()
    assert not made.never[batch.example.targets[mask]].any()


def test_adapters_are_sampled_as_they_are_trained():
    """In bfloat16 a small adapter that is added to its matrix is lost to rounding."""
    made, lora = Made("decoder", dtype="bfloat16", param_dtype="bfloat16"), config.Lora(2)
    own = adapters.init(jax.random.key(1), boxed_params(made.model), lora)
    own = jax.tree.map(lambda x: x + 1e-3 * jax.random.normal(jax.random.key(2), x.shape, x.dtype), nn.unbox(own))
    trained = adapters.merge(made.params, own, lora.factor)
    apart = {}
    for name, params in (("beside", trained), ("added", adapters.unboxed(trained))):
        _, batch = made.write(1.0, params)
        apart[name] = np.abs(np.asarray(made.judged(batch, 1.0, made.never, trained).log_probs) - batch.log_probs)[batch.mask]
    assert apart["beside"].mean() < apart["added"].mean() / 3


def test_what_was_written_is_what_has_loss(made):
    written, batch = made.write(1.0)
    for i, sample in enumerate(written):
        ids, n = sample.tokens, len(sample.tokens)
        begun = made.prompt(PROMPTS[i // GROUP])[1]
        np.testing.assert_array_equal(batch.example.targets[i, :n], ids)
        np.testing.assert_array_equal(batch.example.weights[i], np.arange(NEW) < n)
        np.testing.assert_array_equal(batch.example.decoder.tokens[i, : len(begun) + n - 1], [*begun, *ids[:-1]])
        assert batch.lengths[i] == n and batch.truncated[i] == (ids[-1] != EOS) and batch.rewards[i] == i
        assert (batch.log_probs[i, n:] == 0).all()
    assert 0 < batch.truncated.sum() < len(written) or (batch.lengths == NEW).all()


class Numbers:
    """A tokenizer: a token is its number, and a tool's output is three tokens."""

    unk_id = None

    def decode(self, ids):
        return "".join(f" {i}" for i in ids)

    def encode(self, text):
        return np.array([40, 41, 42], np.int32)


def test_outputs_of_tools_are_read_and_have_no_loss(made):
    """Even tokens are calls. The trainer's log-probabilities of what the policy wrote are the sampler's, outputs before it
    included; nothing else has one."""
    calling = Calling(Numbers(), [Tool(r" \d*([02468])(?!\d)", str)], 1)
    written, batch = made.write(1.0, calling=calling)
    called = [i for i, answer in enumerate(written) if answer.calls]
    assert called and len(called) < len(written)
    for i, answer in enumerate(written):
        n, own = len(answer.tokens), np.array(answer.own)
        np.testing.assert_array_equal(batch.example.targets[i, :n], answer.tokens)
        np.testing.assert_array_equal(batch.example.weights[i, :n], own)
        assert batch.lengths[i] == own.sum() == n - 3 * answer.calls and (batch.log_probs[i, :n][~own] == 0).all()
        if answer.calls:
            (first,) = np.flatnonzero(~own)[:1]
            assert answer.tokens[first - 1] % 2 == 0 and answer.tokens[first : first + 3] == [40, 41, 42]
    mask = batch.mask
    found = made.judged(batch, 1.0, made.never)
    assert np.abs(np.asarray(found.log_probs) - batch.log_probs)[mask].max() < 2e-5
    ready = policy.prepared(jax.tree.map(jnp.asarray, batch), policy.METHODS["reinforce"], group=GROUP)
    ready = ready.replace(fresh=jnp.ones(len(written)))
    loss = lambda x: policy.loss(policy.TokenScores(x, x), ready, policy.METHODS["reinforce"])[0].mean
    slope = np.asarray(jax.grad(loss)(found.log_probs))
    assert (slope[~mask] == 0).all() and (slope[mask & (np.asarray(batch.rewards)[:, None] > 0)] != 0).all()


def test_new_parameters_compile_nothing_and_a_prompt_is_read_once(made):
    made.write(1.0)
    compiled, read = made.engine.compilations, made.engine.prefilled
    again, batch = made.write(1.0)
    assert made.engine.compilations == compiled
    if not made.lengths.encoder:
        assert made.engine.prefilled - read == sum(map(len, PROMPTS))  # not GROUP times
    other = jax.tree.map(lambda x: 1.5 * x, made.params)
    moved, _ = made.write(1.0, other)
    assert made.engine.compilations == compiled
    assert [a.tokens for a in moved] != [a.tokens for a in again]
    back, same = made.write(1.0)
    jax.tree.map(np.testing.assert_array_equal, batch, same)  # bits, whatever was written in between


def test_an_answer_ends_as_its_record_does():
    roles = SimpleNamespace(role_ids={"<|end|>": 22, "<|assistant|>": 20}, bos_id=1, require=lambda name: EOS)
    roles.encode = lambda text: np.zeros(0, np.int32)
    source = lambda format: config.Source(kind="jsonl", path="x", format=format)
    of = lambda *formats: ends_of(config.Data(sources={format: source(format) for format in formats}), roles)
    assert of("pair", "labelled") == (EOS,) and of("messages") == (22,) and of("messages", "pair") == (EOS, 22)


def test_seeds_are_a_function_of_the_run_and_the_question():
    seeds = {seed_of(s, n) for s in (0, 1) for n in range(1000)}
    assert len(seeds) == 2000 and all(0 <= seed < 2**32 for seed in seeds) and seed_of(0, 3) == seed_of(0, 3)
