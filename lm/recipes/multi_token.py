"""Multi-token prediction as a task: the model's next token, and heads for those after it that are trained beside it.

Parameters are {"model", "future"}. Held-out loss and bits per byte are those of the model alone, which is all that is used
afterwards; the heads' accuracies stand beside them.
"""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from lm import config
from lm.losses.cross_entropy import of_hidden
from lm.losses.log_probs import scores_of_hidden
from lm.models.future import Future, one_layer
from lm.models.transformer import Transformer, head_params
from lm.training.task import Task
from lm.types import Example, WeightedMean


def task(run: config.Run) -> Task:
    c = run.objective
    assert isinstance(c, config.MultiToken)
    model, future = Transformer(run.model), Future(run.model, c.heads, c.sequential)
    z_loss, vocab_size = run.train.z_loss, run.model.vocab_size

    def init(key: jax.Array, example: Any) -> Any:
        one, two = jax.random.split(key)
        hidden = jnp.zeros((*example.decoder.tokens.shape, run.model.width), run.model.dtype)
        return {
            "model": model.init(one, example)["params"],
            "future": future.init(two, hidden, example.decoder, hidden)["params"],
        }

    def hiddens(params: Any, example: Any, rngs: Any) -> tuple[list[jax.Array], Any]:
        """[B, T, D] of the model and of each head, and what the model sowed in "losses"."""
        keys = None if rngs is None else dict(zip(("model", "future"), jax.random.split(rngs["dropout"]), strict=True))
        of = lambda name: None if keys is None else {"dropout": keys[name]}
        variables = {"params": params["model"]}
        hidden, sown = model.apply(variables, example, method="hidden", rngs=of("model"), mutable=["losses"])
        embedded = model.apply(variables, example.decoder, "decoder", method="embedded")
        later: Any = future.apply({"params": params["future"]}, hidden, example.decoder, embedded, rngs=of("future"))
        return [hidden, *later], sown

    def loss(params: Any, frozen: Any, example: Any, rngs: Any) -> tuple[WeightedMean, dict[str, WeightedMean]]:
        found, sown = hiddens(params, example, rngs)
        head, means = head_params(params["model"]), []
        for k, hidden in enumerate(found):
            targets, weights = ahead(example, k)
            settings: dict[str, Any] = dict(vocab_size=vocab_size, z_loss=z_loss)
            means.append(WeightedMean(of_hidden(head, model.apply, hidden, targets, weights, **settings), jnp.sum(weights)))
        main, *later = means
        total = main.total + c.weight * sum(mean.total for mean in later)
        total += sum((jnp.sum(extra) * main.weight for extra in jax.tree.leaves(sown)), jnp.zeros(()))
        return WeightedMean(total, main.weight), {"next": main} | {f"later_{k}": mean for k, mean in enumerate(later, 1)}

    def scores(params: Any, frozen: Any, example: Any) -> dict[str, WeightedMean]:
        found, _ = hiddens(params, example, None)
        head, out = head_params(params["model"]), dict[str, WeightedMean]()
        for k, hidden in enumerate(found):
            targets, weights = ahead(example, k)
            score = scores_of_hidden(head, model.apply, hidden, targets, vocab_size=vocab_size)
            total = jnp.sum(weights)
            if not k:
                out["loss"] = WeightedMean(-jnp.sum(weights * score.log_probs), total)
            out[f"later_{k}_accuracy" if k else "accuracy"] = WeightedMean(jnp.sum(weights * score.is_top), total)
        return out

    layer = replace(run.model, decoder=one_layer(run.model))
    if c.sequential:  # two vectors are projected to one; the logits cost the same
        head = run.model.head and replace(run.model.head, tied=False)
        layer = replace(layer, embed=replace(layer.embed, width=2 * run.model.width), head=head)
    return Task(
        models={"model": run.model},
        init=init,
        loss=loss,
        scores=scores,
        passes=lambda lengths: [(run.model, lengths.predicted), *[(layer, lengths.predicted)] * c.heads],
        writer=lambda params, frozen: (model, params["model"]),
        beside=("future",),
    )


def ahead(example: Example, k: int) -> tuple[jax.Array, jax.Array]:
    """The targets k places further on, int32 [B, T], and their weights: 0 where the text has ended.

    segments   [1 1 1 2 2 0]
    targets    [5 6 7 8 9 0],   weights [1 1 1 1 1 0]
    k = 1      [6 7 8 9 0 5],   weights [1 1 0 1 0 0]
    """
    stream: Any = example.decoder
    if k == 0:
        return example.targets, example.weights
    moved = lambda x: jnp.roll(x, -k, axis=1)
    within = jnp.arange(stream.segments.shape[1]) < stream.segments.shape[1] - k
    same = (moved(stream.segments) == stream.segments) & within
    return moved(example.targets), jnp.where(same, moved(example.weights) * example.weights, 0.0)
