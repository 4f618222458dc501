"""A variational autoencoder of texts as a task (arXiv 1511.06349): the loss is a bound on a text's negative log-probability.

In training the divergence has a weight that rises with the share of the training that is done, which the batch carries.
Held-out figures have weight 1, and so are the bound itself; their draws are the same in every evaluation.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from lm import config
from lm.errors import UserError
from lm.evaluation.heldout import HeldOut
from lm.losses.cross_entropy import of_hidden
from lm.losses.log_probs import scores_of_hidden
from lm.losses.variational import annealed, charged, divergence, importance, log_ratio, of_documents
from lm.models.bottleneck import Gaussians, gaussians
from lm.models.transformer import Transformer, head_params
from lm.training.task import Task
from lm.types import Example, WeightedMean

EVALUATION = 0  # seed of the draws of held-out rows


@dataclass(frozen=True)
class NamingCollapse:
    """Held-out figures with `posterior_collapse`: 1 if a document's divergence is below `least` nats, so that the vectors say
    next to nothing of the text and the decoder writes without them (arXiv 1511.06349, section 3); 0 if not."""

    figures: HeldOut
    least: float

    def __call__(self, params: Any) -> dict[str, float]:
        found = self.figures(params)
        return found | {"posterior_collapse": float(found["divergence"] < self.least)}

    def intervals(self) -> dict[str, list[float]]:
        return self.figures.intervals()


def task(run: config.Run) -> Task:
    c, model = run.objective, Transformer(run.model)
    assert isinstance(c, config.Variational)
    check(run.model)
    return Task(
        models={"model": run.model},
        init=lambda key, batch: model.init(key, batch)["params"],
        loss=partial(_loss, model, c, run.train.z_loss),
        scores=partial(_scores, model, c),
        passes=lambda lengths: [(run.model, lengths.predicted)],
        writer=lambda params, frozen: (model, params),
    )


def named(figures: HeldOut, objective: config.Objective) -> Any:
    """The evaluator of a run with this objective."""
    return NamingCollapse(figures, objective.collapsed) if isinstance(objective, config.Variational) else figures


def check(model: config.Model) -> None:
    """UserError unless the model draws vectors."""
    if model.bottleneck is None or model.bottleneck.latent != "gaussian":
        raise UserError(
            "objective 'variational' draws vectors between encoder and decoder: set --config.model.bottleneck.latent=gaussian"
        )


def _loss(
    model: Transformer, c: config.Variational, z_loss: float, params: Any, frozen: Any, batch: Example, rngs: Any
) -> tuple[WeightedMean, dict[str, WeightedMean]]:
    keys = None if rngs is None else dict(zip(("dropout", "latent"), jax.random.split(rngs["dropout"]), strict=True))
    variables = {"params": params}
    hidden, sown = model.apply(variables, batch, method="hidden", rngs=keys, mutable=["losses", "latents"])
    found, tokens = gaussians(sown), jnp.sum(batch.weights)
    settings: dict[str, Any] = dict(vocab_size=model.config.vocab_size, z_loss=z_loss)
    nats = of_hidden(head_params(params), model.apply, hidden, batch.targets, batch.weights, **settings)
    own = divergence(found.mean, found.log_var, found.there)
    progress: Any = batch.progress
    weight = annealed(progress, c.anneal, c.weight)
    paid = jnp.sum(weight[:, None] * charged(own, found.there, c.free))
    others = sum((jnp.sum(extra) * tokens for extra in jax.tree.leaves(sown.get("losses", {}))), jnp.zeros(()))
    means = {
        "reconstruction": WeightedMean(nats, tokens),
        "divergence": WeightedMean(jnp.sum(own), jnp.sum(found.there)),
        "divergence_weight": WeightedMean(jnp.sum(weight), jnp.float32(weight.size)),
    }
    return WeightedMean(nats + paid + others, tokens), means


def _scores(model: Transformer, c: config.Variational, params: Any, frozen: Any, batch: Example) -> dict[str, WeightedMean]:
    """Held-out figures.

    loss              the bound, nats a token: `reconstruction` and the divergence
    divergence        nats a document
    divergence_share  of the divergence in the bound
    loss_importance   the tighter bound of several draws
    """
    keys = jax.random.split(jax.random.key(EVALUATION), c.draws)
    nats, top, found = _drawn(model, params, batch, keys[0])
    tokens, own = jnp.sum(batch.weights), divergence(found.mean, found.log_var, found.there)
    reconstruction, total = jnp.sum(nats), jnp.sum(own)
    out = {
        "loss": WeightedMean(reconstruction + total, tokens),
        "accuracy": WeightedMean(jnp.sum(batch.weights * top), tokens),
        "reconstruction": WeightedMean(reconstruction, tokens),
        "divergence": WeightedMean(total, jnp.sum(found.there)),
        "divergence_share": WeightedMean(total, reconstruction + total),
    }
    if c.draws > 1:
        out["loss_importance"] = WeightedMean(-jnp.sum(_importance(model, params, batch, keys)), tokens)
    return out


def _drawn(model: Transformer, params: Any, batch: Example, key: jax.Array) -> tuple[jax.Array, jax.Array, Gaussians]:
    """Nats of each target, weighted, [B, T]; which are the likeliest token; and what the vectors were drawn from."""
    settings: dict[str, Any] = dict(method="hidden", rngs={"latent": key}, mutable=["latents"])
    hidden, sown = model.apply({"params": params}, batch, **settings)
    score = scores_of_hidden(head_params(params), model.apply, hidden, batch.targets, vocab_size=model.config.vocab_size)
    return -batch.weights * score.log_probs, score.is_top, gaussians(sown)


def _importance(model: Transformer, params: Any, batch: Example, keys: jax.Array) -> jax.Array:
    """float32 [B, M]: the importance-weighted bound of log p of each document, of as many draws as there are keys."""
    stream: Any = batch.decoder

    def weights(key: jax.Array) -> jax.Array:
        nats, _, found = _drawn(model, params, batch, key)
        ratio = log_ratio(found.drawn, found.mean, found.log_var)
        return jnp.where(found.there, ratio, 0.0) - of_documents(nats, stream.segments, found.there.shape[1])

    return importance(jax.lax.map(weights, keys))
