"""Losses, the step and the optimizers, against Optax, against themselves whole, and on batches that are broken."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from lm import config, optim, sharding
from lm.config import Attention, Block, Head, Mlp, Model, Rope, Schedule, Stack
from lm.losses.chunked import num_chunks
from lm.losses.cross_entropy import cross_entropy, scores, token_losses
from lm.models.transformer import Transformer, head_params
from lm.training.step import counted, make_step, plan_state
from lm.types import Example, TokenStream, WeightedMean

B, T, D, V = 4, 12, 16, 37
MODEL = Model(V, D, decoder=Stack(1, {"L": Block(Attention(2), Mlp(32))}, position=Rope()), head=Head(bias=True))
APPLY = Transformer(MODEL).apply
LOSS = partial(cross_entropy, apply=APPLY, head_params=head_params, vocab_size=V)


def batch(seed=0, rows=B) -> Example:
    """Rows of very different weight."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, V, (rows, T + 1)).astype(np.int32)
    positions = np.broadcast_to(np.arange(T, dtype=np.int32), (rows, T))
    lengths = rng.integers(1, T + 1, rows)
    weights = (np.arange(T) < lengths[:, None]).astype(np.float32)
    stream = TokenStream(tokens[:, :-1], positions, weights.astype(np.int32))
    return jax.tree.map(jnp.asarray, Example(None, stream, tokens[:, 1:], weights))


@pytest.fixture(scope="module")
def params():
    shapes = nn.unbox(jax.eval_shape(Transformer(MODEL).init, jax.random.key(0), batch()))["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape) * 0.3, x.dtype), shapes)


def close(a, b, rtol=1e-5, atol=1e-6):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), a, b)


# ----------------------------------------------------------------------------------------------------- cross-entropy


def test_token_losses_are_optax():
    rng = np.random.default_rng(0)
    logits, targets = (4 * rng.normal(size=(3, 5, V))).astype(np.float32), rng.integers(0, V, (3, 5))
    got = jax.jit(token_losses)(logits, targets)
    expected = jax.jit(optax.softmax_cross_entropy_with_integer_labels)(logits, targets)
    close(got, expected)
    log_z = np.log(np.exp(logits.astype(np.float64)).sum(-1))
    close(jax.jit(partial(token_losses, z_loss=0.1))(logits, targets), expected + 0.1 * log_z**2)
    half = jax.jit(token_losses)(jnp.asarray(logits, jnp.bfloat16), targets)
    assert half.dtype == jnp.float32


def test_chunks_change_nothing(params):
    example = batch()

    def plain(p):
        logits = APPLY({"params": p}, example)
        return jnp.sum(example.weights * token_losses(logits, example.targets, 0.01))

    whole = jax.jit(jax.value_and_grad(plain))(params)
    for chunks in (1, 3, 12):
        loss = lambda p, n=chunks: LOSS(p, example=example, z_loss=0.01, chunks=n).total
        close(jax.jit(jax.value_and_grad(loss))(params), whole, rtol=2e-5, atol=2e-5)
    close(jax.jit(loss)(params), whole[0])


def test_chunked_sum_scales_with_what_follows(params):
    """The gradient formed in the forward pass takes part in the chain rule."""
    loss = lambda p: LOSS(p, example=batch(), chunks=3).total
    gradient = jax.jit(jax.grad(lambda p: jnp.sin(0.01 * loss(p))))(params)
    factor = 0.01 * jnp.cos(0.01 * jax.jit(loss)(params))
    close(gradient, jax.tree.map(lambda g: factor * g, jax.jit(jax.grad(loss))(params)))


def shapes_in(jaxpr):
    """Shapes of every value of a jaxpr and of those inside it."""
    for equation in jaxpr.eqns:
        for value in equation.outvars:
            yield tuple(value.aval.shape)
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from shapes_in(inner)


@pytest.mark.parametrize("chunks,whole", [(1, True), (4, False)])
def test_chunked_logits_never_live_whole(params, chunks, whole):
    """Neither traced nor compiled does the training step hold an array as large as all logits."""
    gradient = jax.grad(lambda p, e: LOSS(p, example=e, chunks=chunks).total)
    largest = max(np.prod(s, dtype=int) for s in shapes_in(jax.make_jaxpr(gradient)(params, batch()).jaxpr) if V in s)
    assert (largest >= B * T * V) == whole
    text = jax.jit(gradient).lower(params, batch()).as_text()
    assert any(f"tensor<{s}xf32>" in text for s in (f"{B}x{T}x{V}", f"{B * T}x{V}")) == whole
    assert whole or f"tensor<{B * T // chunks}x{V}xf32>" in text


@pytest.mark.parametrize(
    "shape,expected",
    [((2, 8, 100), 1), ((32, 1024, 50_257), 32), ((8, 80, 30_522), 1), ((1, 7, 2**26), 7), ((4096, 3, 50_000), 3)],
)
def test_num_chunks(shape, expected):
    n = num_chunks(*shape)
    assert n == expected and shape[1] % n == 0


def test_scores(params):
    got = jax.jit(lambda p, e: scores(p, APPLY, e, head_params=head_params, vocab_size=V))(params, batch())
    logits, e = jax.jit(APPLY)({"params": params}, batch()), batch()
    loss = jax.jit(optax.softmax_cross_entropy_with_integer_labels)(logits, e.targets)
    close(got["loss"].mean, np.average(loss, weights=e.weights))
    close(got["accuracy"].mean, np.average(logits.argmax(-1) == e.targets, weights=e.weights))


def test_weighted_mean():
    a, b = WeightedMean(6.0, 3.0), WeightedMean(2.0, 1.0)
    assert (a + b) == WeightedMean(8.0, 4.0)
    assert float((a + b).mean) == 2.0
    assert float(WeightedMean(0.0, 0.0).mean) == 0.0


# ----------------------------------------------------------------------------------------------------------- the step


@cache
def stepper(optimizer):
    """(plan of the state, step, mesh) on one device."""
    tx, _ = optim.make(optimizer, 100)
    mesh = sharding.make_mesh(config.Mesh(), jax.devices()[:1])
    loss = lambda params, frozen, example, rngs: (LOSS(params, example=example, rngs=rngs), {})
    init = lambda key: Transformer(MODEL).init(key, batch())["params"]
    plan = plan_state(init, tx, mesh, ema=optimizer.ema is not None)
    return plan, make_step(loss, tx, plan, optimizer=optimizer, train=config.Train()), mesh


SGD = optax.sgd(1.0)
CLIPPED = config.Optimizer(clip=1e-3, schedule=Schedule("constant", warmup=0), ema=0.75)


def one_gradient(params, example, microbatches):
    """The gradient of a step, from a step of plain descent of rate 1."""
    mesh = sharding.make_mesh(config.Mesh(), jax.devices()[:1])
    plan = plan_state(lambda key: Transformer(MODEL).init(key, batch())["params"], SGD, mesh, ema=False)
    loss = lambda params, frozen, example, rngs: (LOSS(params, example=example, rngs=rngs), {})
    settings = dict(optimizer=config.Optimizer(clip=None), train=config.Train(microbatches=microbatches))
    step = make_step(loss, SGD, plan, **settings)
    state = state_of(plan, params)
    with sharding.use(mesh):
        after, metrics = step(state, None, example)
    return jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), params, after.params), metrics


def state_of(plan, params, **changes):
    """The first state with these parameters, in its place; without compiling an init."""
    state = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), plan.abstract)
    given = jax.tree.map(np.array, params)
    state = state.replace(params=given, ema=given if state.ema is not None else None, **changes)
    return jax.tree.map(jnp.copy, jax.device_put(state, plan.shardings))  # a step takes the arrays it is given


def test_microbatches_are_the_whole_batch(params):
    example = batch()
    assert len(np.unique(np.asarray(example.weights).sum(1))) > 1
    whole, metrics = one_gradient(params, example, 1)
    parts, again = one_gradient(params, example, 4)
    close(parts, whole, rtol=1e-4)
    close(again, metrics)
    direct = jax.jit(jax.grad(lambda p: LOSS(p, example=example).mean))(params)
    close(whole, direct, rtol=1e-4)


def test_a_broken_batch_is_skipped(params):
    """Parameters, moments and average stay to the bit; the count in a row starts anew with a good one."""
    plan, step, mesh = stepper(CLIPPED)
    good = batch()
    with_weight = lambda x: good.replace(weights=np.where(np.arange(B * T).reshape(B, T) == 0, np.float32(x), good.weights))
    broken, infinite = with_weight(np.nan), with_weight(np.inf)
    kept = lambda state: jax.tree.map(np.array, (state.params, state.opt_state, state.ema))
    with sharding.use(mesh):
        state, metrics = step(state_of(plan, params), None, good)
        before = kept(state)
        for i, example in enumerate((broken, infinite)):
            state, metrics = step(state, None, example)
            jax.tree.map(np.testing.assert_array_equal, kept(state), before)
            assert (int(metrics["skipped"]), int(metrics["skipped_in_a_row"])) == (i + 1, i + 1)
        state, metrics = step(state, None, good)
    assert (int(metrics["skipped"]), int(metrics["skipped_in_a_row"]), int(state.step)) == (2, 0, 4)
    assert all((a != b).any() for a, b in zip(jax.tree.leaves(kept(state)[0]), jax.tree.leaves(before[0]), strict=True))
    assert np.isfinite(float(metrics["loss"]))


def averaged(old, new):
    return 0.75 * np.asarray(old) + 0.25 * np.asarray(new)


def test_clipping_averaging_and_counting(params):
    """The gradient is of the norm that was asked for; the average follows; 32 bits are not enough for the counts."""
    plan, step, mesh = stepper(CLIPPED)
    state = state_of(plan, params, seen=np.array([[2**32 - 1, 0], [5, 7]], np.uint32))
    with sharding.use(mesh):
        state, metrics = step(state, None, batch())
        moments = optax.tree_utils.tree_get(state.opt_state, "mu")  # 0.1 times the clipped gradient
        close(np.sqrt(sum(np.sum(np.square(x)) for x in jax.tree.leaves(moments))), 0.1 * 1e-3, rtol=1e-3)
        assert float(metrics["grad_norm"]) > 1e-3
        average = jax.tree.map(averaged, params, state.params)
        close(state.ema, average)
        tokens = int(np.asarray(batch().weights).sum())
        assert counted(np.asarray(state.seen)) == (2**32 - 1 + tokens, 7 * 2**32 + 5 + tokens)
        state, _ = step(state, None, batch(1))
    close(state.ema, jax.tree.map(averaged, average, state.params))


# --------------------------------------------------------------------------------------------------------- optimizers


@pytest.mark.parametrize("name,rate", [("adamw", 0.03), ("adafactor", 0.05), ("lion", 0.01), ("muon", 0.02)])
def test_every_optimizer_learns(params, name, rate):
    plan, step, mesh = stepper(config.Optimizer(name, rate, Schedule("constant", warmup=0), weight_decay=0.01))
    tx, _ = optim.make(config.Optimizer(name, rate, Schedule("constant", warmup=0), weight_decay=0.01), 100)
    state, seen, example = state_of(plan, params, opt_state=jax.jit(tx.init)(params)), [], batch()
    with sharding.use(mesh):
        for _ in range(15):
            state, metrics = step(state, None, example)
            seen.append(float(metrics["loss"]))
    assert seen[-1] < 0.7 * seen[0]
    assert int(metrics["skipped"]) == 0
