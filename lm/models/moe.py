"""A mixture of experts: a router sends each token to a few of many feed-forwards.

Axis letters of `lm.types`, and E experts, K experts of a token, C places of an expert in a row, M = B T K assignments.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm import config
from lm.models.layers import ACTIVATIONS, Projection, parameter
from lm.models.matmul import grouped
from lm.sharding import shard_map_by_axes


class Kernels(nn.Module):
    """The kernels of E projections, [E, I, O]; each starts as that of a `Projection` does."""

    shape: tuple[int, int, int]
    axes: tuple[str, str, str]
    std: float | None
    param_dtype: str

    @nn.compact
    def __call__(self) -> jax.Array:
        init = nn.initializers.normal(self.std if self.std is not None else self.shape[1] ** -0.5)
        return parameter(self, "kernel", init, self.shape, self.axes, self.param_dtype)


class Moe(nn.Module):
    """x [B, T, D] -> the weighted sum of what K experts, each an `lm.models.layers.Mlp` without biases, make of a token.

    Weights are the router's softmax over all experts, in float32, by default scaled so that those of the chosen sum to 1.
    `real` bool [B, T] says which tokens are text; None: all. The router's own losses are sown in "losses" as one weighted
    scalar, a mean over the text alone. Padding takes no place of an expert with a capacity; without one it is routed as
    text is, and nobody reads the result.
    """

    config: config.Moe
    std: float | None = None
    out_std: float | None = None
    dtype: str = "float32"
    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array, real: jax.Array | None = None) -> jax.Array:
        c, (e, d, f) = self.config, (self.config.num_experts, x.shape[-1], self.config.expert.hidden)
        with jax.default_matmul_precision("highest"):  # a TPU's default for float32 is bfloat16
            router = Projection((e,), ("embed", "outputs"), std=self.std, param_dtype=self.param_dtype, name="router")
            logits_BTE = router(x)
        shares_BTE = jax.nn.softmax(logits_BTE)
        row = ("batch", "length", None)
        best = shard_map_by_axes(
            partial(jax.lax.top_k, k=c.top_k), (row,), row, summed=()
        )  # else XLA may gather all rows to sort them
        weights_BTK, chosen_BTK = best(shares_BTE)
        if c.renormalize:
            weights_BTK = weights_BTK / jnp.sum(weights_BTK, axis=-1, keepdims=True)
        if not self.is_initializing():
            losses = c.balance * balance_loss(shares_BTE, chosen_BTK, real) + c.z * z_loss(logits_BTE, real)
            self.sow("losses", "routing", losses)

        def kernels(name: str, inputs: int, outputs: int, axes: tuple[str, str, str], std: float | None) -> jax.Array:
            return Kernels((e, inputs, outputs), axes, std, self.param_dtype, name=name)().astype(self.dtype)

        w = [kernels("up", d, f, ("experts", "embed", "hidden"), self.std)]
        if c.expert.gated:
            w.append(kernels("gate", d, f, ("experts", "embed", "hidden"), self.std))
        w.append(kernels("down", f, d, ("experts", "hidden", "embed"), self.out_std))
        x = x.astype(self.dtype)
        if c.capacity is not None:
            return limited(x, weights_BTK, chosen_BTK, *w, config=c, real=real)
        # Every device has its own tokens sorted, by all experts: their kernels travel, as any parameters' do under fsdp.
        ways = [(None, None, "hidden")] * (len(w) - 1) + [(None, "hidden", None)]
        return shard_map_by_axes(partial(dropless, config=c), (row, row, row, *ways), row, summed=("hidden",))(
            x, weights_BTK, chosen_BTK, *w
        )


def balance_loss(shares_BTE: jax.Array, chosen_BTK: jax.Array, real: jax.Array | None = None) -> jax.Array:
    """E times the sum over experts of their share of assignments times their mean softmax: 1 if all have the same.

    Switch Transformer (arXiv 2101.03961, equations 4 to 6), with K assignments to a token. Means are over the tokens that
    are `real`: all padding is alike and goes to the same experts, so counting it would make a balanced router look unbalanced.
    """
    e = shares_BTE.shape[-1]
    assigned_BTE = jnp.mean(jax.nn.one_hot(chosen_BTK, e), axis=2)
    return e * jnp.sum(mean_over(real, assigned_BTE) * mean_over(real, shares_BTE))


def z_loss(logits_BTE: jax.Array, real: jax.Array | None = None) -> jax.Array:
    """Mean of log(Z)^2 over `real` tokens, which keeps a router's logits small (ST-MoE, arXiv 2202.08906, equation 5)."""
    return mean_over(real, jax.nn.logsumexp(logits_BTE, axis=-1) ** 2)


def mean_over(real: jax.Array | None, x: jax.Array) -> jax.Array:
    """The mean of x [B, T, ...] over the tokens where `real` [B, T] holds, all of them if None; 0 if there are none."""
    if real is None:
        return jnp.mean(x, axis=(0, 1))
    inside = real.reshape(*real.shape, *(1,) * (x.ndim - 2))
    return jnp.sum(jnp.where(inside, x, 0.0), axis=(0, 1)) / jnp.maximum(jnp.sum(real), 1)


def feed(x: jax.Array, w: Any, activation: str, product: Callable[..., jax.Array]) -> jax.Array:
    """`lm.models.layers.Mlp`, with w = (up, down) or (up, gate, down), by a product that knows whose rows of x are whose."""
    hidden = ACTIVATIONS[activation](product(x, w[0], "hidden").astype(jnp.float32)).astype(x.dtype)
    if len(w) == 3:
        hidden = hidden * product(x, w[1], "hidden")
    return product(hidden, w[-1], "embed_act")


def dropless(x: jax.Array, weights_BTK: jax.Array, chosen_BTK: jax.Array, *w: jax.Array, config: config.Moe) -> jax.Array:
    """x [B, T, D] -> [B, T, D]: assignments sorted by expert, so that each expert has its tokens in a row (MegaBlocks)."""
    order_M = jnp.argsort(chosen_BTK.reshape(-1))  # stable
    sizes_E = jnp.bincount(chosen_BTK.reshape(-1), length=config.num_experts)
    tokens_MD = x.reshape(-1, x.shape[-1])[order_M // config.top_k]
    made_MD = feed(tokens_MD, w, config.expert.activation, lambda a, b, _: grouped(a, b, sizes_E))
    made_BTKD = made_MD[jnp.argsort(order_M)].reshape(*chosen_BTK.shape, -1)
    return jnp.einsum("btkd,btk->btd", made_BTKD, weights_BTK.astype(x.dtype))


def limited(
    x: jax.Array,
    weights_BTK: jax.Array,
    chosen_BTK: jax.Array,
    *w: jax.Array,
    config: config.Moe,
    real: jax.Array | None = None,
) -> jax.Array:
    """x [B, T, D] -> [B, T, D]: an expert has C places in each row, and tokens take them in their order.

    One-hot sends there and back, which shard over an axis of experts (GShard, arXiv 2006.16668, section 3.2), but no
    second choice waits for later tokens' first: whether a token finds a place depends on the tokens before it alone.
    C is therefore a share of the row's length and not of its text, and tokens that are not `real` take no place: they get 0.
    """
    t, e = x.shape[1], config.num_experts
    assert config.capacity is not None
    places = min(t, math.ceil(config.capacity * t * config.top_k / e))
    chosen_BTKE = jax.nn.one_hot(chosen_BTK, e, dtype=jnp.int32)
    taken_BTE = jnp.sum(chosen_BTKE, axis=2)
    if real is not None:
        taken_BTE = jnp.where(real[..., None], taken_BTE, 0)
    before_BTE = jnp.cumsum(taken_BTE, axis=1) - taken_BTE
    send_BTEC = jax.nn.one_hot(jnp.where(taken_BTE == 1, before_BTE, places), places, dtype=x.dtype)  # 0 from `places` on
    weights_BTE = jnp.einsum("btke,btk->bte", chosen_BTKE, weights_BTK)

    def product(a: jax.Array, b: jax.Array, axis: str) -> jax.Array:
        y = jnp.einsum("beci,eio->beco", a, b)
        return nn.with_logical_constraint(y, ("batch_by_expert", "experts", "capacity", axis))

    # Twice constrained, so that between a device's own rows and its own experts' lies an all-to-all: from one to the other
    # in a single product, XLA adds up partial sums over experts and then gathers all rows of the batch.
    own, theirs = (("batch", None, "capacity", "embed_act"), ("batch_by_expert", "experts", "capacity", "embed_act"))
    sent_BECD = nn.with_logical_constraint(jnp.einsum("btec,btd->becd", send_BTEC, x), own)
    made_BECD = feed(nn.with_logical_constraint(sent_BECD, theirs), w, config.expert.activation, product)
    made_BECD = nn.with_logical_constraint(made_BECD, own)
    back_BTEC = send_BTEC * weights_BTE[..., None].astype(x.dtype)
    return jnp.einsum("btec,becd->btd", back_BTEC, made_BECD)
