"""Losses, the step and the optimizers, against Optax, against themselves whole, and on batches that are broken."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from lm import config, optim, sharding
from lm.config import Attention, Block, Head, Mlp, Model, Norm, Rope, Schedule, Stack
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
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, e.targets)
    close(got["loss"].mean, np.average(loss, weights=e.weights))
    close(got["accuracy"].mean, np.average(logits.argmax(-1) == e.targets, weights=e.weights))


def test_weighted_mean():
    a, b = WeightedMean(6.0, 3.0), WeightedMean(2.0, 1.0)
    assert (a + b) == WeightedMean(8.0, 4.0)
    assert float((a + b).mean) == 2.0
    assert float(WeightedMean(0.0, 0.0).mean) == 0.0


# ----------------------------------------------------------------------------------------------------------- the step


def stepper(optimizer=None, **train):
    """(first state, step) on one device."""
    optimizer = optimizer or config.Optimizer(name="adamw", schedule=Schedule("constant", warmup=0), clip=None)
    tx, _ = optim.make(optimizer, 100)
    mesh = sharding.make_mesh(config.Mesh(), jax.devices()[:1])
    loss = lambda params, frozen, example, rngs: (LOSS(params, example=example, rngs=rngs), {})
    init = lambda key: Transformer(MODEL).init(key, batch())["params"]
    plan = plan_state(init, tx, mesh, ema=optimizer.ema is not None)
    return plan, make_step(loss, tx, plan, optimizer=optimizer, train=config.Train(**train)), mesh


SGD = optax.sgd(1.0)


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
    return jax.tree.map(lambda a, b: a - b, params, after.params), metrics


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
    optimizer = config.Optimizer(schedule=Schedule("constant", warmup=0), ema=0.9)
    plan, step, mesh = stepper(optimizer)
    good = batch()
    broken = good.replace(weights=good.weights.at[0, 0].set(jnp.nan))
    infinite = good.replace(weights=good.weights.at[0, 0].set(jnp.inf))
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


def test_clipping_averaging_and_counting(params):
    """The gradient is of the norm that was asked for; the average follows; 32 bits are not enough for the counts."""
    plan, step, mesh = stepper(config.Optimizer(clip=1e-3, schedule=Schedule("constant", warmup=0), ema=0.75))
    state = state_of(plan, params, seen=np.array([[2**32 - 1, 0], [5, 7]], np.uint32))
    with sharding.use(mesh):
        state, metrics = step(state, None, batch())
        moments = optax.tree_utils.tree_get(state.opt_state, "mu")  # 0.1 times the clipped gradient
        close(optax.tree.norm(moments), 0.1 * 1e-3, rtol=1e-3)
        assert float(metrics["grad_norm"]) > 1e-3
        average = jax.tree.map(lambda old, new: 0.75 * old + 0.25 * new, params, state.params)
        close(state.ema, average)
        tokens = int(np.asarray(batch().weights).sum())
        assert counted(np.asarray(state.seen)) == (2**32 - 1 + tokens, 7 * 2**32 + 5 + tokens)
        state, _ = step(state, None, batch(1))
    close(state.ema, jax.tree.map(lambda old, new: 0.75 * old + 0.25 * new, average, state.params))


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


FULL = Block(Attention(2, bias=True, out_bias=True, qk_norm=Norm("rms")), Mlp(32, gated=True, bias=True))


@pytest.mark.parametrize("scan", [False, True])
def test_what_decays_and_what_muon_turns(scan):
    """Kernels of the trunk, by name: no norm, bias, table of embeddings or of positions; Muon leaves the head too."""
    stack = Stack(2, {"L": FULL}, position=config.Learned(32), scan=scan)
    model = Model(V, D, decoder=stack, head=Head(tied=False, bias=True))
    params = nn.unbox(jax.eval_shape(Transformer(model).init, jax.random.key(0), batch()))["params"]
    name = lambda path: jax.tree_util.keystr(path, simple=True, separator="/")
    flat = {name(p): x for p, x in jax.tree_util.tree_flatten_with_path(params)[0]}
    decays = {name(p): x for p, x in jax.tree_util.tree_flatten_with_path(optim.is_matrix(params))[0]}
    assert {n for n, yes in decays.items() if yes} == {n for n in flat if n.endswith("/kernel")}
    assert not any(decays[n] for n in flat if "norm" in n or "embed" in n)

    dimensions = optim.muon_dimensions(params)
    is_leaf = lambda x: x is None or isinstance(x, optax.contrib.MuonDimensionNumbers)
    turned = {name(p): x for p, x in jax.tree_util.tree_flatten_with_path(dimensions, is_leaf=is_leaf)[0]}
    assert turned["head/out/kernel"] is None
    assert {n for n, x in turned.items() if x} == {n for n in flat if n.endswith("/kernel")} - {"head/out/kernel"}
    shift = 1 if scan else 0
    block = "decoder/groups/block_0" if scan else "decoder/group_1/block_0"
    sizes = lambda n, axes: int(np.prod([flat[n].shape[a] for a in axes]))
    for n, inputs, outputs in (("attention/query", D, D), ("attention/out", D, D), ("ffn/up", D, 32), ("ffn/down", 32, D)):
        x, n = turned[f"{block}/{n}/kernel"], f"{block}/{n}/kernel"
        assert (sizes(n, x.reduction_axis), sizes(n, x.output_axis)) == (inputs, outputs)
        assert sorted((*x.reduction_axis, *x.output_axis)) == list(range(shift, flat[n].ndim))
    assert turned[f"{block}/attention/out/kernel"].reduction_axis == (shift, shift + 1)


AFTER = {  # the curve of each kind after the warm-up: x of it is over, 0 to 1, and n updates; peak 1
    "constant": lambda x, n, final: 1.0,
    "linear": lambda x, n, final: 1 - (1 - final) * x,
    "cosine": lambda x, n, final: final + (1 - final) * (1 + np.cos(np.pi * x)) / 2,
    "rsqrt": lambda x, n, final: (11 / (11 + n)) ** 0.5,
    "wsd": lambda x, n, final: 1.0 if n <= 77 else 1 - (1 - final) * (n - 77) / 22,  # of 110 steps, a fifth decays
}


@pytest.mark.parametrize("kind", AFTER)
@pytest.mark.parametrize("warmup", [11, 0.1])
@pytest.mark.parametrize("final", [0.0, 0.1])
def test_every_schedule_by_its_formula(kind, warmup, final):
    """Peak 2, 110 steps, a warm-up of 11 or a tenth: by the updates made before."""
    rate = optim.schedule(Schedule(kind, warmup=warmup, final=final), 2.0, 110)
    expected = [2 * (s + 1) / 11 if s < 11 else 2 * AFTER[kind]((s - 11) / 99, s - 11, final) for s in range(110)]
    assert [float(rate(s)) for s in range(110)] == pytest.approx(expected, rel=1e-5, abs=1e-7)
    assert min(expected) > 0, "no step is wasted on a rate of 0"


def test_schedules():
    """Values by hand: peak 2, 110 steps."""
    at = lambda c, *steps: [float(optim.schedule(c, 2.0, 110)(s)) for s in steps]
    approx = partial(pytest.approx, rel=1e-5, abs=1e-7)
    assert at(Schedule("wsd", warmup=10, final=0.1, decay=50), 60, 85, 110) == approx([2, 1.1, 0.2])
    assert at(Schedule("linear", warmup=0, final=0.0), 0, 55, 110) == approx([2, 1, 0])
    assert at(Schedule("rsqrt", warmup=0), 0, 3, 8) == approx([2, 1, 2 / 3])


@pytest.mark.parametrize("kind", AFTER)
def test_short_schedules(kind):
    """The only step of a run trains, a warm-up as long as the run ends at the peak, and a longer one is cut to it."""
    at = lambda warmup, steps: [
        float(optim.schedule(Schedule(kind, warmup=warmup, final=0.0), 2.0, steps)(s)) for s in range(steps)
    ]
    assert at(1, 1) == at(0, 1) == at(100, 1) == [2]
    assert at(4, 4) == at(100, 4) == pytest.approx([0.5, 1, 1.5, 2])
    assert at(0.01, 4)[0] == 2, "a hundredth of four steps is none"


def test_a_decay_that_does_not_fit():
    from lm.errors import UserError

    with pytest.raises(UserError, match="decay=60 does not fit the 50 steps"):
        optim.schedule(Schedule("wsd", warmup=50, decay=60), 1.0, 100)
