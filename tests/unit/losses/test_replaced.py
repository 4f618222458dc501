"""Replaced-token detection against sums in plain numpy; what is shared; what is asked; what is refused."""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from lm import config
from lm.config import Attention, Block, Embed, Head, Learned, Mlp, Model, ReplacedTokens, Stack
from lm.errors import UserError
from lm.losses import replaced
from lm.models.transformer import Transformer
from lm.objectives import DECLARATIONS
from lm.recipes import task
from lm.recipes.pretrain import TASKS
from lm.recipes.replaced_tokens import with_shared_tables, without_shared_tables
from lm.types import Example, TokenStream

B, T, P, D, V, MASK = 4, 12, 6, 16, 37, 3
STACK = Stack(1, {"L": Block(Attention(2), Mlp(32))}, position=Learned(T))
GENERATOR = Model(V, 8, encoder=STACK, embed=Embed(width=D), head=Head(transform="gelu", bias=True))
BINARY, WORDS = Head(tied=False, outputs=1, bias=True), Head(bias=True)
KINDS = ("replaced", "replaced_chosen", "masked", "all")


def run_of(predict="replaced", model=None, **changes):
    head = BINARY if predict.startswith("replaced") else WORDS
    objective = ReplacedTokens(GENERATOR, rate=0.2, weight=7.0, predict=predict)
    return config.Run(model or Model(V, D, encoder=STACK, head=head), objective=replace(objective, **changes))


def batch(seed=0):
    """Rows of different lengths, with one to five masks each; padding of `where` is 0, a place that is a real token's."""
    rng = np.random.default_rng(seed)
    tokens, where, targets = rng.integers(5, V, (B, T)), np.zeros((B, P), int), np.zeros((B, P), int)
    weights, lengths = np.zeros((B, P), np.float32), rng.integers(6, T + 1, B)
    segments = (np.arange(T) < lengths[:, None]).astype(int)
    for b in range(B):
        chosen = np.sort(rng.choice(np.arange(1, lengths[b]), rng.integers(1, P), replace=False))
        n = len(chosen)
        where[b, :n], targets[b, :n], weights[b, :n] = chosen, tokens[b, chosen], 1
        tokens[b, chosen] = MASK
    positions = np.broadcast_to(np.arange(T), (B, T))
    i = lambda x: jnp.asarray(x, jnp.int32)
    return Example(
        TokenStream(i(tokens * segments), i(positions), i(segments)), None, i(targets), jnp.asarray(weights), i(where)
    )


PARAMS = {}  # by model and objective


def params_of(run):
    if (run.model, run.objective) not in PARAMS:
        shapes = nn.unbox(jax.eval_shape(task(run).init, jax.random.key(0), batch()))
        rng = np.random.default_rng(0)
        params = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape) * 0.3, x.dtype), shapes)
        PARAMS[run.model, run.objective] = params
    return PARAMS[run.model, run.objective]


generator_logits = jax.jit(Transformer(GENERATOR).apply)


@cache
def forward(model):
    """Compiled: parameters and tokens [B, T] -> hidden vectors and logits."""
    module = Transformer(model)

    def run(p, tokens):
        stream = batch().encoder.replace(tokens=tokens)
        hidden = module.apply({"params": p}, Example(stream, None, None, None), method="hidden")
        return hidden, module.apply({"params": p}, hidden, method="logits")

    return jax.jit(run)


def log_softmax(x):
    x = np.asarray(x, np.float64)
    return x - np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True)) - x.max(-1, keepdims=True)


def plainly(run, params, drawn):
    """(generator's sum, model's sum, weight): whole logits, float64, loops over places."""
    e, predict = batch(), run.objective.predict
    whole = with_shared_tables(params["generator"], params["model"])
    first = log_softmax(generator_logits({"params": whole}, e))
    weights, where, targets = (np.asarray(x) for x in (e.weights, e.where, e.targets))
    read, flags = np.array(e.encoder.tokens), np.zeros((B, T))
    original, generator = read.copy(), 0.0
    for b, k in zip(*np.nonzero(weights), strict=True):
        generator -= first[b, k, targets[b, k]]
        original[b, where[b, k]] = targets[b, k]
        read[b, where[b, k]] = drawn[b, k]
    flags = read != original
    hidden, logits = forward(run.model)(params["model"], jnp.asarray(read))
    places = [(b, where[b, k]) for b, k in zip(*np.nonzero(weights), strict=True)]
    if predict in ("replaced", "all"):
        places = list(zip(*np.nonzero(np.asarray(e.encoder.segments)), strict=True))
    total = 0.0
    for b, t in places:
        if predict.startswith("replaced"):
            p = 1 / (1 + np.exp(-np.float64(logits[b, t, 0])))
        else:
            p = np.exp(log_softmax(logits[b, t]))[original[b, t]]
        if predict == "all":
            gate = np.float64(hidden[b, t]) @ params["copy"]["kernel"][:, 0] + params["copy"]["bias"][0]
            copied = 1 / (1 + np.exp(-gate))
            p = copied * (read[b, t] == original[b, t]) + (1 - copied) * p
        elif predict.startswith("replaced"):
            p = p if flags[b, t] else 1 - p
        total -= np.log(p)
    return generator, total, len(places)


def drawn_by(run, params, key):
    """The tokens that the loss draws with this key, from whole logits."""
    uniform = jax.random.uniform(jax.random.split(key, 3)[0], (B, P))
    whole = with_shared_tables(params["generator"], params["model"])
    shares = np.exp(log_softmax(generator_logits({"params": whole}, batch())))
    return np.sum(np.cumsum(shares, -1) <= np.asarray(uniform)[..., None], -1)


@pytest.mark.parametrize("predict", KINDS)
def test_the_loss_is_the_plain_one(predict):
    run = run_of(predict)
    params, key = params_of(run), jax.random.key(5)
    got = jax.jit(lambda p: task(run).loss(p, None, batch(), {"dropout": key})[0])(params)
    generator, model, weight = plainly(run, params, drawn_by(run, params, key))
    scale = 0.2 if predict in ("replaced", "all") else 1.0
    assert float(got.weight) == weight
    np.testing.assert_allclose(float(got.total), generator / scale + 7.0 * model, rtol=1e-5)


@pytest.mark.parametrize("predict", KINDS)
def test_scores_are_the_plain_ones(predict):
    run = run_of(predict)
    params = params_of(run)
    scores = jax.jit(task(run).scores)
    got = {k: (float(v.total), float(v.weight)) for k, v in scores(params, None, batch()).items()}
    drawn = drawn_by(run, params, jax.random.key(0))
    generator, model, weight = plainly(run, params, drawn)
    chosen = float(batch().weights.sum())
    np.testing.assert_allclose(got["generator_loss"], (generator, chosen), rtol=1e-5)
    np.testing.assert_allclose(got["model_loss"], (model, weight), rtol=1e-5)
    changed = float(((drawn != batch().targets) * batch().weights).sum())
    assert got["accuracy_replaced"][1] == changed and got["accuracy_kept"][1] == weight - changed
    np.testing.assert_allclose(got["accuracy_replaced"][0] + got["accuracy_kept"][0], got["accuracy"][0])
    assert 0 <= got["accuracy_replaced"][0] <= changed
    again = scores(params, None, batch())
    assert {k: (float(v.total), float(v.weight)) for k, v in again.items()} == got, "the same is drawn each time"


@pytest.mark.parametrize("predict", ["replaced", "masked"])
def test_chunks_and_microbatches_change_nothing(predict):
    """Of loss and gradient."""
    run = run_of(predict)
    params, t = params_of(run), task(run)
    settings = dict(predict=predict, rate=0.2, weight=7.0, vocab_size=V, head_params=lambda p: p)
    apply = {"generator": Transformer(GENERATOR).apply, "model": Transformer(run.model).apply}

    def total(p, chunks):
        whole = {"generator": with_shared_tables(p["generator"], p["model"]), "model": p["model"]}
        return replaced.loss(whole, apply, batch(), chunks=chunks, rngs={"dropout": jax.random.key(1)}, **settings).total

    one, three = (jax.jit(jax.value_and_grad(lambda p, n=n: total(p, n)))(params) for n in (1, 3))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), one, three)
    # A generator that is sure: what it draws does not depend on the key.
    sure = jax.tree.map(jnp.zeros_like, params["generator"])
    sure["head"]["bias"] = jnp.where(jnp.arange(V) == 9, 100.0, 0.0)
    params = params | {"generator": sure}
    gradient = jax.jit(jax.grad(lambda p, e, key: t.loss(p, None, e, {"dropout": key})[0].total))
    part = lambda i: jax.tree.map(lambda x: x[i], batch())
    parts = [gradient(params, part(slice(i, i + 1)), jax.random.key(i)) for i in range(B)]
    added = jax.tree.map(lambda *x: sum(x), *parts)
    whole = gradient(params, batch(), jax.random.key(9))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4), added, whole)


def test_what_was_drawn_right_counts_as_original():
    """The docstring's example; padding of `where` changes nothing at place 0."""
    i = lambda *x: jnp.asarray([x], jnp.int32)
    stream = TokenStream(i(1, 20, MASK, 22, 23, MASK, 0), i(*range(7)), i(1, 1, 1, 1, 1, 1, 0))
    e = Example(stream, None, i(21, 24, 0), jnp.asarray([[1.0, 1.0, 0.0]]), i(2, 5, 0))
    for predict, targets, weights in (
        ("replaced", [0, 0, 0, 0, 0, 1, 0], [1, 1, 1, 1, 1, 1, 0]),
        ("all", [1, 20, 21, 22, 23, 24, 0], [1, 1, 1, 1, 1, 1, 0]),
        ("replaced_chosen", [0, 1, 1], [1, 1, 0]),
        ("masked", [21, 24, 0], [1, 1, 0]),
    ):
        asked, changed = replaced.substituted(e, i(21, 30, 31), predict)
        assert asked.encoder.tokens.tolist() == [[1, 20, 21, 22, 23, 30, 0]]
        assert asked.targets.tolist() == [targets] and asked.weights.tolist() == [weights]
        assert changed.tolist() == [[False] * 5 + [True, False]] if asked.where is None else [[False, True, True]]


def test_draws_have_the_softmax_probabilities():
    logits = jnp.asarray([2.0, -1.0, 0.5, -60.0, 1.0])
    uniform = (jnp.arange(20_000) + 0.5) / 20_000
    drawn = jax.jit(lambda u: replaced.draw(jnp.broadcast_to(logits, (len(u), 5)), u))(uniform)
    shares = np.bincount(drawn, minlength=5) / len(drawn)
    np.testing.assert_allclose(shares, np.exp(log_softmax(logits)), atol=2e-4)
    ends = jnp.asarray([0.0, 1 - 2**-24])
    assert replaced.draw(jnp.asarray([[-jnp.inf, 0.0, -jnp.inf]] * 2), ends).tolist() == [1, 1], "nothing impossible"


def test_tables_are_one_and_learn_from_both():
    run = run_of()
    params, t = params_of(run), task(run)
    assert "tokens" not in params["generator"]["embed"] and "encoder_positions" not in params["generator"]["embed"]
    assert set(params["generator"]["embed"]) == {"project"}
    gradient = lambda weight: jax.jit(
        jax.grad(lambda p: task(run_of(weight=weight)).loss(p, None, batch(), {"dropout": jax.random.key(1)})[0].total)
    )(params)
    generators, both = gradient(0.0), gradient(7.0)
    table = lambda g: np.asarray(g["model"]["embed"]["tokens"]["embedding"])
    assert np.abs(table(generators)).max() > 1e-3, "the generator's own loss reaches the model's table"
    assert np.abs(generators["model"]["encoder"]["group_0"]["block_0"]["ffn"]["up"]["kernel"]).max() == 0
    assert np.abs(table(both) - table(generators)).max() > 1e-3
    for a, b in zip(jax.tree.leaves(generators["generator"]), jax.tree.leaves(both["generator"]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)  # nothing goes back through what was drawn
    model, own = t.writer(params, None)
    assert model.config == GENERATOR
    np.testing.assert_array_equal(own["embed"]["tokens"]["embedding"], params["model"]["embed"]["tokens"]["embedding"])


def test_tables_of_other_shapes_stay_the_generators():
    table = lambda n: {"embedding": np.zeros((n, 4))}
    model = {"embed": {"tokens": table(9), "encoder_positions": table(5), "types": table(2)}, "encoder": 1}
    generator = {"embed": {"tokens": table(9), "encoder_positions": table(7)}, "encoder": 2}
    own = without_shared_tables(generator, model)
    assert set(own["embed"]) == {"encoder_positions"} and own["encoder"] == 2
    whole = with_shared_tables(own, model)["embed"]
    assert whole["tokens"] is model["embed"]["tokens"] and whole["encoder_positions"]["embedding"].shape == (7, 4)
    assert "embed" not in without_shared_tables({"embed": {"tokens": table(9)}}, model), (
        "no empty part for a checkpoint to hold"
    )


def test_objectives_with_a_loss_of_their_own_are_those_that_have_a_task():
    """The others are trained by the cross-entropy of their Examples' targets, two of them with no mask among the answers."""
    same = {config.MaskedDiffusion, config.BlockDiffusion}
    assert {declared.config for declared in DECLARATIONS.values() if declared.own_loss} == set(TASKS) - same


BASE = run_of().model


@pytest.mark.parametrize(
    "run,words",
    [
        (run_of("replaced", replace(BASE, head=WORDS)), "head.outputs=1 --config.model.head.tied=False"),
        (run_of("replaced_chosen", replace(BASE, head=None)), "head.outputs=1"),
        (run_of("masked", BASE), "asks for tokens: set --config.model.head.outputs=None"),
        (run_of("all", BASE), "asks for tokens"),
        (run_of(generator=replace(GENERATOR, vocab_size=V + 1)), "vocab_size=38 and model.vocab_size=37 differ"),
        (run_of(generator=replace(GENERATOR, embed=Embed())), "tables 8 wide and the model 16.*embed.width=16"),
        (run_of(generator=replace(GENERATOR, head=BINARY)), "a head of the vocabulary"),
        (run_of(generator=replace(GENERATOR, encoder=None, decoder=STACK)), "an encoder alone"),
    ],
)
def test_what_does_not_match_is_refused(run, words):
    with pytest.raises(UserError, match=words):
        task(run)


def test_a_tied_head_is_as_wide_as_its_table():
    with pytest.raises(UserError, match="embed.width=16 is not width=8.*head.transform=gelu, or head.tied=False"):
        replace(GENERATOR, head=Head())
