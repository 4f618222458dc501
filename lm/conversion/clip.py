"""CLIP (arXiv 2103.00020), from and to Hugging Face's CLIPModel: two models and the scale of their cosines.

Each encoder is converted as a family of its own (`lm.conversion.families.vit`); here is what holds the two together.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util

from lm import atomic, config, untrusted
from lm.conversion import files, pixels
from lm.conversion.families import FAMILIES
from lm.conversion.reader import imported
from lm.conversion.tables import Tensor, tensors
from lm.conversion.writer import describe
from lm.errors import UserError

MODEL_TYPE = "clip"
SIDES = {"vision": ("vision_model.", "visual_projection."), "text": ("text_model.", "text_projection.")}  # names of tensors
FAMILY_OF = {"image": "clip_vision_model", "text": "clip_text_model"}
SCALE = "logit_scale"


@dataclass(frozen=True)
class Clip:
    """`params` are those of a run of recipe two_encoders: {"model", "text", "log_scale"}."""

    image: config.Model
    text: config.Model
    params: dict[str, Any]


def is_one(source: Path) -> bool:
    """Whether the folder holds a CLIPModel, as far as its config.json says."""
    if not source.is_dir() or not untrusted.has(source, "config.json"):
        return False
    settings = untrusted.read_json(source, "config.json")
    return isinstance(settings, dict) and settings.get("model_type") == MODEL_TYPE


def read(source: Path, *, dtype: str | None = None, scan: bool | None = None) -> Clip:
    """Reads the checkpoint in a folder, config.json and safetensors. UserError if it is no complete CLIPModel."""
    settings = untrusted.read_json(source, "config.json")
    if settings.get("model_type") != MODEL_TYPE:
        raise UserError(f"{source}/config.json has model_type={settings.get('model_type')!r}, not {MODEL_TYPE!r}")
    stored = files.keys(files.weight_files(source))
    if SCALE not in stored:
        raise UserError(f"{source} has no tensor {SCALE}: give the folder of a complete CLIPModel")
    sides = {}
    for side, prefixes in SIDES.items():
        own = settings.get(f"{side}_config") or {}
        own = {k: v for k, v in own.items() if k != "architectures"}
        about = own | {"model_type": f"clip_{side}_model", "projection_dim": settings.get("projection_dim", 512)}
        sides[side] = imported(about, {k: v for k, v in stored.items() if k.startswith(prefixes)}, dtype=dtype, scan=scan)
    with files.opened(stored[SCALE].file) as file:
        scale = np.asarray(file.get_tensor(SCALE), np.float32).reshape(())
    image, text = sides["vision"], sides["text"]
    return Clip(pixels.read(image.model, source), text.model, {"model": image.params, "text": text.params, "log_scale": scale})


def write(clip: Clip, target: Path, *, shard_bytes: int = 5 * 10**9) -> None:
    """Writes config.json, preprocessor_config.json and safetensors files. UserError if CLIPModel cannot express the models."""
    found: dict[str, Tensor] = {}
    leaves = dict[str, np.ndarray]()
    own = dict[str, Any]()
    for side, model, part in (("vision", clip.image, "model"), ("text", clip.text, "text")):
        family, settings = describe(model, f"clip_{side}_model")
        own[side] = settings | {"model_type": family}
        flat = traverse_util.flatten_dict(clip.params[part], sep="/")
        leaves |= {f"{side}/{path}": np.asarray(leaf) for path, leaf in flat.items()}
        for key, tensor in tensors(FAMILIES[family], model, {path: leaf.shape for path, leaf in flat.items()}).items():
            parts = tuple(replace(p, path=f"{side}/{p.path}") for p in tensor.parts)
            found[key] = replace(tensor, parts=parts)
    dtype = next(iter(leaves.values())).dtype
    scale = np.asarray(clip.params["log_scale"], np.float32).astype(dtype)
    shapes = {key: tensor.shape for key, tensor in found.items()} | {SCALE: ()}
    get = lambda key: scale if key == SCALE else files.cast(key, found[key].join(leaves), dtype)
    target.mkdir(parents=True, exist_ok=True)
    files.check_free_space(target, sum(math.prod(shape) for shape in shapes.values()) * dtype.itemsize)
    files.write(target, shapes, dtype, get, shard_bytes)
    heading = {"model_type": MODEL_TYPE, "architectures": ["CLIPModel"], "torch_dtype": dtype.name}
    outputs = own["vision"]["projection_dim"]
    settings = {"projection_dim": outputs, "logit_scale_init_value": float(scale)}
    atomic.write_json(target / "config.json", {f"{s}_config": about for s, about in own.items()} | settings | heading)
    stem = clip.image.encoder.stem if clip.image.encoder else None
    assert isinstance(stem, config.Patches)
    atomic.write_json(target / pixels.FILE, pixels.settings(stem, "CLIPImageProcessor"))
