"""Policy-gradient objectives as data: each published method is a row of METHODS, a choice from the same few parts.

A batch holds samples of the policy with the log-probabilities of the distribution that they were drawn from, which are the
denominators of all ratios; nothing is computed again from text. `prepared` adds what the policy before the step says of it
(advantages, the reference's log-probabilities, a critic's values), and `loss` is that of one update.

Axes: B samples, those of one prompt in `group` consecutive rows; P tokens that are written, at most.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from lm.losses.chunked import Apply, chunked_map, over_logits
from lm.losses.log_probs import forbid, log_softmax_at
from lm.types import Array, Example, WeightedMean

DDOF, EPSILON = 1, 1e-4  # of a group's deviation: divided by group - 1, and added to it before the division (trl's choices)
Kl = Literal["without", "reward", "k2", "k3"]


@dataclass(frozen=True)
class Method:
    """The choices that make a policy objective. R is a sample's reward, A an advantage, r = p / p_old a ratio.

    advantage   reward         A = R
                mean           A = R - mean of its group
                deviation      A = (R - mean of its group) / (deviation of its group + EPSILON), see DDOF
                leave_one_out  A = R - mean of the others of its group
                critic         generalised advantage estimates of a critic (arXiv 1506.02438), whitened over the batch
    ratio       without        the loss of a token is -A log p
                token          -min(r A, clip(r, 1 - clip_low, 1 + clip_high) A), r of each token
                sequence       the same, r the geometric mean over the tokens of the sample
    aggregate   token          the mean over all tokens of the batch
                sequence       the mean over samples of the mean over their tokens
                constant       the sum over tokens / P, the mean over samples
    kl          without        no penalty
                reward         weight * (log p_old - log p_reference) is taken off each token's reward (k1)
                k2, k3         weight * (1/2 d^2) or weight * (exp(d) - d - 1) is added to each token's loss, with
                               d = log p_reference - log p; k3's gradient is that of another divergence (arXiv 2512.21852)
    truncated   scored         an answer that was cut off has the reward of what is there
                unrewarded     it has the reward 0
                masked         it has no loss
    draws       so often another question is taken for one whose samples all have the same reward (`rewarded`), and so teach
                nothing, the first one counted (dynamic sampling)
    """

    paper: str
    advantage: Literal["reward", "mean", "deviation", "leave_one_out", "critic"]
    ratio: Literal["without", "token", "sequence"] = "token"
    clip_low: float = 0.2
    clip_high: float = 0.2
    aggregate: Literal["token", "sequence", "constant"] = "token"
    kl: Kl = "without"
    truncated: Literal["scored", "unrewarded", "masked"] = "scored"
    draws: int = 1


METHODS: Mapping[str, Method] = {
    "reinforce": Method("Williams 1992", "reward", ratio="without", aggregate="constant"),
    "ppo": Method("arXiv 1707.06347, with the penalty of 1909.08593", "critic", kl="reward"),
    "rloo": Method("arXiv 2402.14740", "leave_one_out", ratio="without", aggregate="constant", kl="reward"),
    "grpo": Method("arXiv 2402.03300", "deviation", aggregate="sequence", kl="k3"),
    "dr_grpo": Method("arXiv 2503.20783", "mean", aggregate="constant"),
    "dapo": Method("arXiv 2503.14476", "deviation", clip_high=0.28, truncated="masked", draws=4),  # the paper: no bound
    "gspo": Method("arXiv 2507.18071", "deviation", "sequence", clip_low=3e-4, clip_high=4e-4, aggregate="sequence"),
}


@struct.dataclass
class Rollouts:
    """Samples with their rewards, arrays [B, ...]. The fields from `advantages` on are None until `prepared` has set them."""

    example: Example  # targets int32 [B, P]: what was written; weights float32: 1 where a token is the policy's, and has loss
    log_probs: Array  # float32 [B, P], of the distribution that the tokens were drawn from; 0 elsewhere
    rewards: Array  # float32 [B]
    lengths: Array  # int32 [B]: tokens that the policy wrote
    truncated: Array  # float32 [B]: 1 where the answer was cut off
    advantages: Array = None  # float32 [B, P]
    reference: Array = None  # float32 [B, P]: log-probabilities of the reference
    returns: Array = None  # float32 [B, P]: what a critic shall say
    fresh: Array = None  # float32 [B]: 1 in the first update, whose parameters are those that wrote
    draws: Array = None  # float32 [B]: questions that were taken for this row's place
    varied: Array = None  # float32 [B]: 1 where the row's group teaches something (`varied`); None: it is alone in its group

    def tokens_read(self) -> Array:
        """uint32 []: tokens of both streams, without padding."""
        return self.example.tokens_read()

    def tokens_asked(self) -> Array:
        """uint32 []: tokens with loss."""
        return self.example.tokens_asked()

    @property
    def mask(self) -> Array:
        """bool [B, P]: the tokens with loss."""
        return self.example.weights > 0


class TokenScores(NamedTuple):
    log_probs: jax.Array  # float32 [B, P], of the targets
    entropy: jax.Array  # float32 [B, P], nats


def judged(
    head: Any,
    apply: Apply,
    hidden: jax.Array,
    targets: jax.Array,
    *,
    vocab_size: int,
    temperature: float,
    forbidden: jax.Array | None = None,
) -> TokenScores:
    """Log-probabilities of targets [B, P] under the distribution that is sampled: at a temperature, and without the tokens that
    are `forbidden` (bool [V]). Its entropy has no gradient. `hidden` is [B, P, D]; `head` as in `lm.losses.log_probs`."""

    def fn(logits: jax.Array, targets: jax.Array) -> TokenScores:
        logits = forbid(logits, forbidden) / temperature
        log_p = jax.lax.stop_gradient(jax.nn.log_softmax(logits, axis=-1))
        return TokenScores(log_softmax_at(logits, targets), -jnp.sum(jnp.exp(log_p) * log_p, axis=-1))

    return over_logits(chunked_map, fn, head, apply, hidden, (targets,), vocab_size)


# ------------------------------------------------------------------------------------------------------ advantages


def group_advantages(rewards: jax.Array, kind: str, group: int) -> jax.Array:
    """float32 [B]: the advantages of samples by their rewards [B], those of a group in consecutive places."""
    by_group = rewards.reshape(-1, group)
    mean = jnp.mean(by_group, axis=1, keepdims=True)
    match kind:
        case "reward":
            found = by_group
        case "mean":
            found = by_group - mean
        case "deviation":
            found = (by_group - mean) / (jnp.std(by_group, axis=1, ddof=DDOF, keepdims=True) + EPSILON)
        case "leave_one_out":
            found = (by_group - mean) * (group / (group - 1))
        case _:
            raise ValueError(f"no advantage {kind!r} of a group")
    return found.reshape(-1)


def varied(rewards: Any, truncated: Any, method: Method, group: int) -> Any:
    """float32 [B]: 1 where a sample's group teaches something: its rewards differ, and one of its samples has loss. From arrays
    [B] of NumPy or JAX."""
    by_group = rewarded(rewards, truncated, method).reshape(-1, group)
    teaches = by_group.max(axis=1) > by_group.min(axis=1)
    if method.truncated == "masked":
        teaches &= truncated.reshape(-1, group).min(axis=1) == 0
    return teaches.astype("float32").repeat(group)


def rewarded(rewards: Any, truncated: Any, method: Method) -> Any:
    """The rewards [B] that advantages are made of: 0 of what was cut off, if the method leaves such answers unrewarded."""
    return rewards * (truncated == 0) if method.truncated == "unrewarded" else rewards


def gae(rewards: jax.Array, values: jax.Array, mask: jax.Array, *, discount: float, decay: float) -> jax.Array:
    """float32 [B, P]: generalised advantage estimates (arXiv 1506.02438) of the tokens in `mask`; 0 elsewhere. Others, such as
    those of a tool, are no step: what follows a token is the next one in `mask`, and what follows the last one is worth 0."""
    rewards, values = jnp.where(mask, rewards, 0.0), jnp.where(mask, values, 0.0)

    def back(behind: tuple[jax.Array, jax.Array], here: tuple[jax.Array, ...]) -> tuple[Any, jax.Array]:
        (later, after), (reward, value, own) = behind, here
        found = reward + discount * after - value + discount * decay * later
        return (jnp.where(own, found, later), jnp.where(own, value, after)), found

    nothing = jnp.zeros(len(rewards))
    _, found = jax.lax.scan(back, (nothing, nothing), (rewards.T, values.T, mask.T), reverse=True)
    return jnp.where(mask, found.T, 0.0)


def whitened(values: jax.Array, mask: jax.Array) -> jax.Array:
    """The values in `mask` with mean 0 and variance 1 (of a sample); 0 elsewhere."""
    count = jnp.maximum(jnp.sum(mask), 2)
    mean = jnp.sum(jnp.where(mask, values, 0.0)) / count
    variance = jnp.sum(jnp.where(mask, (values - mean) ** 2, 0.0)) / (count - 1)
    return jnp.where(mask, (values - mean) * jax.lax.rsqrt(variance + 1e-8), 0.0)


def prepared(
    batch: Rollouts,
    method: Method,
    *,
    group: int,
    reference: jax.Array | None = None,
    values: jax.Array | None = None,
    kl_weight: float = 0.0,
    discount: float = 1.0,
    decay: float = 0.95,
) -> Rollouts:
    """The batch with its advantages. `reference` [B, P]: log-probabilities of the reference, for a penalty; `values` [B, P]:
    the critic's. The reward stands at the last token that the policy wrote."""
    rewards, weights = rewarded(batch.rewards, batch.truncated, method), batch.example.weights
    if method.truncated == "masked":
        weights = jnp.where(batch.truncated[:, None] > 0, 0.0, weights)
    penalty = jnp.zeros_like(weights)
    if method.kl == "reward":
        assert reference is not None
        penalty = kl_weight * jnp.where(batch.mask, batch.log_probs - reference, 0.0)
    if method.advantage == "critic":
        assert values is not None
        place = jnp.arange(weights.shape[1])
        last = place == jnp.max(jnp.where(batch.mask, place, -1), axis=1, keepdims=True)
        steps = jnp.where(last, rewards[:, None], 0.0) - penalty
        found = gae(steps, values, batch.mask, discount=discount, decay=decay)
        advantages, returns = whitened(found, batch.mask), found + values
    else:
        found = group_advantages(rewards - jnp.sum(penalty, axis=1), method.advantage, group)
        advantages, returns = jnp.broadcast_to(found[:, None], weights.shape), None
    example = replace(batch.example, weights=weights)
    teaches = varied(batch.rewards, batch.truncated, method, group) if group > 1 else None
    given: dict[str, Any] = dict(advantages=advantages, reference=reference, returns=returns, varied=teaches)
    return replace(batch, example=example, **given)


def updates(batch: Rollouts, key: jax.Array, *, epochs: int, minibatches: int) -> Rollouts:
    """The rows that each update of a step reads, arrays [epochs * minibatches, B / minibatches, ...]: all rows in each epoch,
    in an order drawn from `key` if there are several minibatches."""
    rows, count = len(batch.rewards), epochs * minibatches
    order = jnp.tile(jnp.arange(rows), epochs)
    if minibatches > 1:
        keys = jax.random.split(key, epochs)
        order = jax.vmap(lambda key: jax.random.permutation(key, rows))(keys)
    parts = jax.tree.map(lambda x: x[order.reshape(count, rows // minibatches)], batch)
    fresh = jnp.zeros((count, rows // minibatches)).at[0].set(1.0)
    return replace(parts, fresh=fresh)


# ------------------------------------------------------------------------------------------------------------ loss


def surrogate(log_probs: jax.Array, batch: Rollouts, method: Method) -> tuple[jax.Array, jax.Array]:
    """float32 [B, P]: the loss of each token, and 1 where its ratio was clipped; both 0 where a token has no loss. Nothing that
    stands at padding, not even a NaN, enters the values or the gradient."""
    mask = batch.mask
    log_probs, old = jnp.where(mask, log_probs, 0.0), jnp.where(mask, batch.log_probs, 0.0)
    advantages = jnp.where(mask, batch.advantages, 0.0)
    if method.ratio == "without":
        return -advantages * log_probs, jnp.zeros_like(log_probs)
    difference = log_probs - old
    if method.ratio == "sequence":
        count = jnp.maximum(jnp.sum(mask, axis=1, keepdims=True), 1)
        difference = jnp.broadcast_to(jnp.sum(difference, axis=1, keepdims=True) / count, mask.shape)
    ratio = jnp.exp(difference)
    free = ratio * advantages
    bound = jnp.clip(ratio, 1 - method.clip_low, 1 + method.clip_high) * advantages
    return jnp.where(mask, -jnp.minimum(free, bound), 0.0), jnp.where(mask & (bound < free), 1.0, 0.0)


def kl(log_probs: jax.Array, reference: jax.Array, kind: str) -> jax.Array:
    """Estimates of KL(p || p_reference) by log-probabilities of samples of p: k1, k2 or k3 (joschu.net/blog/kl-approx.html).

    k1 and k3 have its mean, and k2 nearly. As losses only k2 has the mean of its gradient, that of the next token's divergence:
    k1's gradient has the mean 0, and k3's has that of KL(p_reference || p).
    """
    d = reference - log_probs
    return {"k1": lambda: -d, "k2": lambda: d**2 / 2, "k3": lambda: jnp.expm1(d) - d}[kind]()


def aggregated(values: jax.Array, mask: jax.Array, how: str) -> WeightedMean:
    """The mean over a batch of the values [B, P] of its tokens in `mask`, as a sum that parts of a batch add up to."""
    total, rows, length = jnp.sum(jnp.where(mask, values, 0.0), axis=1), jnp.float32(len(mask)), mask.shape[1]
    count = jnp.sum(mask, axis=1)
    if how == "token":
        return WeightedMean(jnp.sum(total), jnp.sum(count).astype(jnp.float32))
    divided = total / (jnp.maximum(count, 1) if how == "sequence" else length)
    return WeightedMean(jnp.sum(divided), rows)


def loss(
    found: TokenScores,
    batch: Rollouts,
    method: Method,
    *,
    kl_weight: float = 0.0,
    values: jax.Array | None = None,
    critic: float = 0.0,
) -> tuple[WeightedMean, dict[str, WeightedMean]]:
    """The loss of one update by what the policy `found` of the batch's tokens, and means that are logged beside it.

    `values` [B, P] are those of a critic that is trained too: `critic` * the mean of 1/2 (value - return)^2 is added.
    """
    mask = batch.mask
    mean = lambda x, rows=1.0: WeightedMean(jnp.sum(jnp.where(mask, x, 0.0) * rows), jnp.sum(mask * rows))
    of_rows = lambda x: WeightedMean(jnp.sum(x), jnp.float32(len(mask)))
    each, clipped = surrogate(found.log_probs, batch, method)
    log_probs, old = jnp.where(mask, found.log_probs, 0.0), jnp.where(mask, batch.log_probs, 0.0)
    fresh = batch.fresh[:, None]
    apart = jax.lax.stop_gradient(jnp.abs(log_probs - old))
    more = {
        "reward": of_rows(batch.rewards),
        "length": of_rows(batch.lengths.astype(jnp.float32)),
        "truncated": of_rows(batch.truncated),
        "entropy": mean(found.entropy),
        "clipped": mean(clipped),
        "mismatch": mean(apart, fresh),
        "mismatch_max": WeightedMean(jnp.max(apart * fresh), jnp.max(fresh)),
    }
    if batch.varied is not None:
        more["varied"] = of_rows(batch.varied)
    if method.draws > 1 and batch.draws is not None:
        more["draws"] = of_rows(batch.draws)
    if batch.reference is not None:
        reference = jnp.where(mask, batch.reference, 0.0)
        more["kl"] = mean(jax.lax.stop_gradient(kl(log_probs, reference, "k3")))
        if method.kl in ("k2", "k3"):
            each += kl_weight * kl(log_probs, reference, method.kl)
    if values is not None:
        errors = (jnp.where(mask, values, 0.0) - jnp.where(mask, batch.returns, 0.0)) ** 2 / 2
        each += critic * errors
        more["critic_error"] = mean(jax.lax.stop_gradient(errors))
    return aggregated(each, mask, method.aggregate), more
