"""Classes of pictures as a recipe (ViT, arXiv 2010.11929): an encoder of patches with a head over the classes of the data.

The vector of a picture is that of the class token, or the mean over its patches. The settings are in `lm.config.ImageClasses`;
configs/encoder_vit.py has the command.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax.numpy as jnp
from etils import epath
from jax.sharding import Mesh

from lm import config
from lm.data import image_rows
from lm.data.corpus.prepare import Prepared
from lm.data.image_rows import ImageRows
from lm.errors import UserError
from lm.evaluation.pictures import HeldOutPictures
from lm.losses.chunked import Apply
from lm.losses.cross_entropy import cross_entropy, scores
from lm.models.transformer import Transformer, head_params
from lm.recipes.image_data import OfPictures, check_pictures, rows_of, stem_of
from lm.training.recipe import Parts
from lm.training.task import Task


class ImageClasses(OfPictures):
    """Serves one run. `complete` must be called first: it reads the classes of the data."""

    why_left_out = "nothing: a picture is a row"
    prepared: Prepared | None = None

    def complete(self, run: config.Run, workdir: epath.Path | None) -> config.Run:
        """Fills in the classes and the head of the model."""
        self.prepared = super().data(run, progress=False)
        records: list[Any] = [r for name in run.data.sources for r in self.prepared.records(name, "train")]
        classes = tuple(sorted({record.label for record in records if getattr(record, "label", "")}))
        if len(classes) < 2:
            raise UserError(
                f"the pictures of the data have {len(classes)} classes, and two or more are told apart: give records a field "
                "'label'"
            )
        recipe = _recipe(run)
        if recipe.classes not in (None, classes):
            raise UserError(f"recipe.classes are {recipe.classes}, and those of the data are {classes}: leave them out")
        head = config.Head(tied=False, bias=True, outputs=len(classes))
        return replace(run, recipe=replace(recipe, classes=classes), model=replace(run.model, head=head))

    def check(self, run: config.Run, task: Task, mesh: Mesh) -> None:
        check_pictures(run, mesh)
        if _recipe(run).pool == "first" and not stem_of(run.model).class_token:
            raise UserError("pool=first is the vector of the class token, and the stem has none: set recipe.pool=mean")

    def data(self, run: config.Run, *, progress: bool) -> Prepared:
        return super().data(run, progress=progress) if self.prepared is None else self.prepared

    def task(self, run: config.Run) -> Task:
        return task(run)

    def rows(self, run: config.Run, data: Prepared) -> dict[str, ImageRows]:
        recipe = _recipe(run)
        numbers = {name: number for number, name in enumerate(recipe.classes or ())}
        return rows_of(run, data, partial(image_rows.labelled, classes=numbers), shift=recipe.shift)

    def evaluators(self, parts: Parts, frozen: Any) -> Sequence[Callable[[Any], dict[str, float]]]:
        if "holdout" not in parts.rows:
            return []
        rows, score, most = parts.rows, parts.scorer(frozen), parts.run.evaluate.rows
        return [HeldOutPictures(rows["holdout"], rows["train"], score, parts.test_size, parts.mesh, most)]


def task(run: config.Run) -> Task:
    model, recipe = Transformer(run.model), _recipe(run)
    apply = model.apply if recipe.pool == "first" else partial(pooled, model.apply)
    outputs = run.model.head.outputs if run.model.head else None
    settings: dict[str, Any] = dict(apply=apply, head_params=head_params, vocab_size=outputs)
    return Task(
        models={"model": run.model},
        init=lambda key, batch: model.init(key, batch)["params"],
        loss=lambda params, frozen, batch, rngs: (
            cross_entropy(params, example=batch, rngs=rngs, z_loss=run.train.z_loss, **settings),
            {},
        ),
        scores=lambda params, frozen, batch: scores(params, example=batch, **settings),
        passes=lambda lengths: [(run.model, 1)],
        writer=lambda params, frozen: (model, params),
        fresh=("head",) if run.train.init_from else (),
        nats=False,
    )


def pooled(apply: Apply, variables: Any, x: Any, *, method: str, **settings: Any) -> Any:
    """As `apply`, but hidden vectors are the mean of a picture's: [B, 1, D] (ViT, section D.3)."""
    if method != "hidden":
        return apply(variables, x, method=method, **settings)
    mask = (x.encoder.segments > 0)[..., None]
    mean = lambda h: jnp.sum(h * mask, axis=1, keepdims=True) / jnp.maximum(jnp.sum(mask, axis=1, keepdims=True), 1)
    result = apply(variables, replace(x, where=None), method=method, **settings)
    return (mean(result[0]), *result[1:]) if isinstance(result, tuple) else mean(result)


def _recipe(run: config.Run) -> config.ImageClasses:
    assert isinstance(run.recipe, config.ImageClasses)
    return run.recipe
