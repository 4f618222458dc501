"""A model whose encoder reads images and whose decoder writes about them: captions, and answers to questions. How the decoder
reads the encoder is `model.join`: by cross-attention, or as vectors before its tokens (LLaVA, arXiv 2304.08485, section 4.1).

configs/encdec_captioner.py has the commands.
"""

from collections.abc import Callable, Sequence
from typing import Any

from jax.sharding import Mesh

from lm import config
from lm.data.corpus.prepare import Prepared
from lm.data.image_text import ImageTextRows
from lm.data.png import base64_png
from lm.errors import UserError
from lm.evaluation.image_text import HeldOutImageText, spread, write
from lm.models.positions import check_positions
from lm.models.transformer import Transformer
from lm.recipes import pretrain
from lm.recipes.image_data import SHOWN, OfImages, images_of, stem_of
from lm.training.recipe import Parts
from lm.training.task import Task

EPOCH = 4  # training rows of so many epochs tell which answers are common


class ImageWriting(OfImages):
    def check(self, run: config.Run, task: Task, mesh: Mesh) -> None:
        self.check_images(run, mesh)
        stem = stem_of(run.model)
        if run.model.decoder is None or run.model.head is None or run.model.head.outputs is not None:
            raise UserError("recipe.kind=image_text writes texts: give the model a decoder, and a head over the vocabulary")
        cure = "lower recipe.text, or raise --config.model.{stack}.position.max_length"
        check_positions(run.model, stem.length, _recipe(run).text, cure=cure)

    def task(self, run: config.Run) -> Task:
        return pretrain.tokens(run)

    def rows(self, run: config.Run, data: Prepared) -> dict[str, ImageTextRows]:
        c, stem = _recipe(run), stem_of(run.model)
        settings: dict[str, Any] = dict(kinds=c.writes, length=stem.length, text=c.text, blind=c.blind, shift=c.shift)
        made = lambda images, training: ImageTextRows(
            images, data.tokenizer, seed=run.train.seed if training else 0, shuffle=training, **settings
        )
        return {split: made(images, split == "train") for split, images in images_of(run, data, stem).items()}

    def check_data(self, parts: Parts) -> None:
        for rows in parts.rows.values():  # all captions, and the questions of an epoch
            for i in range(rows.count):
                rows.rendered(rows.asked(i))

    def evaluators(self, parts: Parts, frozen: Any) -> Sequence[Callable[[Any], dict[str, float]]]:
        return [held_out(parts)] if "holdout" in parts.rows else []

    def samples(self, parts: Parts, params: Any, frozen: Any) -> list[dict[str, Any]]:
        """Held-out images with what the model writes about them."""
        if "holdout" not in parts.rows or parts.run.log.sample_tokens < 1:
            return []
        rows: ImageTextRows = parts.rows["holdout"]
        index = spread(rows.count, SHOWN).tolist()
        texts = write(Transformer(parts.run.model), params, rows, index, slots=len(index))
        return [_sample(rows, i, text) for i, text in zip(index, texts, strict=True)]


def held_out(parts: Parts) -> HeldOutImageText:
    """The test of held-out images."""
    train: ImageTextRows = parts.rows["train"]
    trained = [train.asked(i) for i in range(EPOCH * train.count)]
    network, score, most = Transformer(parts.run.model), parts.scorer(None), parts.run.evaluate.rows
    return HeldOutImageText(network, parts.rows["holdout"], trained, score, parts.test_size, parts.mesh, most)


def _sample(rows: ImageTextRows, number: int, text: str) -> dict[str, Any]:
    pair, pixels = rows.asked(number), rows.images.pixels[rows.picture(number)]
    return {"prompt": f"{pair.question} ({pair.answer})".strip(), "text": text, "pictures": [base64_png(pixels)]}


def _recipe(run: config.Run) -> config.ImageText:
    assert isinstance(run.recipe, config.ImageText)
    return run.recipe
