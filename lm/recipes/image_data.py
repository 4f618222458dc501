"""What recipes of images have in common: the images of a run's sources, as a stem reads them."""

from typing import Any

import numpy as np
from jax.sharding import Mesh

from lm import config
from lm.data.corpus.prepare import Prepared
from lm.data.corpus.store import shared
from lm.data.image_questions import Described, main_colour
from lm.data.image_rows import ImageRows, Make, splits
from lm.data.image_text import Images, PictureRows
from lm.errors import UserError
from lm.objectives import Lengths
from lm.recipes import start
from lm.training.recipe import Parts, Recipe

SHOWN = 8  # held-out images in the log and the report


class OfImages(Recipe):
    """The base class of recipes whose sources have records of format=captioned."""

    why_left_out = "images are read as a whole"

    def check_images(self, run: config.Run, mesh: Mesh) -> None:
        """UserError if the run's settings are not of images."""
        for name, source in run.data.sources.items():
            if source.format != "captioned":
                raise UserError(f"data.sources.{name}.format={source.format} has no images: set format=captioned")
            if source.weight != 1.0:
                raise UserError(f"data.sources.{name}.weight={source.weight:g}: all images are read alike; leave it out")
        if run.data.train_share < 1:
            raise UserError(f"data.train_share={run.data.train_share}: this recipe reads all images; leave it out")
        if mesh.shape["sequence"] > 1:
            raise UserError("mesh.sequence cuts rows of tokens, and an image is read as a whole: set --config.mesh.sequence=1")
        start.check_records(run)

    def row(self, rows: PictureRows) -> Any:
        return rows.blank()

    def facts(self, parts: Parts) -> dict[str, Any]:
        """The number of images in each split."""
        return {"images": {split: len(rows.images) for split, rows in parts.rows.items()}}


class OfPictures(Recipe):
    """The base class of recipes whose rows are `lm.data.image_rows.ImageRows`."""

    def row(self, rows: ImageRows) -> Any:
        return rows.blank

    def facts(self, parts: Parts) -> dict[str, Any]:
        """The pictures of each source in each split."""
        return {"pictures": {split: rows.sizes for split, rows in parts.rows.items()}}


def check_pictures(run: config.Run, mesh: Mesh) -> None:
    """UserError if the run's model does not read pictures, or its settings are of texts."""
    stem = run.model.encoder.stem if run.model.encoder else None
    if run.model.architecture != "encoder" or not isinstance(stem, config.Patches):
        raise UserError("this recipe's model reads pictures: give it an encoder alone, with a stem of kind 'patches'")
    if stem.channels != 3:
        raise UserError(f"model.encoder.stem.channels={stem.channels}, and pictures are read in 3 colours: set it to 3")
    if stem.length % (parts := mesh.shape["sequence"]):
        raise UserError(f"a picture's {stem.length} vectors do not divide over mesh.sequence={parts}: set it to 1")
    start.check_records(run)


def rows_of(run: config.Run, data: Prepared, make: Make, *, decoder: int | None = None, shift: int = 0) -> dict[str, ImageRows]:
    """Rows of pictures by split, with one prediction each."""
    stem = stem_of(run.model)
    lengths, found = Lengths(stem.length, decoder, 1), splits(data, run.data, stem)
    stores = {"train": shared(data.train, run.data.train_share), "holdout": data.holdout}
    of = lambda split: ImageRows(
        stores[split], found[split], run.data, stem, lengths, make, run.train.seed, split == "train", shift
    )
    return {split: of(split) for split, some in stores.items() if some}


def stem_of(model: config.Model) -> config.Patches:
    """The stem of a model's encoder. UserError if it does not read images."""
    stem = model.encoder.stem if model.encoder else None
    if not isinstance(stem, config.Patches):
        raise UserError("this recipe reads images: give the model an encoder with a stem of kind 'patches'")
    return stem


def images_of(run: config.Run, data: Prepared, stem: config.Patches) -> dict[str, Images]:
    """The images of all sources, in their order, by split: "train", and "holdout" if any are held out."""
    found = {}
    for split, sources in splits(data, run.data, stem).items():
        if sources:
            every = [pictures.pixels for pictures in sources.values()]
            pixels = every[0] if len(every) == 1 else np.concatenate(every)  # one lies in a file, and stays there
            records = [record for pictures in sources.values() for record in pictures.records]
            shown = zip(records, pixels, strict=True)
            described = [Described(one.text, one.label or "thing", main_colour(image)) for one, image in shown]
            found[split] = Images(pixels, stem.size, described)
    return found
