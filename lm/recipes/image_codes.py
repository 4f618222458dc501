"""An autoencoder of images whose patches become codes, as a task (VQ-VAE, arXiv 1711.00937): `lm.models.autoencoder` has the
networks, `lm.losses.vq` the losses, `lm.config.ImageCodes` the settings.

Axes: B batch, T patches, P pixels of a patch with their channels, K codes.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lm import config, distributed, sharding
from lm.data.corpus.prepare import Prepared
from lm.data.image_text import PictureRows
from lm.data.png import base64_png, sheet
from lm.errors import UserError
from lm.evaluation.image_text import HeldOutCodes, spread
from lm.losses import vq as losses
from lm.models.autoencoder import Autoencoder
from lm.models.stem import normalised
from lm.models.vq import Quantised
from lm.recipes.image_data import SHOWN, OfImages, images_of, stem_of
from lm.training.recipe import Parts
from lm.training.task import Task
from lm.types import Example, WeightedMean


class ImageCoding(OfImages):
    def check(self, run: config.Run, task: Task, mesh: Mesh) -> None:
        self.check_images(run, mesh)

    def task(self, run: config.Run) -> Task:
        return task(run)

    def rows(self, run: config.Run, data: Prepared) -> dict[str, PictureRows]:
        stem = stem_of(run.model)
        settings: dict[str, Any] = dict(length=stem.length, seed=run.train.seed, shift=_recipe(run).shift)
        made = lambda images, training: PictureRows(images, shuffle=training, **settings)
        return {split: made(images, split == "train") for split, images in images_of(run, data, stem).items()}

    def evaluators(self, parts: Parts, frozen: Any) -> Sequence[Callable[[Any], dict[str, float]]]:
        if "holdout" not in parts.rows:
            return []
        most = parts.run.evaluate.rows
        return [HeldOutCodes(parts.rows["holdout"], parts.scorer(frozen), parts.test_size, parts.mesh, most)]

    def samples(self, parts: Parts, params: Any, frozen: Any) -> list[dict[str, Any]]:
        """Held-out images, and below them what the decoder makes of their codes."""
        if "holdout" not in parts.rows or parts.run.log.sample_tokens < 1:
            return []
        rows, both = parts.rows["holdout"], Autoencoder(parts.run.model, _recipe(parts.run))
        size = parts.test_size
        index = spread(rows.count, min(SHOWN, size))
        index = np.append(index, np.full(size - len(index), rows.count))
        batch = sharding.global_batch(rows.rows, index, parts.mesh)
        shown = distributed.fetched(_there_and_back(both, params, batch))[:, : min(SHOWN, size)]
        pictures = sheet(np.concatenate(shown), shown.shape[1])
        what = f"{shown.shape[1]} held-out images, and below them what is made of their codes"
        return [{"prompt": what, "text": "", "pictures": [base64_png(pictures)]}]


@partial(jax.jit, static_argnums=0)
def _there_and_back(both: Autoencoder, params: Any, batch: Example) -> jax.Array:
    """uint8 [2, B, height, width, channels]: images, and those made of their codes."""
    stream: Any = batch.encoder
    images = both.pixels(normalised(stream.vectors, both.stem))
    return jnp.stack([images, both.images(params, both.encode(params, stream).codes)])


def _recipe(run: config.Run) -> config.ImageCodes:
    assert isinstance(run.recipe, config.ImageCodes)
    return run.recipe


def task(run: config.Run) -> Task:
    c = _recipe(run)
    _check(run.model, c)
    both = Autoencoder(run.model, c)
    weights: dict[str, Any] = dict(beta=c.commitment, even=c.even, temperature=c.temperature)

    def made(params: Any, batch: Example, rngs: Any) -> tuple[jax.Array, jax.Array, Quantised]:
        stream: Any = batch.encoder
        quantised = both.encode(params, stream, rngs)
        return normalised(stream.vectors, both.stem), both.decode(params, quantised.vectors, stream, rngs), quantised

    def loss(params: Any, frozen: Any, batch: Example, rngs: Any) -> tuple[WeightedMean, dict[str, WeightedMean]]:
        pixels, out, quantised = made(params, batch, rngs)
        total, terms = losses.autoencoder(pixels, out, quantised, batch.weights, **weights)
        used = losses.counts(quantised.codes, batch.weights, c.codebook.codes)
        return total, terms | {"code_perplexity": WeightedMean(losses.perplexity(used), jnp.float32(1.0))}

    def scores(params: Any, frozen: Any, batch: Example) -> dict[str, Any]:
        pixels, out, quantised = made(params, batch, None)
        total, terms = losses.autoencoder(pixels, out, quantised, batch.weights, **weights)
        scale = jnp.asarray(np.resize(both.stem.std, out.shape[-1]), jnp.float32)  # to pixels of 0 .. 1
        squared = losses.squared_error(scale * pixels, scale * out)
        mse = WeightedMean(jnp.sum(batch.weights * squared), jnp.sum(batch.weights))
        return {"loss": total, "mse": mse, **terms, "codes": losses.counts(quantised.codes, batch.weights, c.codebook.codes)}

    # The distances to all codes: the product of a head with K outputs. Only evenness has a gradient through them.
    size, head = c.codebook.size, config.Head(tied=False, outputs=c.codebook.codes)
    distances = config.Model(run.model.vocab_size, size, head=head, dtype=run.model.dtype)
    networks: list[tuple[config.Model, int | None]] = [(run.model, None), (c.decoder, None)]
    return Task(
        models={"model": run.model, "recipe.decoder": c.decoder},
        init=both.init,
        loss=loss,
        scores=scores,
        passes=lambda lengths: [*networks, (distances, lengths.encoder)] if c.even else networks,
        reads=lambda lengths: [] if c.even else [(distances, lengths.encoder)],
        writer=lambda params, frozen: (both.encoder, params["model"]),
        nats=False,
    )


def _check(model: config.Model, c: config.ImageCodes) -> None:
    """UserError unless encoder and decoder have a vector for each patch, of the sizes that the other expects."""
    stem = model.encoder.stem if model.encoder else None
    if model.architecture != "encoder" or not isinstance(stem, config.Patches) or stem.class_token:
        raise UserError(
            "recipe.kind=image_codes makes a code of each patch: give a model with an encoder alone, whose stem is of kind "
            "'patches' with class_token=False"
        )
    other: Any = c.decoder.encoder
    if other.stem.length != stem.length:
        raise UserError(
            f"the encoder makes {stem.length} codes of an image, and recipe.decoder reads {other.stem.length}: set "
            f"--config.recipe.decoder.encoder.stem.image={stem.image // stem.size}"
        )
    for name, head, size in (("model", model.head, c.codebook.size), ("recipe.decoder", c.decoder.head, stem.inputs[1])):
        if head is None or head.outputs != size:
            flags = f"--config.{name}.head.outputs={size} --config.{name}.head.tied=False"
            raise UserError(f"{name} must give {size} numbers for each patch: set {flags}")
