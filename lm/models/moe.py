"""Mixture of experts: a router sends each token to a few of many MLPs.

Axes: B batch, T length, D width, F hidden, E experts, K experts per token, C slots per expert and row, S = E C slots of a row,
M assignments: B T K, or T K of a row.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from lm import config
from lm.models.layers import ACTIVATIONS, Projection, parameter
from lm.models.matmul import grouped_matmul
from lm.sharding import shard_map_by_axes


class ExpertKernels(nn.Module):
    """The kernels [E, I, O] of E projections; each is initialised like that of a `Projection`."""

    shape: tuple[int, int, int]
    axes: tuple[str, str, str]
    std: float | None
    param_dtype: str

    @nn.compact
    def __call__(self) -> jax.Array:
        init = nn.initializers.normal(self.std if self.std is not None else self.shape[1] ** -0.5)
        return parameter(self, "kernel", init, self.shape, self.axes, self.param_dtype)


class Moe(nn.Module):
    """x [B, T, D] -> [B, T, D]: for each token the weighted sum of K experts, each an `lm.models.layers.Mlp` without biases.

    Weights are the router's softmax over all experts, in float32; with `renormalize` those of the chosen K sum to 1.

    token_mask: bool [B, T], False at padding; None: no padding. Padding takes no slot of an expert with a capacity; without a
    capacity it is routed like any token, and its output is not used.

    The router's losses are sown in the collection "losses" as one weighted scalar, a mean over tokens without padding.
    """

    config: config.Moe
    std: float | None = None
    out_std: float | None = None
    dtype: str = "float32"
    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array, token_mask: jax.Array | None = None) -> jax.Array:
        c, (e, d, f) = self.config, (self.config.num_experts, x.shape[-1], self.config.expert.hidden)
        with jax.default_matmul_precision("highest"):  # a TPU multiplies float32 in bfloat16 by default
            router = Projection((e,), ("embed", "outputs"), std=self.std, param_dtype=self.param_dtype, name="router")
            logits_BTE = router(x)
        probs_BTE = jax.nn.softmax(logits_BTE)
        by_row = ("batch", "length", None)
        # By device, because XLA may gather all rows to sort them.
        top_k = shard_map_by_axes(partial(jax.lax.top_k, k=c.top_k), (by_row,), by_row, summed=())
        weights_BTK, experts_BTK = top_k(probs_BTE)
        if c.renormalize:
            weights_BTK = weights_BTK / jnp.sum(weights_BTK, axis=-1, keepdims=True)
        if not self.is_initializing():
            losses = c.balance * balance_loss(probs_BTE, experts_BTK, token_mask) + c.z * z_loss(logits_BTE, token_mask)
            self.sow("losses", "routing", losses)

        def kernels(name: str, inputs: int, outputs: int, axes: tuple[str, str, str], std: float | None) -> jax.Array:
            return ExpertKernels((e, inputs, outputs), axes, std, self.param_dtype, name=name)().astype(self.dtype)

        w = [kernels("up", d, f, ("experts", "embed", "hidden"), self.std)]
        if c.expert.gated:
            w.append(kernels("gate", d, f, ("experts", "embed", "hidden"), self.std))
        w.append(kernels("down", f, d, ("experts", "hidden", "embed"), self.out_std))
        x = x.astype(self.dtype)
        if c.capacity is not None:
            return with_capacity(x, weights_BTK, experts_BTK, *w, config=c, token_mask=token_mask)
        # Every device sorts its own tokens by all experts; it gathers the kernels, as any parameters under fsdp.
        kernel_axes = [(None, None, "hidden")] * (len(w) - 1) + [(None, "hidden", None)]
        inputs = (by_row, by_row, by_row, *kernel_axes)
        on_device = shard_map_by_axes(partial(dropless, config=c), inputs, by_row, summed=("hidden",))
        return on_device(x, weights_BTK, experts_BTK, *w)


def balance_loss(probs_BTE: jax.Array, experts_BTK: jax.Array, token_mask: jax.Array | None = None) -> jax.Array:
    """Returns E times the sum over experts of (share of assignments) * (mean probability): 1 if the load is uniform.

    Switch Transformer (arXiv 2101.03961, equations 4 to 6), with K assignments per token. Means exclude padding: all of it
    goes to the same experts, so counting it would make a balanced router look unbalanced.
    """
    e = probs_BTE.shape[-1]
    assigned_BTE = jnp.mean(jax.nn.one_hot(experts_BTK, e), axis=2)
    return e * jnp.sum(token_mean(assigned_BTE, token_mask) * token_mean(probs_BTE, token_mask))


def z_loss(logits_BTE: jax.Array, token_mask: jax.Array | None = None) -> jax.Array:
    """Returns the mean of log(Z)^2, which keeps the router's logits small (ST-MoE, arXiv 2202.08906, equation 5)."""
    return token_mean(jax.nn.logsumexp(logits_BTE, axis=-1) ** 2, token_mask)


def token_mean(x: jax.Array, token_mask: jax.Array | None) -> jax.Array:
    """Returns the mean of x [B, T, ...] over the tokens of the mask [B, T] (None: all); 0 if there are none."""
    if token_mask is None:
        return jnp.mean(x, axis=(0, 1))
    mask = token_mask.reshape(*token_mask.shape, *(1,) * (x.ndim - 2))
    return jnp.sum(jnp.where(mask, x, 0.0), axis=(0, 1)) / jnp.maximum(jnp.sum(token_mask), 1)


def expert_mlp(x: jax.Array, w: Any, activation: str, matmul: Callable[..., jax.Array]) -> jax.Array:
    """`lm.models.layers.Mlp` of all experts, with w = (up, down) or (up, gate, down).

    `matmul(x, kernels, axis)` multiplies each row of x by its expert's kernel; `axis` names the result's last axis.
    """
    kept = lambda x, kernels: checkpoint_name(matmul(x, kernels, "hidden"), "experts")
    hidden = ACTIVATIONS[activation](kept(x, w[0]).astype(jnp.float32)).astype(x.dtype)
    if len(w) == 3:
        hidden = hidden * kept(x, w[1])
    return matmul(hidden, w[-1], "embed_act")


def dropless(x: jax.Array, weights_BTK: jax.Array, experts_BTK: jax.Array, *w: jax.Array, config: config.Moe) -> jax.Array:
    """x [B, T, D] -> [B, T, D], without a capacity: sorts assignments by expert and multiplies by group (MegaBlocks, arXiv
    2211.15841)."""
    order_M = jnp.argsort(experts_BTK.reshape(-1))  # stable
    sizes_E = jnp.bincount(experts_BTK.reshape(-1), length=config.num_experts)
    tokens_MD = x.reshape(-1, x.shape[-1])[order_M // config.top_k]
    out_MD = expert_mlp(tokens_MD, w, config.expert.activation, lambda a, b, _: grouped_matmul(a, b, sizes_E))
    out_MD = checkpoint_name(out_MD, "experts")
    out_BTKD = out_MD[jnp.argsort(order_M)].reshape(*experts_BTK.shape, -1)
    return jnp.einsum("btkd,btk->btd", out_BTKD, weights_BTK.astype(x.dtype))


def with_capacity(
    x: jax.Array,
    weights_BTK: jax.Array,
    experts_BTK: jax.Array,
    *w: jax.Array,
    config: config.Moe,
    token_mask: jax.Array | None = None,
) -> jax.Array:
    """x [B, T, D] -> [B, T, D], with C slots per expert and row, which tokens take in their order; the rest is dropped.

    GShard's layout (arXiv 2006.16668, section 3.2), which shards over experts. Tokens are moved by index, where GShard
    multiplies by one-hot matrices: with C in proportion to T these products would cost 2 T E C D FLOPs a row each way, a fifth
    of what Mixtral's experts cost at 4,096 tokens. Unlike in GShard, first choices of later tokens do not take precedence over
    second choices: whether a token gets a slot depends on earlier tokens alone. Hence C is a share of the row's length, padding
    included, although padding takes no slot and gets 0.
    """
    b, t, d = x.shape
    k, e = config.top_k, config.num_experts
    assert config.capacity is not None
    slots = min(t, math.ceil(config.capacity * t * k / e))
    slot_BTK, assignment_BS = slots_of(experts_BTK, e, slots, token_mask)

    def matmul(a: jax.Array, b: jax.Array, axis: str) -> jax.Array:
        y = jnp.einsum("beci,eio->beco", a, b)
        return nn.with_logical_constraint(y, ("batch_by_expert", "experts", "capacity", axis))

    # Constrained twice, so that XLA puts an all-to-all between sharding by row and sharding by expert. With one constraint it
    # sums partial results over experts and then gathers all rows of the batch.
    by_row, by_expert = ("batch", None, "capacity", "embed_act"), ("batch_by_expert", "experts", "capacity", "embed_act")
    in_BECD = moved(x, assignment_BS // k, slot_BTK).reshape(b, e, slots, d)
    in_BECD = nn.with_logical_constraint(nn.with_logical_constraint(in_BECD, by_row), by_expert)
    out_BECD = expert_mlp(in_BECD, w, config.expert.activation, matmul)
    out_BECD = checkpoint_name(nn.with_logical_constraint(out_BECD, by_row), "experts")
    out_BMD = moved(out_BECD.reshape(b, e * slots, d), slot_BTK.reshape(b, t * k), assignment_BS[..., None])
    return jnp.einsum("btkd,btk->btd", out_BMD.reshape(b, t, k, d), weights_BTK.astype(x.dtype))


def slots_of(experts_BTK: jax.Array, experts: int, slots: int, token_mask: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """Which of S = E C slots each assignment takes, and which assignment takes each slot: int32 [B, T, K] from 0 to S, where S
    is none, and int32 [B, S] from 0 to T K, where T K is none. Assignment t K + k is that of token t to its expert k."""
    b, t, k = experts_BTK.shape
    assigned_BTE = jnp.sum(jax.nn.one_hot(experts_BTK, experts, dtype=jnp.int32), axis=2)
    if token_mask is not None:
        assigned_BTE = jnp.where(token_mask[..., None], assigned_BTE, 0)
    of_expert = lambda x_BTE: jnp.take_along_axis(x_BTE, experts_BTK, axis=2)
    before_BTK = of_expert(jnp.cumsum(assigned_BTE, axis=1) - assigned_BTE)  # earlier tokens of the row with the same expert
    taken_BTK = (of_expert(assigned_BTE) > 0) & (before_BTK < slots)
    slot_BTK = jnp.where(taken_BTK, experts_BTK * slots + before_BTK, experts * slots)
    put = lambda slot_M: jnp.full(experts * slots, t * k, jnp.int32).at[slot_M].set(jnp.arange(t * k), mode="drop")
    return slot_BTK, jax.vmap(put)(slot_BTK.reshape(b, t * k))


@jax.custom_vjp
def moved(x: jax.Array, source: jax.Array, target: jax.Array) -> jax.Array:
    """Vectors in other places: x [B, N, D], source int32 [B, M] -> [B, M, D], 0 where the source is N, which is none.

    target: int32 [B, N, R], the up to R places to which each vector goes, M for none. With it the gradient is gathered too,
    instead of scattered, which is slow on a TPU.
    """
    return jnp.take_along_axis(x, source[..., None], axis=1, mode="fill", fill_value=0)


def _moved_forward(x: jax.Array, source: jax.Array, target: jax.Array) -> tuple[jax.Array, jax.Array]:
    return moved(x, source, target), target


def _moved_backward(target: jax.Array, gradient: jax.Array) -> tuple[jax.Array, None, None]:
    b, n, r = target.shape
    back = jnp.take_along_axis(gradient, target.reshape(b, n * r)[..., None], axis=1, mode="fill", fill_value=0)
    return jnp.sum(back.reshape(b, n, r, -1), axis=2), None, None


moved.defvjp(_moved_forward, _moved_backward)
