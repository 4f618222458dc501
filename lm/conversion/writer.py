"""Writes a model and its parameters as a Hugging Face checkpoint: config.json and safetensors."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util

from lm import atomic, config
from lm.conversion import files
from lm.conversion.families import FAMILIES, check_family
from lm.conversion.tables import canonical, differences, param_shapes, read_model, tensors
from lm.errors import UserError


def describe(model: config.Model, family: str | None = None) -> tuple[str, dict[str, Any]]:
    """Returns the model_type that can express this model, and its config.json.

    A family can if its config.json, read back, gives the same model (`canonical`). `family`: consider this one alone.
    """
    tried: dict[str, list[str]] = {}
    wanted, shapes = canonical(model), param_shapes(model)
    if family:
        check_family(family, "model_type")
    for name in [family] if family else FAMILIES:
        try:
            settings = FAMILIES[name].write(model) | {"architectures": [FAMILIES[name].architecture(model)]}
            if model.head and model.head.outputs is not None:
                settings["num_labels"] = model.head.outputs
            keys = tensors(FAMILIES[name], model, shapes).keys()
            tried[name] = differences(wanted, canonical(read_model(FAMILIES[name], settings, keys)))
        except (AssertionError, AttributeError, KeyError, TypeError, UserError) as error:
            tried[name] = [str(error) or "another kind of model"]
        if not tried[name]:
            return name, settings
    closest = min(tried, key=lambda n: len(tried[n]) + 100 * ("another kind" in tried[n][0]))
    why = "; ".join(tried[closest][:3])
    if family:
        raise UserError(f"model_type {family} cannot express this model: {why}")
    raise UserError(f"no Hugging Face family can express this model; the nearest is {closest}, but {why}")


def write(
    model: config.Model,
    params: dict[str, Any],
    target: Path,
    *,
    family: str | None = None,
    also: Mapping[str, Any] | None = None,
    shard_bytes: int = 5 * 10**9,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> str:
    """Writes config.json and safetensors files, in the dtype of `params`, and returns the model_type.

    family: the model_type to write; None: the first that can express the model.
    also: further entries of config.json; `architectures` counts only if it names the model's other kind of classifier.
    shard_bytes: largest size of a safetensors file.
    progress: called with (bytes done, bytes in total).
    """
    name, settings = describe(model, family)
    also = dict(also or {})
    leaves = traverse_util.flatten_dict(params, sep="/")
    expected = tensors(FAMILIES[name], model, {path: leaf.shape for path, leaf in leaves.items()})
    if _is_other_classifier(settings["architectures"], architectures := also.pop("architectures", None)):
        other = settings | {"architectures": architectures}
        same = not differences(canonical(model), canonical(read_model(FAMILIES[name], other, expected)))
        settings = other if same else settings
    zeros = FAMILIES[name].zeros(model)
    dtype = next(iter(leaves.values())).dtype
    shapes = {key: t.shape for key, t in expected.items()} | zeros
    total, done = sum(math.prod(shape) for shape in shapes.values()) * dtype.itemsize, 0

    def get(key: str) -> np.ndarray:
        nonlocal done
        tensor = np.zeros(zeros[key], dtype) if key in zeros else files.cast(key, expected[key].join(leaves), dtype)
        done += tensor.nbytes
        progress(done, total)
        return tensor

    target.mkdir(parents=True, exist_ok=True)
    files.check_free_space(target, total)
    files.write(target, shapes, dtype, get, shard_bytes)
    heading = {"model_type": name, "torch_dtype": dtype.name}
    atomic.write_json(target / "config.json", {**also, **settings, **heading})
    return name


def _is_other_classifier(ours: list[str], theirs: Any) -> bool:
    """Whether one names a token classifier and the other a text classifier. ModernBERT's heads of the two are alike, so our
    model does not tell which it was."""
    kinds = "ForSequenceClassification", "ForTokenClassification"
    return any(
        ours[0].endswith(kind) and theirs == [ours[0].removesuffix(kind) + other] for kind, other in (kinds, kinds[::-1])
    )
