"""Pictures and captions in one space as a recipe (CLIP, arXiv 2103.00020): two models learn at once. Each picture is to find
its caption among those of the global batch, and each caption its picture.

Parameters are {"model", "text", "log_scale"}: the encoder of pictures, that of captions, and the logarithm of what cosines are
multiplied by. The heads of both models project to the common space. The loss is in `lm.losses.contrastive`, the settings in
`lm.config.TwoEncoders`; configs/clip_openmoji.py has the command.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from lm import config, sharding
from lm.data import image_rows
from lm.data.corpus.prepare import Prepared
from lm.data.image_rows import ImageRows
from lm.errors import UserError
from lm.evaluation.retrieval import Retrieval
from lm.losses import contrastive
from lm.models.positions import check_positions
from lm.models.transformer import Transformer, unboxed_shapes
from lm.objectives import Lengths
from lm.objectives.declaration import required_length
from lm.recipes.image_data import OfPictures, check_pictures, rows_of, stem_of
from lm.training.recipe import Parts
from lm.training.task import Task
from lm.types import Example, WeightedMean

TEXT, SCALE = "text", "log_scale"  # parameters beside "model"


class TwoEncoders(OfPictures):
    why_left_out = "captions that are longer than data.decoder_length, which keep their end"

    def check(self, run: config.Run, task: Task, mesh: Mesh) -> None:
        check_pictures(run, mesh)
        text, head = _recipe(run).text, run.model.head
        if head is None or text.head is None or head.outputs is None or head.outputs != text.head.outputs:
            raise UserError(
                "the heads of the model and of recipe.text project to one space: give both tied=False and the same outputs"
            )
        if run.train.microbatches > 1:
            raise UserError(
                f"train.microbatches={run.train.microbatches} would compare a picture with those of its own part alone, and "
                "the loss is over the batch: set it to 1, and save memory with model.encoder.remat=full"
            )
        length = required_length(run.data, "decoder_length")
        cure = "shorten data.decoder_length, or raise --config.recipe.text.{stack}.position.max_length"
        check_positions(text, None, length, cure=cure)

    def task(self, run: config.Run) -> Task:
        return task(run)

    def shapes(self, run: config.Run) -> tuple[Lengths, Any]:
        stem = stem_of(run.model)
        lengths = Lengths(stem.length, required_length(run.data, "decoder_length"), 1)
        return lengths, image_rows.blank_row(stem, lengths)

    def rows(self, run: config.Run, data: Prepared) -> dict[str, ImageRows]:
        length = required_length(run.data, "decoder_length")
        return rows_of(run, data, partial(image_rows.caption, length=length), decoder=length, shift=_recipe(run).shift)

    def check_data(self, parts: Parts) -> None:
        needed, text = parts.data.tokenizer.vocab_size, _recipe(parts.run).text
        if needed > text.vocab_size:
            raise UserError(
                f"recipe.text.vocab_size={text.vocab_size} is smaller than the tokenizer's {needed}; set "
                f"--config.recipe.text.vocab_size={needed} or more"
            )

    def evaluators(self, parts: Parts, frozen: Any) -> Sequence[Callable[[Any], dict[str, float]]]:
        if "holdout" not in parts.rows:
            return []
        pair = Pair(parts.run.model, _recipe(parts.run))
        encode = jax.jit(pair.vectors, out_shardings=sharding.replicated(parts.mesh))
        most = parts.run.evaluate.rows
        return [Retrieval(parts.rows["holdout"], encode, pair.scale, parts.test_size, parts.mesh, most)]


class Pair:
    """The two networks. Axes: B rows, E size of the common space."""

    def __init__(self, model: config.Model, c: config.TwoEncoders) -> None:
        self.config, self.image, self.text = c, Transformer(model), Transformer(c.text)

    def init(self, key: jax.Array, example: Example) -> dict[str, Any]:
        """Parameters with the names of their axes."""
        one, two = jax.random.split(key)
        first = nn.with_logical_partitioning(nn.initializers.constant(-math.log(self.config.temperature)), ())
        return {
            "model": self.image.init(one, of_picture(example))["params"],
            TEXT: self.text.init(two, of_caption(example))["params"],
            SCALE: first(key, (), jnp.float32),
        }

    def abstract(self, example: Example, device: jax.Device | None = None) -> dict[str, Any]:
        """The parameters' shapes and dtypes, as `lm.saved.Saved.params` takes them: to load arrays on a device, or without one
        NumPy arrays."""
        return unboxed_shapes(jax.eval_shape(self.init, jax.random.key(0), example), device)

    def vectors(self, params: Any, example: Example, rngs: Any = None) -> tuple[jax.Array, jax.Array]:
        """Vectors of the pictures and of the captions, float32 [B, E] each, of length 1."""
        keys = [None, None] if rngs is None else [{"dropout": key} for key in jax.random.split(rngs["dropout"])]
        sides = (self.image, params["model"], of_picture(example)), (self.text, params[TEXT], of_caption(example))
        of = lambda side, key: side[0].apply({"params": side[1]}, side[2], rngs=key)[:, 0]
        pictures, captions = (contrastive.unit(of(side, key)) for side, key in zip(sides, keys, strict=True))
        return pictures, captions

    def scale(self, params: Any) -> jax.Array:
        """What cosines are multiplied by, float32 []."""
        return jnp.minimum(jnp.exp(params[SCALE].astype(jnp.float32)), self.config.max_scale)


def of_picture(example: Example) -> Example:
    """What the encoder of pictures reads of pairs: its vector is the first one, that of the class token."""
    assert example.encoder is not None
    return Example(example.encoder, None, None, None, jnp.zeros((len(example.encoder.tokens), 1), jnp.int32))


def of_caption(example: Example) -> Example:
    """What the encoder of captions reads of pairs: its vector is that of the caption's last token."""
    return Example(None, example.decoder, None, None, example.where)


def task(run: config.Run) -> Task:
    c = _recipe(run)
    pair = Pair(run.model, c)

    def compared(params: Any, example: Example, rngs: Any = None) -> tuple[WeightedMean, dict[str, WeightedMean]]:
        a, b = pair.vectors(params, example, rngs)
        scale = pair.scale(params)
        mean, hits = contrastive.pairs(a, b, example.weights[:, 0], scale)
        named = {"image_to_text": hits["a_to_b"], "text_to_image": hits["b_to_a"]}
        return mean, named | {"scale": WeightedMean(scale, jnp.ones(()))}

    def scores(params: Any, frozen: Any, example: Example) -> dict[str, WeightedMean]:
        mean, named = compared(params, example)
        return {"loss": mean} | named

    return Task(
        models={"model": run.model, "recipe.text": c.text},
        init=pair.init,
        loss=lambda params, frozen, example, rngs: compared(params, example, rngs),
        scores=scores,
        passes=lambda lengths: [(run.model, 1), (c.text, 1)],
        writer=lambda params, frozen: (pair.image, params["model"]),
        beside=(TEXT, SCALE),
        nats=False,
    )


def _recipe(run: config.Run) -> config.TwoEncoders:
    assert isinstance(run.recipe, config.TwoEncoders)
    return run.recipe
