"""How pixels are scaled before a model of images reads them: preprocessor_config.json of Hugging Face, and our stem."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from lm import config, untrusted
from lm.errors import UserError

FILE = "preprocessor_config.json"
BICUBIC = 3  # of Pillow


def read(model: config.Model, folder: Path) -> config.Model:
    """The model with the means and deviations of the folder's file, if it reads images and there is one."""
    stem = model.encoder.stem if model.encoder else None
    if not isinstance(stem, config.Patches) or not untrusted.has(folder, FILE):
        return model
    found = untrusted.read_json(folder, FILE)
    if not found.get("do_normalize", True):
        raise UserError(f"{folder / FILE}: do_normalize=false is not implemented, only (pixel - mean) / std")
    given = {name: found.get(f"image_{name}") for name in ("mean", "std")}
    for name, values in given.items():
        fine = isinstance(values, list) and all(type(v) in (int, float) for v in values)
        if values is not None and not fine:
            raise UserError(f"{folder / FILE}: image_{name}={values!r} must be a list of numbers")
    stem = replace(stem, **{name: tuple(map(float, values)) for name, values in given.items() if values is not None})
    assert model.encoder
    return replace(model, encoder=replace(model.encoder, stem=stem))


def settings(stem: config.Patches, kind: str) -> dict[str, Any]:
    """What the file holds for this stem; `kind` is the class that reads it, such as "ViTImageProcessor"."""
    every = lambda values: list(values * stem.channels if len(values) == 1 else values)
    return {
        "image_processor_type": kind,
        "do_resize": True,
        "size": {"height": stem.image, "width": stem.image},
        "resample": BICUBIC,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": every(stem.mean),
        "image_std": every(stem.std),
    }
