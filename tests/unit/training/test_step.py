"""The step on parameters whose gradient is given: what is kept of a broken update, and in which precision the rest goes on."""

from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from flax import linen as nn

from lm import config, optim, sharding
from lm.config import Optimizer, Schedule
from lm.data.loader import Position
from lm.errors import Diverged, UserError
from lm.training import hooks, resume
from lm.training.loop import Clock
from lm.training.step import finite, make_step, plan_state
from lm.types import Example, TokenStream, WeightedMean

N = 6
CONSTANT = Schedule("constant", warmup=0)
OPTIMIZERS = ["adamw", "adafactor", "lion", "muon"]


def given(gradient) -> Example:
    """A batch whose loss has this gradient [N, N] for the matrix, and its first row for the scale."""
    gradient = jnp.asarray(gradient, jnp.float32)
    one = jnp.ones((1, 1), jnp.int32)
    return Example(None, TokenStream(one, one, one), one, gradient)


def loss(params, frozen, example, rngs):
    kernel, scale = params["ffn"]["up"]["kernel"], params["norm"]["scale"]
    total = jnp.sum(kernel * example.weights) + jnp.sum(scale * example.weights[0])
    return WeightedMean(total.astype(jnp.float32), jnp.float32(1)), {}


def start(optimizer=None, dtype=jnp.float32, tx=None, **train):
    """(first state, its step, its mesh); every parameter is 1."""
    optimizer = optimizer or Optimizer(schedule=CONSTANT, clip=None, weight_decay=0.0)
    placed = lambda *shape: nn.LogicallyPartitioned(jnp.ones(shape, dtype), ("embed",) * len(shape))
    init = lambda key: {"ffn": {"up": {"kernel": placed(N, N)}}, "norm": {"scale": placed(N)}}
    mesh = sharding.make_mesh(config.Mesh(), jax.devices()[:1])
    tx = tx or optim.make(optimizer, 1000)[0]
    plan = plan_state(init, tx, mesh, ema=optimizer.ema is not None, offload=optimizer.offload)
    return plan.create(0), make_step(loss, tx, plan, optimizer=optimizer, train=config.Train(**train)), mesh


def arrays(state):
    return jax.tree.map(np.array, (state.params, state.opt_state, state.ema))


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


# -------------------------------------------------------------------------------------------- what waits in the host's memory


def trained(optimizer, gradients):
    state, step, mesh = start(optimizer)
    with sharding.use(mesh):
        for gradient in gradients:
            state, metrics = step(state, None, given(gradient))
    return resume.can_go_on(state, config.Train(), None), int(metrics["skipped"])


@pytest.mark.parametrize("name, parts", [("adamw", ("moments", "average")), ("lion", ("moments",)), ("muon", ("average",))])
def test_what_waits_on_the_host_is_the_same_bits(name, parts, monkeypatch):
    """Also after a step that is not kept. Other devices than CPUs move it in a loop, where XLA may round otherwise."""
    rng = np.random.default_rng(0)
    gradients = [rng.normal(size=(N, N)) * (np.nan if i == 3 else 1) for i in range(6)]
    here = Optimizer(name, schedule=CONSTANT, ema=0.9)
    away = replace(here, offload=parts)
    state, skipped = trained(here, gradients)
    moved, also = trained(away, gradients)
    same(arrays(state), arrays(moved))
    monkeypatch.setattr(sharding, "waits_on_host", lambda placed: placed.memory_kind == sharding.HOST)
    looped, too = trained(away, gradients)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-8), arrays(state), arrays(looped))
    assert skipped == also == too == 1
    for found in (moved, looped):
        for part, tree in (("moments", found.opt_state), ("average", found.ema)):
            on_host = [x.sharding.memory_kind == "pinned_host" for x in jax.tree.leaves(tree) if x.shape]
            assert on_host and all(on_host) if part in parts else not any(on_host)
        assert {x.sharding.memory_kind for x in jax.tree.leaves((found.params, found.seen))} == {"device"}


@pytest.mark.parametrize(
    "changes, cause",
    [
        (dict(offload=("average",)), "optimizer.ema=None keeps none"),
        (dict(offload=("moments", "moments")), "names one part twice"),
        (dict(name="adafactor", offload=("moments",)), "adafactor's are rows and columns"),
    ],
)
def test_what_cannot_wait_on_the_host_is_refused(changes, cause):
    with pytest.raises(UserError, match=cause):
        Optimizer(**changes)


# ------------------------------------------------------------------------------------------ what is not finite is not kept


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
    "broken", [dict(learning_rate=np.inf), dict(b2=1.0), dict(eps=0.0), dict(learning_rate=np.nan)], ids=str
)
def test_an_update_that_is_not_finite_is_skipped_though_its_gradient_is(broken, dtype):
    settings = dict(schedule=CONSTANT, clip=None, ema=0.9, weight_decay=0.0) | broken
    state, step, mesh = start(Optimizer(**settings), dtype)
    before = arrays(state)
    with sharding.use(mesh):
        for i in range(3):
            state, metrics = step(state, None, given(np.eye(N)))
            assert np.isfinite(metrics["grad_norm"]) and np.isfinite(metrics["loss"])
            assert (int(metrics["skipped"]), int(metrics["skipped_in_a_row"]), int(state.step)) == (i + 1, i + 1, i + 1)
    same(arrays(state), before)


def test_a_parameter_that_overflows_in_its_own_dtype_is_skipped():
    """-3.3985e38 is finite in float32, and infinite once it is rounded to bfloat16."""
    state, step, mesh = start(tx=optax.sgd(0.9e36), dtype=jnp.bfloat16)
    state = state.replace(params=jax.tree.map(lambda p: jnp.full_like(p, -3.3895e38), state.params))
    before = arrays(state)
    with sharding.use(mesh):
        state, metrics = step(state, None, given(np.eye(N)))
    assert int(metrics["skipped"]) == 1 and np.isfinite(metrics["grad_norm"])
    same(arrays(state), before)


def test_a_moment_that_is_not_finite_is_skipped_though_the_parameters_are():
    """The second update breaks the moment alone."""

    def update(updates, moment, params=None):
        return updates, jax.tree.map(lambda m: jnp.where(m > 0, jnp.inf, m + 1), moment)

    tx = optax.GradientTransformation(lambda params: jax.tree.map(jnp.zeros_like, params), update)
    state, step, mesh = start(tx=tx)
    with sharding.use(mesh):
        state, metrics = step(state, None, given(np.eye(N)))
        assert int(metrics["skipped"]) == 0
        before = arrays(state)
        state, metrics = step(state, None, given(np.eye(N)))
    assert int(metrics["skipped"]) == 1
    same(arrays(state), before)


def test_after_max_skipped_in_a_row_nothing_is_applied_any_more():
    """Or the run would go on where its log is rarer than that, and stop where it is not."""
    state, step, mesh = start(max_skipped=3)
    bad = given(np.full((N, N), np.nan))
    with sharding.use(mesh):
        for gradient in (bad, bad, given(np.eye(N)), bad, bad):  # never three
            state, metrics = step(state, None, gradient)
        assert (int(metrics["skipped"]), int(metrics["skipped_in_a_row"])) == (4, 2)
        state, _ = step(state, None, bad)
        before = arrays(state)
        state, metrics = step(state, None, given(np.eye(N)))
    assert (int(metrics["skipped"]), int(metrics["skipped_in_a_row"])) == (6, 4)
    same(arrays(state), before)


def test_finite():
    fine = {"a": jnp.ones(3), "b": jnp.ones((2, 2), jnp.bfloat16), "count": jnp.int32(3), "none": None}
    assert bool(finite(fine))
    for wrong in (jnp.nan, jnp.inf, -jnp.inf):
        assert not bool(finite(fine | {"b": fine["b"].at[1, 1].set(wrong)}))


# --------------------------------------------------------------------------- moments and averages are float32, to the digit


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_moments_of_bfloat16_parameters_are_those_of_float32_ones(name):
    """The same gradients, exact in both, give the same moments to the bit; and every number kept is float32."""
    rng = np.random.default_rng(0)
    gradients = rng.normal(size=(40, N, N)).astype(ml_dtypes.bfloat16).astype(np.float32)
    kept = []
    for dtype in (jnp.bfloat16, jnp.float32):
        state, step, mesh = start(Optimizer(name, schedule=CONSTANT, clip=None, b2=0.999, ema=0.999), dtype)
        with sharding.use(mesh):
            for gradient in gradients:
                state, metrics = step(state, None, given(gradient))
        assert int(metrics["skipped"]) == 0
        assert {x.dtype for x in jax.tree.leaves(state.params)} == {jnp.dtype(dtype)}
        numbers = [x for x in jax.tree.leaves((state.opt_state, state.ema)) if jnp.issubdtype(x.dtype, jnp.floating)]
        assert {x.dtype for x in numbers} == {jnp.dtype("float32")}
        kept.append(jax.tree.map(np.array, state.opt_state))
    same(*kept)


def test_adam_and_the_average_of_bfloat16_parameters_by_hand():
    """300 steps in float64 with parameters rounded to bfloat16 after each, and nothing else rounded."""
    b1, b2, rate, eps, decay = 0.9, 0.999, 0.01, 1e-8, 0.999
    optimizer = Optimizer("adamw", rate, CONSTANT, weight_decay=0.0, clip=None, b1=b1, b2=b2, eps=eps, ema=decay)
    state, step, mesh = start(optimizer, jnp.bfloat16)
    rng = np.random.default_rng(0)
    param, average, mu, nu = np.ones((N, N)), np.ones((N, N)), np.zeros((N, N)), np.zeros((N, N))
    with sharding.use(mesh):
        for t in range(1, 301):
            gradient = (0.3 + rng.normal(size=(N, N))).astype(ml_dtypes.bfloat16)
            state, _ = step(state, None, given(gradient.astype(np.float32)))
            g = gradient.astype(float)
            mu, nu = b1 * mu + (1 - b1) * g, b2 * nu + (1 - b2) * g**2
            moved = param - rate * (mu / (1 - b1**t)) / (np.sqrt(nu / (1 - b2**t)) + eps)
            param = moved.astype(ml_dtypes.bfloat16).astype(float)
            average = decay * average + (1 - decay) * param
    kernel = lambda tree: np.asarray(tree["ffn"]["up"]["kernel"], float)
    np.testing.assert_allclose(kernel(optax.tree_utils.tree_get(state.opt_state, "mu")), mu, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(kernel(optax.tree_utils.tree_get(state.opt_state, "nu")), nu, rtol=1e-4)
    # A parameter may round to the other side once: half a percent. The averages moved by 3 to 30 %.
    np.testing.assert_allclose(kernel(state.ema), average, atol=2e-3)
    assert (np.abs(kernel(state.ema) - 1) > 0.01).mean() > 0.9


@pytest.mark.parametrize("decay", [0.9, 0.999, 0.99999])
def test_an_average_follows_its_decay(decay):
    """Of a parameter that jumps from 1 to 2 and stays, after n steps: 2 - decay ** n."""
    state, step, mesh = start(Optimizer(schedule=CONSTANT, ema=decay), tx=optax.sgd(0.0))
    state = state.replace(params=jax.tree.map(lambda p: p + 1, state.params))
    with sharding.use(mesh):
        for _ in range(100):
            state, _ = step(state, None, given(np.zeros((N, N))))
    moved = np.asarray(state.ema["norm"]["scale"], float) - 1
    np.testing.assert_allclose(moved, 1 - decay**100, rtol=2e-3)


# ------------------------------------------------------------------------------------------------------- how a run goes on


@pytest.mark.parametrize(
    "steps,step,skipped,message",
    [
        (8, 5, 0, None),
        (8, 5, 2, None),
        (8, 5, 3, r"3 steps in a row were skipped \(train.max_skipped=3\).*Lower optimizer.learning_rate"),
        (8, 5, 9, "9 steps in a row were skipped"),
        (8, 8, 0, None),
        (8, 8, 1, "the last 1 of 8 steps were skipped: the loss, the gradient or the update was not finite"),
        (8, 8, 2, "the last 2 of 8 steps were skipped"),
        (20, 20, 2, None),  # begun again, this run would come to the same two batches
        (19, 19, 2, "the last 2 of 19 steps were skipped"),
        (20, 20, 3, "3 steps in a row were skipped"),
    ],
)
def test_when_a_run_makes_no_progress(steps, step, skipped, message):
    """With 3 in a row allowed at most."""
    train = config.Train(steps=steps, max_skipped=3)
    with nullcontext() if message is None else pytest.raises(Diverged, match=message):
        hooks.check_progress(train, step, skipped)


def test_a_run_that_makes_no_progress_is_not_saved():
    """Its next start would find nothing applied any more, and stop as well."""
    saved = []
    checkpoints = SimpleNamespace(save=lambda state, metrics, progress: saved.append((metrics, progress)))
    run = config.Run(config.Model(8, 8), train=config.Train(max_skipped=2))
    log = SimpleNamespace(pending=lambda: {"losses": [1.5]})
    evaluate = SimpleNamespace(at=4, latest={"loss": 2.5}, log=log)
    save = hooks.Save(run, checkpoints, evaluate, Clock(), rows=lambda step: 16 * step)
    state = start()[0]
    save.now(4, state)
    assert saved == [({"loss": 2.5}, {"rows": 64, "losses": [1.5]})]
    with pytest.raises(Diverged):
        save.now(5, state.replace(skipped_in_a_row=jnp.int32(2)))
    assert len(saved) == 1


def test_a_run_does_not_begin_with_numbers_that_are_not_finite():
    state, train = start(Optimizer(ema=0.9))[0], config.Train(max_skipped=3)
    assert resume.can_go_on(state, train, None) is state
    broken = jax.tree.map(lambda x: x.at[0].set(jnp.nan), state.ema)
    with pytest.raises(UserError, match="the state from runs/x/checkpoints/8 has numbers that are not finite"):
        resume.can_go_on(state.replace(ema=broken), train, "runs/x/checkpoints/8")


def test_a_run_that_begins_after_too_many_skipped_steps_gets_another_chance():
    state, step, mesh = start(max_skipped=3)
    for skipped, counted in ((2, 2), (3, 0), (7, 0)):
        before = state.replace(skipped_in_a_row=state.skipped_in_a_row + skipped)
        begun = resume.can_go_on(before, config.Train(max_skipped=3), "a checkpoint")
        assert int(begun.skipped_in_a_row) == counted and begun.skipped_in_a_row.sharding == state.skipped_in_a_row.sharding


def test_where_the_data_goes_on():
    """In rows; of a checkpoint of an earlier version, after so many steps of the batch that it was saved with."""
    run = config.Run(config.Model(8, 8), train=config.Train(batch_size=6))
    saved = SimpleNamespace(
        saved_progress=lambda step: {"rows": 20, "losses": [0.5, "nan"]}, saved_run=lambda step: pytest.fail("not asked")
    )
    position, pending = resume.position_after(run, saved, 5)
    assert position == Position(5, 20, 6) and pending.keys() == {"loss"}
    assert pending["loss"][0] == 0.5 and np.isnan(pending["loss"][1])
    assert [position.of(step).tolist() for step in (5, 6)] == [list(range(20, 26)), list(range(26, 32))]
    assert position.after(7) == 32

    older = replace(run, train=config.Train(batch_size=4))
    saved = SimpleNamespace(saved_progress=lambda step: {}, saved_run=lambda step: (older, b"", ""))
    assert resume.position_after(run, saved, 5) == (Position(5, 20, 6), {})
    assert resume.position_after(run, saved, 0) == (Position(0, 0, 6), {})


def test_the_logged_rate_is_that_of_the_latest_update():
    """A skipped step takes no part in the schedule."""
    rows = []
    run = config.Run(config.Model(8, 8), train=config.Train(steps=9), log=config.Log(every=1))
    display = SimpleNamespace(show=lambda step, text: None)
    log = hooks.Log(run, SimpleNamespace(append=lambda name, row: rows.append(row)), display, Clock(), lambda n: n + 1, 0.0)
    for step, skipped, in_a_row in ((1, 1, 1), (2, 1, 0), (3, 1, 0), (4, 2, 1), (5, 2, 0)):
        metrics = {"loss": 1.0, "grad_norm": 1.0, "skipped": skipped, "skipped_in_a_row": in_a_row, "seen": np.zeros((2, 2))}
        log(step, None, metrics)
    assert [row["learning_rate"] for row in rows] == [1, 1, 2, 2, 3]
