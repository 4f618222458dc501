"""A decoder that reads a caption and draws: it writes the codes of an image, of which the decoder of `recipe.codes`, a run with
recipe.kind=image_codes, makes pixels (DALL-E, arXiv 2102.12092, section 2).

The codes of all images are made once, before the first step. The run with the codes is in no checkpoint; the digest of its
files is in the config, and it must be there when the run goes on or draws. configs/decoder_draws.py has the commands.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from lm import config, saved
from lm.config import Sampling
from lm.data.corpus.prepare import Prepared
from lm.data.image_text import DrawnRows, Images
from lm.data.images import patches
from lm.data.png import base64_png
from lm.errors import UserError
from lm.evaluation.heldout import HeldOut
from lm.evaluation.image_text import spread
from lm.generation.painter import Painter
from lm.models.autoencoder import Autoencoder
from lm.models.positions import check_positions
from lm.models.transformer import Transformer
from lm.recipes import pretrain, start
from lm.recipes.image_data import SHOWN, OfImages, images_of
from lm.training.recipe import Parts
from lm.training.task import Task
from lm.types import vector_stream

BATCH = 32  # images that are encoded at a time


class Draws(OfImages):
    """Serves one run. `complete` opens the run with the codes; without it `rows` does."""

    coder: saved.Saved | None = None

    def complete(self, run: config.Run, workdir: epath.Path | None) -> config.Run:
        """Fills in the digest of the run with the codes, and takes its tokenizer."""
        c, digest = _recipe(run), self._open(run)
        if run.data.tokenizer.path is None:
            assert self.coder is not None
            self.tokenizer = self.coder.tokenizer()
        return replace(run, recipe=replace(c, codes_sha256=digest))

    def _open(self, run: config.Run) -> str:
        """Opens the run with the codes, and returns its digest."""
        c = _recipe(run)
        self.coder, digest = start.unchanged(c.codes, c.codes_sha256, name="recipe.codes", key="recipe.codes_sha256")
        if self.coder.run is None or not isinstance(self.coder.run.recipe, config.ImageCodes):
            raise UserError(f"recipe.codes={c.codes} makes no codes of images: give a run with recipe.kind=image_codes")
        return digest

    def check(self, run: config.Run, task: Task, mesh: Mesh) -> None:
        self.check_images(run, mesh)
        if run.model.architecture != "decoder" or run.model.head is None or run.model.head.outputs is not None:
            raise UserError(
                "recipe.kind=drawing writes codes: give a model with a decoder alone, and a head over the vocabulary"
            )
        cure = "lower recipe.text, or raise --config.model.{stack}.position.max_length"
        check_positions(run.model, None, self._length(run) - 1, cure=cure)

    def task(self, run: config.Run) -> Task:
        return pretrain.tokens(run)

    def rows(self, run: config.Run, data: Prepared) -> dict[str, DrawnRows]:
        if self.coder is None:
            self._open(run)
        first, autoencoder = data.tokenizer.vocab_size, self._autoencoder()
        needed = first + autoencoder.codebook.config.codes
        if run.model.vocab_size < needed:
            raise UserError(
                f"model.vocab_size={run.model.vocab_size} has no room for the tokenizer's {first} tokens and "
                f"{needed - first} codes: set --config.model.vocab_size={needed} or more"
            )
        params, text = self._pixels, _recipe(run).text
        out = {}
        for split, images in images_of(run, data, autoencoder.stem).items():
            training = split == "train"
            settings: dict[str, Any] = dict(first=first, text=text, seed=run.train.seed, shuffle=training)
            out[split] = DrawnRows(images, codes_of(autoencoder, params, images), data.tokenizer, **settings)
        return out

    def check_data(self, parts: Parts) -> None:
        for rows in parts.rows.values():
            for one in rows.images.described:
                rows.builder.ids(one.name)

    def evaluators(self, parts: Parts, frozen: Any) -> Sequence[Callable[[Any], dict[str, float]]]:
        if "holdout" not in parts.rows:
            return []
        most = parts.run.evaluate.rows
        held_out = HeldOut(parts.rows["holdout"], parts.scorer(frozen), parts.test_size, parts.mesh, most)
        return [lambda params: held_out(params)]  # without intervals, which are of documents

    def samples(self, parts: Parts, params: Any, frozen: Any) -> list[dict[str, Any]]:
        """Captions of held-out images, or of training images if there are none: the image, what is made of its codes, and what
        the model draws, as likely as it may be and at random."""
        run, log = parts.run, parts.run.log
        if log.sample_tokens < 1:
            return []
        rows: DrawnRows = parts.rows.get("holdout", parts.rows["train"])
        index = spread(len(rows.images), SHOWN)
        names = [rows.images.described[i].name for i in index]
        painter = self.painter(run, parts.data.tokenizer.vocab_size)
        how = Sampling(temperature=log.temperature, seed=run.train.seed)
        drawn = painter.draw(params, [rows.builder.ids(name) for name in names], how, samples=2)
        known = painter.images(rows.codes[index])
        shown = [[rows.images.pixels[n], known[i], *drawn[i]] for i, n in enumerate(index.tolist())]
        return [
            {"prompt": f"{name}: the image, its codes, two drawings", "text": "", "pictures": [base64_png(x) for x in pictures]}
            for name, pictures in zip(names, shown, strict=True)
        ]

    def painter(self, run: config.Run, first: int) -> Painter:
        """What draws with the run's model, whose token `first` is code 0."""
        return Painter(Transformer(run.model), self._autoencoder(), self._pixels, first, self._length(run))

    def _length(self, run: config.Run) -> int:
        """Tokens of a caption with its ends and of the codes after it, at most."""
        return _recipe(run).text + self._autoencoder().stem.length

    def _autoencoder(self) -> Autoencoder:
        assert self.coder is not None and self.coder.run is not None, "`complete` comes first"
        c: Any = self.coder.run.recipe
        return Autoencoder(self.coder.model, c)

    @cached_property
    def _pixels(self) -> Any:
        """The autoencoder's parameters, NumPy arrays: they are read on one device and on the run's mesh."""
        assert self.coder is not None
        return self.coder.params(self._autoencoder().abstract())


def codes_of(autoencoder: Autoencoder, params: Any, images: Images) -> np.ndarray:
    """int32 [N, T]: the codes of all images."""
    length, found = autoencoder.stem.length, []
    for first in range(0, len(images), BATCH):
        part = patches(np.asarray(images.pixels[first : first + BATCH]), images.size)
        padded = np.concatenate([part, np.zeros((BATCH - len(part), *part.shape[1:]), part.dtype)])
        found.append(np.asarray(_codes(autoencoder, params, vector_stream(padded, length)))[: len(part)])
    return np.concatenate(found)


@partial(jax.jit, static_argnums=0)
def _codes(autoencoder: Autoencoder, params: Any, stream: Any) -> jax.Array:
    return autoencoder.encode(params, stream).codes


def _recipe(run: config.Run) -> config.Drawing:
    assert isinstance(run.recipe, config.Drawing)
    return run.recipe
