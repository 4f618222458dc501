"""The state of a run, its shardings, and the step that changes it.

The step has no branches. Unless the loss, the gradient and all updated arrays are finite, it keeps the old parameters, moments
and average, and counts itself as skipped.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import methodcaller
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from lm import config, sharding
from lm.types import TrainState, WeightedMean

# (params, frozen, batch, rngs=...) -> the loss, and means that are logged beside it
Loss = Callable[..., tuple[WeightedMean, dict[str, WeightedMean]]]
Metrics = dict[str, jax.Array]
STEP_METRICS = ("loss", "grad_norm", "skipped", "skipped_in_a_row", "seen")  # of every step, whatever its task


@dataclass(frozen=True)
class Updates:
    """Several updates in one step: `batches(params, frozen, batch, key)`, with the parameters before the step, returns what
    each of them reads, arrays [count, ...]. With `average` it has the moving average of the parameters too, as `average=`."""

    count: int
    batches: Callable[..., Any]
    average: bool = False


@dataclass(frozen=True)
class StatePlan:
    """How to create a state, its shapes and dtypes, and the sharding of each array, as it waits and in an update."""

    init: Callable[[jax.Array], TrainState]
    abstract: TrainState
    shardings: TrainState
    in_update: TrainState  # as `shardings`, with all arrays on the devices

    def create(self, seed: int) -> TrainState:
        """The state before the first step. Each device creates only its own shards."""
        return jax.jit(self.init, out_shardings=self.shardings)(jax.random.key(seed))

    def targets(self) -> TrainState:
        """The state as abstract arrays with shardings, to restore a checkpoint into."""
        return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), self.abstract, self.shardings)


def plan_state(
    init_params: Callable[[jax.Array], Any],
    tx: optax.GradientTransformation,
    mesh: Mesh,
    *,
    ema: bool,
    offload: Sequence[str] = (),
) -> StatePlan:
    """`init_params(key)` returns parameters that carry logical axis names; moments and averages are sharded as they are.

    offload: which of them wait in the host's memory (`lm.config.Optimizer.offload`). Counters, and moments of other shapes than
    their parameters', stay on the devices.
    """

    def init(key: jax.Array) -> TrainState:
        params = nn.unbox(init_params(key))
        zero = jnp.zeros((), jnp.int32)
        average = first_average(params) if ema else None
        return TrainState(zero, params, tx.init(params), average, zero, zero, jnp.zeros((2, 2), jnp.uint32))

    key = jax.random.key(0)
    params = sharding.param_shardings(jax.eval_shape(init_params, key), mesh)
    abstract = jax.eval_shape(init, key)
    rest = sharding.replicated(mesh)
    # Left to itself, `jit(tx.init)` would leave the optimizer's moments unsharded.
    moments = optax.tree_utils.tree_map_params(
        tx,
        _like_parameter(rest),
        abstract.opt_state,
        params,
        abstract.params,
        transform_non_params=lambda _: rest,
        is_leaf=_is_masked,
    )
    in_update = TrainState(rest, params, moments, params if ema else None, rest, rest, rest)
    on_host = lambda tree: jax.tree.map(lambda s: s if s is rest else s.with_memory_kind(sharding.HOST), tree)
    named = {"moments": "opt_state", "average": "ema"}
    away = {name: on_host(getattr(in_update, name)) for name in map(named.__getitem__, offload)}
    return StatePlan(init, abstract, replace(in_update, **away), in_update)


def first_average(params: Any) -> Any:
    """The average of the parameters before any step: copies in float32, because an average in bfloat16 with a decay of 0.999
    never moves."""
    return jax.tree.map(lambda p: jnp.array(p, jnp.float32, copy=True), params)


def finite(tree: Any) -> jax.Array:
    """bool []: whether all floating-point numbers of the tree are finite.

    The first False is sought after a True, instead of `all`: XLA fuses an `all` of scalars into whatever reads it. A step reads
    it for each parameter, and then compiles for 8.5 s instead of 3.1 (W1 of experiments/speed/README.md, jax 0.10.2).
    """
    checks = [jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.argmin(jnp.stack([jnp.bool_(True), *checks])) == 0


def _is_masked(x: Any) -> bool:
    return isinstance(x, optax.MaskedNode)


def _like_parameter(rest: Any) -> Callable[[Any, Any, Any], Any]:
    """A moment has the sharding of its parameter; one of another shape (Adafactor's rows and columns) is replicated."""
    return lambda x, s, p: x if _is_masked(x) else s if x.shape == p.shape else rest


def make_step(
    loss: Loss,
    tx: optax.GradientTransformation,
    plan: StatePlan,
    *,
    optimizer: config.Optimizer,
    train: config.Train,
    asked: Callable[[Any], jax.Array] = methodcaller("tokens_asked"),
    updates: Updates | None = None,
) -> Callable[[TrainState, Any, Any], tuple[TrainState, Metrics]]:
    """Returns the jitted step `(state, frozen, batch) -> (state, metrics)`, which donates the state and nothing else.

    Metrics are arrays on the device: STEP_METRICS, scalars except for `seen` uint32 [2, 2], and each mean that the loss returns
    beside itself. `asked(batch)` counts the tokens with loss. With `updates` a step takes several, and its metrics are means
    over them; skipped ones are counted one by one.
    """
    gradient = _gradient(loss, plan)
    if train.microbatches > 1:
        gradient = _accumulated(gradient, train.microbatches)

    moved = _moved(plan)

    def update(state: TrainState, frozen: Any, batch: Any) -> tuple[TrainState, Any]:
        key = jax.random.fold_in(jax.random.key(train.seed), state.step)
        grads, (mean, more) = gradient(state.params, frozen, batch, key)
        grads = jax.tree.map(lambda g: g.astype(jnp.float32) / jnp.maximum(mean.weight, 1.0), grads)
        norm = optax.tree.norm(grads)
        factor = 1.0 if optimizer.clip is None else jnp.minimum(1.0, optimizer.clip / (norm + 1e-9))
        grads = jax.tree.map(lambda g: g * factor, grads)

        def applied(params: Any, opt_state: Any, ema: Any) -> tuple[Any, jax.Array]:
            change, new_opt_state = tx.update(grads, opt_state, params)
            new_params = optax.apply_updates(params, change)
            new_ema = None if ema is None else jax.tree.map(partial(_averaged, optimizer.ema or 0.0), ema, new_params)
            old, new = (params, opt_state, ema), (new_params, new_opt_state, new_ema)
            # After `max_skipped` skipped steps in a row nothing is applied until the next log stops the run, however rare logs
            # are.
            good = finite((norm, mean.total, new)) & (state.skipped_in_a_row < train.max_skipped)
            return jax.tree.map(lambda a, b: jnp.where(good, a, b).astype(b.dtype), new, old), good  # a state keeps its dtypes

        kept, good = moved(applied, jnp.isfinite(norm), (state.params, state.opt_state, state.ema))
        bad = jnp.int32(~good)
        seen = _count(state.seen, jnp.stack([batch.tokens_read(), asked(batch)]))
        state = TrainState(state.step + 1, *kept, state.skipped + bad, (state.skipped_in_a_row + 1) * bad, seen)
        return state, (norm, mean, more)

    several = update if updates is None else _several(update, updates, plan, train.seed)

    def step(state: TrainState, frozen: Any, batch: Any) -> tuple[TrainState, Metrics]:
        state, (norm, mean, more) = several(state, frozen, batch)
        metrics = {
            "loss": mean.total / jnp.maximum(mean.weight, 1.0),
            "grad_norm": norm,
            "skipped": state.skipped,
            "skipped_in_a_row": state.skipped_in_a_row,
            "seen": state.seen,
        }
        if taken := metrics.keys() & more.keys():
            raise ValueError(f"a loss names a metric {sorted(taken)[0]}, which every step has: give it another name")
        return state, metrics | {name: mean.mean for name, mean in more.items()}

    return jax.jit(step, donate_argnums=0, out_shardings=(plan.shardings, None))


def _moved(plan: StatePlan) -> Callable[..., tuple[Any, jax.Array]]:
    """Returns `(applied, usable, arrays) -> applied(*arrays)`, with what waits in the host's memory moved to the devices for
    the update and back. `applied` returns the arrays, and whether it changed them; `usable`: False if it will not.

    Where that is another memory than the devices', they move in a loop that turns once, or not at all. Without it XLA starts
    the copies before the first layer, and a device holds them when its activations need most (libtpu 0.0.42.1); an
    optimization_barrier does not keep it from that.
    """
    parts = lambda state: (state.params, state.opt_state, state.ema)
    there, here = parts(plan.shardings), parts(plan.in_update)

    def once(applied: Callable[..., tuple[Any, jax.Array]], arrays: Any) -> tuple[Any, jax.Array]:
        kept, good = applied(*_put(arrays, there, here))
        return _put(kept, here, there), good

    if not any(map(sharding.waits_on_host, jax.tree.leaves(there))):
        return lambda applied, _, arrays: once(applied, arrays)
    loop = partial(jax.lax.fori_loop, 0)
    return lambda applied, usable, arrays: loop(
        jnp.int32(usable), lambda _, carried: once(applied, carried[0]), (arrays, jnp.bool_(False))
    )


def _put(arrays: Any, there: Any, here: Any) -> Any:
    """The traced arrays, moved where their two shardings differ."""
    return jax.tree.map(lambda x, a, b: x if a == b else jax.device_put(x, b), arrays, there, here)


def _several(
    update: Callable[[TrainState, Any, Any], tuple[TrainState, Any]], updates: Updates, plan: StatePlan, seed: int
) -> Callable[[TrainState, Any, Any], tuple[TrainState, Any]]:
    """Returns `update` taken on each of the batches that `updates` makes of one, as a single step. While they are taken, the
    state's `step` counts updates, so that each has a key of its own."""

    def taken(state: TrainState, frozen: Any, batch: Any) -> tuple[TrainState, Any]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        average = {"average": _put(state.ema, plan.shardings.ema, plan.in_update.ema)} if updates.average else {}
        parts = updates.batches(state.params, frozen, batch, key, **average)

        def one(state: TrainState, part: Any) -> tuple[TrainState, Any]:
            state, found = update(state, frozen, part)
            return jax.lax.with_sharding_constraint(state, plan.shardings), found

        begun = replace(state, step=state.step * updates.count)
        after, (norm, mean, more) = jax.lax.scan(one, begun, parts)
        summed = jax.tree.map(lambda x: jnp.sum(x, axis=0), (mean, more))
        return replace(after, step=state.step + 1), (jnp.mean(norm), *summed)

    return taken


def _gradient(loss: Loss, plan: StatePlan) -> Callable[..., tuple[Any, Any]]:
    """Returns `(params, frozen, batch, key) -> (gradient of the loss summed over the batch, what the loss returns)`.

    It is the gradient of a sum, not of a mean, so that microbatches of different weight add up to the batch.
    """

    def total(params: Any, frozen: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, Any]:
        mean, more = loss(params, frozen, batch, rngs={"dropout": key})
        return mean.total, (mean, more)

    def gradient(*arguments: Any) -> tuple[Any, Any]:
        # Constrain gradients to the parameter sharding, or XLA replicates some of them.
        grads, means = jax.grad(total, has_aux=True)(*arguments)
        return jax.lax.with_sharding_constraint(grads, plan.shardings.params), means

    return gradient


def _accumulated(gradient: Callable[..., tuple[Any, Any]], n: int) -> Callable[..., tuple[Any, Any]]:
    """Returns the same function, which splits the batch into `n` parts and sums what `gradient` returns of each, in float32."""

    def summed(params: Any, frozen: Any, batch: Any, key: jax.Array) -> tuple[Any, Any]:
        parts, keys = jax.tree.map(lambda x: _microbatches(x, n), batch), jax.random.split(key, n)

        def add(total: Any, part_and_key: Any) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, gradient(params, frozen, *part_and_key)), None

        first = lambda tree: jax.tree.map(lambda x: x[0], tree)
        like = jax.eval_shape(lambda *xs: gradient(params, frozen, *first(xs)), parts, keys)
        zero = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), like)
        return jax.lax.scan(add, zero, (parts, keys))[0]

    return summed


def _averaged(decay: float, average: jax.Array, param: jax.Array) -> jax.Array:
    """decay * average + (1 - decay) * param in float32, with weights that add up to 1 although 1 - decay is rounded."""
    return average + (1 - decay) * (param - average)


def _microbatches(x: jax.Array, n: int) -> jax.Array:
    """[B, ...] -> [n, B / n, ...]. Rows are strided over the parts, so that each part stays evenly sharded."""
    return jnp.moveaxis(x.reshape(x.shape[0] // n, n, *x.shape[1:]), 1, 0)


def _count(counter: jax.Array, more: jax.Array) -> jax.Array:
    """Adds uint32 [2] to counters uint32 [2, 2] of (low, high) halves. A float32 would stop counting at 16.7 million."""
    low = counter[:, 0] + more
    return jnp.stack([low, counter[:, 1] + (low < more).astype(jnp.uint32)], axis=1)


def counted(counter: Any) -> tuple[int, int]:
    """Tokens seen and tokens with loss, as Python integers."""
    seen, with_loss = (int(low) + (int(high) << 32) for low, high in counter)
    return seen, with_loss
