"""Losses of preferred answers: two answers to a prompt, or one that is judged, and a table of methods over log-probabilities.

A method compares the answers by a number each (`COMPARED`), of which d is the chosen one's less the rejected one's. Its loss is
`weight` times a function (`LINKS`) of z = beta * d - gamma - margin, plus `nll` times the chosen answer's nats a token.

The log-probability of the chosen answer itself often falls in training while the rejected one's falls faster, which is expected
(arXiv 2402.13228): both are logged.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lm.losses.chunked import Apply
from lm.losses.log_probs import log_probs, sown_log_probs
from lm.types import Compared, Example, Judged, WeightedMean


@dataclass(frozen=True)
class Method:
    """A row of METHODS: what is compared, the loss of the difference, and the paper's numbers."""

    paper: str
    compare: str  # of COMPARED
    link: str  # of LINKS, or "kto" for feedback
    beta: float
    gamma: float = 0.0
    nll: float = 0.0
    weight: float = 1.0

    @property
    def reads_reference(self) -> bool:
        return self.compare in ("ratio", "mean_ratio")

    @property
    def feedback(self) -> bool:
        """Whether it learns from answers that are judged one by one."""
        return self.link == "kto"


METHODS: Mapping[str, Method] = {
    "dpo": Method("arXiv 2305.18290, equation 7", "ratio", "sigmoid", beta=0.1),
    "dpo_norm": Method("arXiv 2411.15124, section 5.1.2", "mean_ratio", "sigmoid", beta=5.0),
    "ipo": Method("arXiv 2310.12036, equation 17, of means as in the authors' code", "mean_ratio", "square", beta=0.1),
    "hinge": Method("arXiv 2309.06657, equation 9", "ratio", "hinge", beta=0.1),
    "simpo": Method("arXiv 2405.14734, equation 6", "mean", "sigmoid", beta=2.0, gamma=1.0),
    "orpo": Method("arXiv 2403.07691, equation 6", "odds", "sigmoid", beta=1.0, nll=1.0, weight=0.1),
    "cpo": Method("arXiv 2401.08417, equation 5", "sum", "sigmoid", beta=0.1, nll=1.0),
    "kto": Method("arXiv 2402.01306, equation 8", "ratio", "kto", beta=0.1),
}


class Answers(NamedTuple):
    """Of each answer, float32 [...]: its log-probability, that under the reference (None: there is none), and its tokens."""

    log_prob: jax.Array
    reference: jax.Array | None
    tokens: jax.Array

    @property
    def ratio(self) -> jax.Array:
        return self.log_prob if self.reference is None else self.log_prob - self.reference

    @property
    def mean(self) -> jax.Array:
        """Log-probability a token; 0 of a blank row."""
        return self.log_prob / jnp.maximum(self.tokens, 1.0)


def log_odds(log_p: jax.Array) -> jax.Array:
    """log(p / (1 - p)) of log p < 0; above -1e-6, where float32 has no more digits, as at -1e-6."""
    log_p = jnp.minimum(log_p, -1e-6)
    return log_p - jnp.log(-jnp.expm1(log_p))


COMPARED: Mapping[str, Callable[[Answers], jax.Array]] = {
    "ratio": lambda a: a.ratio,
    "mean_ratio": lambda a: a.ratio / jnp.maximum(a.tokens, 1.0),
    "sum": lambda a: a.log_prob,
    "mean": lambda a: a.mean,
    "odds": lambda a: log_odds(a.mean),
}
LINKS: Mapping[str, Callable[[jax.Array, float], jax.Array]] = {  # (z, beta) -> losses
    "sigmoid": lambda z, beta: jax.nn.softplus(-z),
    "hinge": lambda z, beta: jax.nn.relu(1 - z),
    "square": lambda z, beta: ((z - 0.5) / beta) ** 2,  # (d - 1 / (2 beta))^2
}

Values = dict[str, tuple[jax.Array, jax.Array]]  # name -> float32 [B] each: a figure of each row, and its weight


def compared(a: Answers, margin: jax.Array, method: Method, *, smoothing: float = 0.0) -> Values:
    """The figures of pairs; `a` has arrays [B, 2], chosen and rejected, and `margin` [B]. "loss" is the one to minimise.

    `smoothing`: share of the preferences that is taken to be wrong (conservative DPO, arXiv 2305.18290's authors' note), of a
    sigmoid alone.
    """
    score = COMPARED[method.compare](a)
    z = method.beta * (score[:, 0] - score[:, 1]) - method.gamma - margin
    link = lambda z: LINKS[method.link](z, method.beta)
    losses = (1 - smoothing) * link(z) + smoothing * link(-z) if smoothing else link(z)
    rewards = method.beta * score
    figures = {
        "loss": method.weight * losses - method.nll * a.mean[:, 0],
        "accuracy": (rewards[:, 0] > rewards[:, 1]).astype(jnp.float32),
        "margin": rewards[:, 0] - rewards[:, 1],
        "reward_chosen": rewards[:, 0],
        "reward_rejected": rewards[:, 1],
        "log_prob_chosen": a.log_prob[:, 0],
        "log_prob_rejected": a.log_prob[:, 1],
    }
    there = (a.tokens[:, 0] > 0).astype(jnp.float32)
    return {name: (value, there) for name, value in figures.items()}


def judged(
    a: Answers, mismatched: Answers, good: jax.Array, method: Method, *, desirable: float = 1.0, undesirable: float = 1.0
) -> Values:
    """KTO's figures of judged answers, all arrays [B]. `mismatched` are other records' answers to the same prompts: the mean of
    their log-ratios, at least 0, estimates the divergence from the reference ("kl"), through which no gradient flows."""
    there = (a.tokens > 0).astype(jnp.float32)
    kl = jnp.sum(jnp.where(there > 0, mismatched.ratio, 0.0)) / jnp.maximum(jnp.sum(there), 1.0)
    kl = jax.lax.stop_gradient(jnp.maximum(kl, 0.0))
    ahead = method.beta * (a.ratio - kl)
    losses = jnp.where(good > 0, desirable * jax.nn.sigmoid(-ahead), undesirable * jax.nn.sigmoid(ahead))
    rewards, bad = method.beta * a.ratio, there * (1 - good)
    return {
        "loss": (method.weight * losses - method.nll * a.mean * good, there),
        "accuracy": (((ahead > 0) == (good > 0)).astype(jnp.float32), there),
        "reward_good": (rewards, there * good),
        "reward_bad": (rewards, bad),
        "log_prob_good": (a.log_prob, there * good),
        "log_prob_bad": (a.log_prob, bad),
        "kl": (jnp.full_like(there, kl), there),
    }


def means(values: Values) -> dict[str, WeightedMean]:
    """A `where` and no product, because the gradient of a blank row may be NaN, and NaN times 0 is."""
    return {name: WeightedMean(jnp.sum(jnp.where(w > 0, v * w, 0.0)), jnp.sum(w)) for name, (v, w) in values.items()}


def with_sown(values: Values, sown: Any) -> Values:
    """The figures with what a model sowed in "losses" added to the loss of each row, so that its mean has it once, as
    pretraining's has (`lm.losses.cross_entropy`). Without any they are as they were."""
    losses, weights = values["loss"]
    return values | {"loss": (sum((jnp.sum(extra) for extra in jax.tree.leaves(sown)), losses), weights)}


def answers(
    params: Any, reference: Any, apply: Apply, example: Example, *, rngs: dict[str, jax.Array] | None = None, **settings: Any
) -> tuple[Answers, Any]:
    """The answers of an Example, arrays [rows], and what the model sowed in "losses". `settings` are those of
    `lm.losses.log_probs`; `reference` are parameters, read without dropout, or None."""
    weigh = lambda found: jnp.sum(jnp.where(example.weights > 0, found, 0.0) * example.weights, axis=1)
    own, sown = sown_log_probs(params, apply, example, rngs=rngs, **settings)
    theirs = None if reference is None else jax.lax.stop_gradient(weigh(log_probs(reference, apply, example, **settings)))
    return Answers(weigh(own), theirs, jnp.sum(example.weights, axis=1)), sown


def values(
    params: Any,
    reference: Any,
    apply: Apply,
    batch: Compared | Judged,
    *,
    method: Method,
    smoothing: float = 0.0,
    desirable: float = 1.0,
    undesirable: float = 1.0,
    trains: bool = False,
    rngs: dict[str, jax.Array] | None = None,
    **settings: Any,
) -> Values:
    """The figures of a batch, of a model with `apply`. Of what a method does not take, nothing is read. `trains`: the loss has
    what the model sowed in "losses" as well, which held-out figures have not."""
    if isinstance(batch, Judged):
        own, sown = answers(params, reference, apply, batch.answer, rngs=rngs, **settings)
        other, _ = answers(jax.lax.stop_gradient(params), reference, apply, batch.mismatched, **settings)
        found = judged(own, other, batch.good, method, desirable=desirable, undesirable=undesirable)
    else:
        both, sown = answers(params, reference, apply, batch.both, rngs=rngs, **settings)
        pairs = Answers(*(None if x is None else x.reshape(-1, 2) for x in both))  # ty: ignore[invalid-argument-type]
        found = compared(pairs, batch.margin, method, smoothing=smoothing)
    return with_sown(found, sown) if trains else found
