"""Replaced-token detection (ELECTRA, arXiv 2003.10555): the loss of a generator that fills in masks, plus the loss of a model
that reads the result.

`params` and `apply` are dicts of "generator" and "model"; each tree of parameters is complete. The two means have different
denominators, the masked positions and those that the model answers for, which would not add up over microbatches. Hence the
weight of a batch is the number of positions that the model answers for, and if these are all positions, the generator's sum
is divided by `rate`. Sums and weights then add up, and the mean approximates the paper's `mean of the generator + weight * mean
of the model`. It is slightly too low for the generator: `rate` is of the tokens that are text, rounded in each
document, whereas the model also answers at bos and eos. If the model answers only at the masked positions, the mean is exact.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lm.losses.chunked import Apply, chunked_sum, over_logits
from lm.losses.cross_entropy import token_losses
from lm.types import Example, WeightedMean

# (outputs [B, n, ...], targets, inputs [B, n], z_loss) -> losses [B, n], whether the answer is right bool [B, n]
Answer = Callable[..., tuple[jax.Array, jax.Array]]


def loss(
    params: dict[str, Any],
    apply: dict[str, Apply],
    example: Example,
    *,
    predict: str,
    rate: float,
    weight: float,
    head_params: Callable[[Any], Any],
    vocab_size: int,
    z_loss: float = 0.0,
    rngs: dict[str, jax.Array] | None = None,
    chunks: int | None = None,
) -> WeightedMean:
    """The loss of both models on a masked Example. Tokens are drawn with `rngs["dropout"]`; no gradient flows through them."""

    def fill(logits: jax.Array, targets: jax.Array, weights: jax.Array, uniform: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jnp.sum(weights * token_losses(logits, targets, z_loss)), draw(logits, uniform)

    def judge(outputs: Any, targets: jax.Array, inputs: jax.Array, weights: jax.Array, _: jax.Array) -> tuple[jax.Array, None]:
        return jnp.sum(weights * ANSWERS[predict](outputs, targets, inputs, z_loss)[0]), None

    settings: dict[str, Any] = dict(predict=predict, head_params=head_params, vocab_size=vocab_size, chunks=chunks)
    first, second, asked, _, sown = _run_both(params, apply, example, fill, judge, rngs=rngs, **settings)
    mean = _mean(first, second, asked, rate, weight)
    return WeightedMean(mean.total + sown * mean.weight, mean.weight)


def scores(
    params: dict[str, Any],
    apply: dict[str, Apply],
    example: Example,
    *,
    predict: str,
    rate: float,
    weight: float,
    head_params: Callable[[Any], Any],
    vocab_size: int,
) -> dict[str, WeightedMean]:
    """For evaluation: `loss` as in training, without z-loss, and figures of each model. Tokens are drawn with a fixed key."""

    def fill(logits: jax.Array, targets: jax.Array, weights: jax.Array, uniform: jax.Array) -> tuple[jax.Array, jax.Array]:
        right = jnp.argmax(logits, axis=-1) == targets
        return jnp.stack([jnp.sum(weights * v) for v in (token_losses(logits, targets), right)]), draw(logits, uniform)

    def judge(outputs: Any, targets: jax.Array, inputs: jax.Array, weights: jax.Array, replaced: jax.Array) -> Any:
        losses, right = ANSWERS[predict](outputs, targets, inputs, 0.0)
        return jnp.stack([jnp.sum(weights * v) for v in (losses, right, right & replaced, right & ~replaced)]), None

    settings: dict[str, Any] = dict(predict=predict, head_params=head_params, vocab_size=vocab_size, chunks=None)
    first, second, asked, replaced, _ = _run_both(params, apply, example, fill, judge, rngs=None, **settings)
    chosen, count = jnp.sum(example.weights), jnp.sum(asked.weights)
    among_replaced = jnp.sum(asked.weights * replaced)
    return {
        "loss": _mean(first[0], second[0], asked, rate, weight),
        "accuracy": WeightedMean(second[1], count),
        "accuracy_replaced": WeightedMean(second[2], among_replaced),
        "accuracy_kept": WeightedMean(second[3], count - among_replaced),
        "model_loss": WeightedMean(second[0], count),
        "generator_loss": WeightedMean(first[0], chosen),
        "generator_accuracy": WeightedMean(first[1], chosen),
    }


def draw(logits: jax.Array, uniform: jax.Array) -> jax.Array:
    """Draws tokens int32 [...] with probabilities softmax(logits [..., V]): where their cumulative sum passes `uniform` [...],
    numbers of [0, 1)."""
    shares = jnp.cumsum(jax.nn.softmax(jax.lax.stop_gradient(logits).astype(jnp.float32)), axis=-1)
    below = jnp.sum(shares <= uniform[..., None] * shares[..., -1:], axis=-1)
    return jnp.minimum(below, logits.shape[-1] - 1).astype(jnp.int32)


def substituted(example: Example, drawn: jax.Array, predict: str) -> tuple[Example, jax.Array]:
    """Returns the Example of the model, and bool at its targets' positions: whether the token was replaced by another one.

    read by the generator   [bos 20  M 22 23  M  0]   where [2 5]   targets [21 24]   drawn [21 30]
    read by the model       [bos 20 21 22 23 30  0]
    targets "replaced"      [ 0   0  0  0  0  1  0]   weights [1 1 1 1 1 1 0]
    targets "all"           [bos 20 21 22 23 24  0]   weights [1 1 1 1 1 1 0]
    targets "replaced_chosen"   [ 0  1]               weights [1 1]
    targets "masked"            [21 24]               weights [1 1]
    """
    stream: Any = example.encoder
    where: Any = example.where
    length = stream.tokens.shape[1]
    at = jnp.where(example.weights > 0, where, length)  # padding of `where` is dropped, past the row's end

    def put(row: jax.Array, values: jax.Array) -> jax.Array:
        return jax.vmap(lambda r, i, v: r.at[i].set(v, mode="drop"))(row, at, values)

    replaced = drawn != example.targets
    stream, original = stream.replace(tokens=put(stream.tokens, drawn)), put(stream.tokens, example.targets)
    if predict in ("replaced_chosen", "masked"):
        targets = example.targets if predict == "masked" else replaced.astype(jnp.int32)
        return Example(stream, None, targets, example.weights, example.where), replaced
    replaced = put(jnp.zeros(original.shape, bool), replaced)
    targets = original if predict == "all" else replaced.astype(jnp.int32)
    return Example(stream, None, targets, (stream.segments > 0).astype(jnp.float32)), replaced


def _run_both(
    params: dict[str, Any],
    apply: dict[str, Apply],
    example: Example,
    fill: Callable[..., Any],
    judge: Callable[..., Any],
    *,
    predict: str,
    head_params: Callable[[Any], Any],
    vocab_size: int,
    rngs: dict[str, jax.Array] | None,
    chunks: int | None,
) -> tuple[jax.Array, jax.Array, Example, jax.Array, Any]:
    """Runs the generator and the model. Returns the sums of `fill` and `judge`, the model's Example, where tokens were
    replaced, and the sum of what both sowed in "losses"."""
    keys = jax.random.split(jax.random.key(0) if rngs is None else rngs["dropout"], 3)

    def run(
        name: str, part: Any, example: Example, over: tuple[jax.Array, ...], outputs: int, key: Any
    ) -> tuple[Any, Any, Any]:
        variables, dropout = {"params": params[name]}, None if rngs is None else {"dropout": key}
        hidden, sown = apply[name](variables, example, method="hidden", rngs=dropout, mutable=["losses"])
        total, also = over_logits(chunked_sum, part, head_params(params[name]), apply[name], hidden, over, outputs, chunks)
        return total, also, sum((jnp.sum(extra) for extra in jax.tree.leaves(sown)), jnp.zeros(()))

    over = (example.targets, example.weights, jax.random.uniform(keys[0], example.targets.shape))
    first, drawn, sown = run("generator", fill, example, over, vocab_size, keys[1])
    asked, replaced = substituted(example, drawn, predict)
    inputs: Any = asked.encoder.tokens if asked.where is None and asked.encoder else drawn
    outputs = 1 if ANSWERS[predict] is _replaced else vocab_size
    second, _, more = run("model", judge, asked, (asked.targets, inputs, asked.weights, replaced), outputs, keys[2])
    return first, second, asked, replaced, sown + more


def _mean(first: jax.Array, second: jax.Array, asked: Example, rate: float, weight: float) -> WeightedMean:
    """Combines the sums of both losses, as the head of this file says."""
    return WeightedMean(first / (rate if asked.where is None else 1.0) + weight * second, jnp.sum(asked.weights))


# -------------------------------------------------------------------------------------------- what the model answers


def _replaced(outputs: jax.Array, targets: jax.Array, inputs: jax.Array, z_loss: float) -> tuple[jax.Array, jax.Array]:
    """Whether the token was replaced: one logit per position, [B, n, 1] (section 2, the discriminator's loss)."""
    x = outputs[..., 0].astype(jnp.float32)
    return jax.nn.softplus(x) - x * targets, (x > 0) == (targets > 0)


def _token(outputs: jax.Array, targets: jax.Array, inputs: jax.Array, z_loss: float) -> tuple[jax.Array, jax.Array]:
    return token_losses(outputs, targets, z_loss), jnp.argmax(outputs, axis=-1) == targets


def _token_or_copy(
    outputs: tuple[jax.Array, jax.Array], targets: jax.Array, inputs: jax.Array, z_loss: float
) -> tuple[jax.Array, jax.Array]:
    """The original token, from (logits [B, n, V], gate [B, n, 1]): the token in the input has probability sigmoid(gate), plus
    its share of the rest, which is softmax(logits) (section 3.4, All-Tokens MLM)."""
    logits, gate = (x.astype(jnp.float32) for x in outputs)
    log_z = jax.nn.logsumexp(logits, axis=-1)
    copied, written = jax.nn.log_sigmoid(gate[..., 0]), jax.nn.log_sigmoid(-gate[..., 0])

    def written_as(tokens: jax.Array) -> jax.Array:
        return written + jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0] - log_z

    same = jnp.logaddexp(copied, written_as(inputs))
    losses = -jnp.where(inputs == targets, same, written_as(targets)) + z_loss * log_z**2
    best = jnp.argmax(logits, axis=-1)
    return losses, jnp.where(same >= written_as(best), inputs, best) == targets


ANSWERS: dict[str, Answer] = {
    "replaced": _replaced,
    "replaced_chosen": _replaced,
    "masked": _token,
    "all": _token_or_copy,
}
