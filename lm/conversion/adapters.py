"""Adapters that leave their run: merged into a model, and as the files of Hugging Face's peft, read and written.

    merge(run, new)                 -> a folder like that of a converted model
    from_peft(folder, new, base=b)  -> the same, of the model b with the adapter in it
    to_peft(run, new)               -> adapter_config.json, adapter_model.safetensors

peft names A `<module>.lora_A.weight` [r, inputs] and B `<module>.lora_B.weight` [outputs, r], of an embedding
`lora_embedding_A` [r, tokens] and `lora_embedding_B` [width, r], and the norms of DoRA `lora_magnitude_vector` [outputs];
`base_model.model.` comes first. Modules are those of the family's table (`lm.conversion.tables`). Where one matrix of theirs
holds several of ours, as GPT-2's c_attn does, A has the rows of all of them, B a block for each, and the rank is their sum.

An embedding that is also the head's matrix has one adapter here. In peft it has one with `ensure_weight_tying`, and otherwise
only what the input reads is changed, which no single matrix is.
"""

import re
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from lm import atomic, config, paths, saved, untrusted
from lm.conversion import files, folders
from lm.conversion.families import FAMILIES, check_family
from lm.conversion.merge import write
from lm.conversion.tables import Tensor, param_shapes, tensors
from lm.conversion.writer import describe
from lm.errors import UserError

CONFIG, WEIGHTS, PREFIX = "adapter_config.json", "adapter_model.safetensors", "base_model.model."
TABLE = "embed/tokens/embedding"
ADAPTER = re.compile(r"(.+)\.(lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)(?:\.weight)?")
# Settings of peft that may change what an adapter computes, with the values that do not. Any that are not named must be empty.
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal"),  # others begin by changing the base
}
READ = {"r", "lora_alpha", "use_rslora", "use_dora", "alpha_pattern", "ensure_weight_tying"}
SILENT = {  # of training, of provenance, or told by the tensors themselves
    *("base_model_name_or_path", "revision", "task_type", "inference_mode", "auto_mapping", "peft_version", "lora_dropout"),
    *("target_modules", "exclude_modules", "modules_to_save", "layers_to_transform", "layers_pattern", "rank_pattern"),
    *("fan_in_fan_out", "megatron_core", "qalora_group_size", "loftq_config", "eva_config"),
    *("runtime_config", "corda_config", "lora_ga_config"),
}


def merge(given: str, target: str, *, base: str | None = None) -> str:
    """Writes a run with adapters as one model to a new folder. `base`: the model under them, if it has moved. Returns a
    one-line summary."""
    start, new = time.perf_counter(), paths.local(target, name="the target")
    source = saved.open(given, name="SRC", base=base)
    if source.run is None or source.run.adapter is None:
        raise UserError(f"{given} has no adapters: it is one model as it is")
    return write(new, source, source.params, f"adapters of {source.folder} in their base", start)


def from_peft(given: str, target: str, *, base: str, family: str | None = None) -> str:
    """Writes the model `base`, a run or a converted model, with the peft adapter in the folder `given` to a new folder. Returns
    a one-line summary. UserError for an adapter of another kind or model."""
    start, new, source = time.perf_counter(), paths.local(target, name="the target"), saved.open(base, name="--base")
    make = lambda: with_adapter(source.model, source.params(), Path(given).expanduser(), _family(source, family))
    return write(new, source, make, f"{given} in {base}", start)


def to_peft(given: str, target: str, *, family: str | None = None, base: str | None = None) -> str:
    """Writes the adapters of a run for peft. Returns a one-line summary."""
    start, new = time.perf_counter(), paths.local(target, name="the target")
    source = saved.open(given, name="SRC", base=base)
    if source.run is None or source.run.adapter is None:
        raise UserError(f"{given} has no adapters: write it as a model, with to_hf")
    own, whole = source.adapters()
    below, lora = source.base(), source.run.adapter
    settings, arrays = described(source.model, lora, own, whole, source.params(), _family(below, family))
    with atomic.new_folder(new) as folder:
        shapes = {name: x.shape for name, x in arrays.items()}
        files.write(folder, shapes, np.dtype(np.float32), arrays.__getitem__, 10**15)
        (folder / files.SINGLE).rename(folder / WEIGHTS)
        atomic.write_json(folder / CONFIG, settings | {"base_model_name_or_path": str(below.folder)})
    return folders.summary(arrays, f"adapter of rank {lora.rank}", [], new, start)


def _family(source: saved.Saved, family: str | None) -> str:
    """The model_type of a saved model: as given, as its config.json says, or the first that can express it."""
    while source.run is not None and source.run.adapter is not None:
        source = source.base()
    settings = source.carried("config.json")
    family = family or (untrusted.parse_json(settings, "config.json").get("model_type") if settings else None)
    if family is not None:
        check_family(family, "--family")
    return family or describe(source.model)[0]


def with_adapter(model: config.Model, params: Mapping[str, Any], source: Path, family: str) -> dict[str, Any]:
    """A model's parameters (NumPy arrays) with a peft adapter in them. Sums are in float64, and rounded once."""
    settings = untrusted.read_json(source, CONFIG)
    _check_settings(settings)
    with files.opened(untrusted.inside(source, WEIGHTS)) as file:
        arrays = {
            key.removeprefix(PREFIX).replace(".base_layer.", "."): np.asarray(file.get_tensor(key), np.float64)
            for key in file.keys()
        }
    leaves = {path: np.array(x) for path, x in flatten_dict(params, sep="/").items()}
    expected = _by_name(family, model, {path: x.shape for path, x in leaves.items()})
    adapters: dict[str, dict[str, np.ndarray]] = {}
    for name, x in arrays.items():
        found = ADAPTER.fullmatch(name)
        adapters.setdefault(f"{found[1]}.weight" if found else name, {})[found[2] if found else "whole"] = x
    is_table = lambda key: _ties(model) and key in expected and expected[key].parts[0].path == TABLE
    tables = [parts for key, parts in adapters.items() if is_table(key)]
    if tables and settings.get("ensure_weight_tying"):
        adapters = {key: parts for key, parts in adapters.items() if key in expected or not _repeats(parts, tables[0])}
    if unknown := [key for key in adapters if key not in expected]:
        raise UserError(f"{source / WEIGHTS} has {unknown[0]}, and the base has no such matrix: give the base that it is of")
    if tables and not settings.get("ensure_weight_tying"):
        raise UserError(
            f"{CONFIG}: the base's embedding is also its head's matrix, and without ensure_weight_tying the adapter is of the "
            "input alone, which no single matrix is: train it with that setting of peft, or on a base with a head of its own"
        )
    for key, parts in adapters.items():
        tensor, name = expected[key], key.removesuffix(".weight")
        theirs = parts.pop("whole", np.asarray(tensor.join(leaves), np.float64))
        if theirs.shape != tensor.shape:
            raise UserError(f"{source / WEIGHTS}: {name} is {list(theirs.shape)}, and in the base {list(tensor.shape)}")
        if parts:
            turned = np.transpose if tensor.layout.conv1d else np.asarray
            theirs = turned(_merged(turned(theirs), parts, name, settings))
        tensor.split(theirs, leaves)
    return unflatten_dict(leaves, sep="/")


def _ties(model: config.Model) -> bool:
    """Whether the embedding is also the head's matrix."""
    return model.head is not None and model.head.tied


def _head(model: config.Model, family: str) -> str:
    """The family's name of the head's module, which a model with the embedding as its head has no tensor of."""
    assert model.head is not None
    untied = replace(model, head=replace(model.head, tied=False, bias=False))
    try:
        named = tensors(FAMILIES[family], untied, param_shapes(untied)).items()
    except UserError as error:
        raise UserError(
            f"the embedding's adapter is also the head's, which {family} has no module for ({error}): use merge"
        ) from None
    return next(key for key, tensor in named if tensor.parts[0].path == "head/out/kernel").rpartition(".")[0]


def _repeats(parts: Mapping[str, np.ndarray], table: Mapping[str, np.ndarray]) -> bool:
    """Whether the adapter of a head is that of the embedding, as peft writes those that it ties."""
    pairs = (("lora_A", "lora_embedding_B"), ("lora_B", "lora_embedding_A"))
    lora = all(a in parts and b in table and np.array_equal(parts[a], table[b].T) for a, b in pairs)
    whole = "whole" in parts and "whole" in table and np.array_equal(parts["whole"], table["whole"])
    return lora or whole and parts.keys() == {"whole"}


def _merged(rows: np.ndarray, parts: Mapping[str, np.ndarray], name: str, settings: Mapping[str, Any]) -> np.ndarray:
    """A matrix of theirs, [outputs, inputs] or a table [tokens, width], with its adapter."""
    table = "lora_embedding_A" in parts
    a, b = (parts.get(f"lora_{'embedding_' * table}{side}") for side in "AB")
    if a is None or b is None or (table and "lora_magnitude_vector" in parts):
        raise UserError(f"{WEIGHTS}: {name} has no pair of lora_A and lora_B, or is an embedding with DoRA, which is not read")
    inputs, outputs = rows.shape if table else rows.shape[::-1]
    if a.shape[1:] != (inputs,) or b.shape != (outputs, len(a)):
        raise UserError(f"{WEIGHTS}: {name} is {list(b.shape)} times {list(a.shape)}, and its matrix {list(rows.shape)}")
    alphas = settings.get("alpha_pattern") or {}
    pattern = next((p for p in alphas if re.match(rf"(.*\.)?({p})$", name)), None)
    alpha, rank = settings["lora_alpha"] if pattern is None else alphas[pattern], len(a)
    delta = alpha / (rank**0.5 if settings.get("use_rslora") else rank) * (b @ a)
    changed = rows + (delta.T if table else delta)
    if settings.get("use_dora") and not table:
        if "lora_magnitude_vector" not in parts:
            raise UserError(f"{WEIGHTS}: {name} has no lora_magnitude_vector, and {CONFIG} says use_dora")
        changed *= (parts["lora_magnitude_vector"] / np.linalg.norm(changed, axis=1))[:, None]
    return changed


def _check_settings(settings: Mapping[str, Any]) -> None:
    """UserError for settings of peft that compute something else."""
    for name, value in settings.items():
        if name in NEUTRAL and value not in NEUTRAL[name] or name not in READ | SILENT | NEUTRAL.keys() and value:
            raise UserError(f"{CONFIG}: {name}={value!r} is not read; merge the adapter with peft, and convert the result")
    if not isinstance(settings.get("lora_alpha"), int | float):
        raise UserError(f"{CONFIG} has no lora_alpha: it is not one of a LoRA adapter")


def _by_name(family: str, model: config.Model, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """The family's tensors by name, with and without the prefix of a model with a head."""
    found, prefix = tensors(FAMILIES[family], model, shapes), FAMILIES[family].prefix
    return {key.removeprefix(prefix): t for key, t in found.items()} | {prefix + key: t for key, t in found.items()} | found


def described(
    model: config.Model, lora: config.Lora, own: Mapping[str, Any], whole: Mapping[str, Any], params: Any, family: str
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """adapter_config.json and the tensors of adapters: `own` by path, what was trained in full, and all merged parameters."""
    sides = flatten_dict(own, sep="/")
    leaves = {path: np.asarray(x, np.float32) for path, x in flatten_dict(params, sep="/").items()}
    settings: dict[str, Any] = {"peft_type": "LORA", "r": lora.rank, "lora_alpha": lora.alpha, "bias": "none"}
    settings |= {"use_rslora": lora.scale != "alpha/rank", "use_dora": lora.dora, "inference_mode": True}
    settings |= {"task_type": _task_type(model), "lora_dropout": lora.dropout, "rank_pattern": {}, "alpha_pattern": {}}
    arrays, targets, full, transposed = dict[str, np.ndarray](), [], set[str](), set[bool]()
    for key, tensor in tensors(FAMILIES[family], model, param_shapes(model)).items():
        module = key.rpartition(".")[0]
        if tensor.parts[0].path.split("/")[0] in whole:
            if tensor.parts[0].path == TABLE and _ties(model):
                raise UserError(
                    "the embedding is also the head's matrix and was trained in full, which peft would read as two: write the "
                    "run as one model, with merge and to_hf"
                )
            arrays[PREFIX + key] = tensor.join(leaves)
            full.add(module)
        elif any(f"{part.path}/a" in sides for part in tensor.parts):
            rank = _write(arrays, tensor, sides, leaves, lora, PREFIX + module)
            targets.append(module)
            transposed.add(tensor.layout.conv1d)
            if rank != lora.rank:
                settings["rank_pattern"][module] = rank
                settings["alpha_pattern"][module] = lora.factor * (rank if lora.scale == "alpha/rank" else rank**0.5)
            if tensor.parts[0].path == TABLE and _ties(model):
                settings["ensure_weight_tying"] = True
                head, table = f"{PREFIX}{_head(model, family)}", f"{PREFIX}{module}.lora_embedding"
                arrays |= {f"{head}.lora_A.weight": arrays[f"{table}_B"].T, f"{head}.lora_B.weight": arrays[f"{table}_A"].T}
    settings |= {"target_modules": targets, "modules_to_save": sorted(full) or None, "fan_in_fan_out": transposed == {True}}
    return settings, {name: np.ascontiguousarray(x, np.float32) for name, x in arrays.items()}


def _write(
    arrays: dict[str, np.ndarray],
    tensor: Tensor,
    sides: Mapping[str, np.ndarray],
    leaves: Mapping[str, np.ndarray],
    lora: config.Lora,
    name: str,
) -> int:
    """Adds the adapter of a tensor of theirs to `arrays`, and returns its rank."""
    with_adapter = [part for part in tensor.parts if f"{part.path}/a" in sides]
    rank, r = lora.rank * len(with_adapter), lora.rank
    a_rows = [sides[f"{part.path}/a"][part.index].reshape(-1, r).T for part in with_adapter]
    b_rows = []
    for part in tensor.parts:
        outputs = part.rows_shape()[1 if part.kind == "embedding" else 0]
        block = np.zeros((outputs, rank), np.float32)
        if part in with_adapter:
            i = with_adapter.index(part)
            block[:, i * r : (i + 1) * r] = sides[f"{part.path}/b"][part.index].reshape(r, -1).T
        b_rows.append(block)
    if tensor.parts[0].kind == "embedding":
        arrays |= {f"{name}.lora_embedding_A": a_rows[0], f"{name}.lora_embedding_B": b_rows[0]}
        return rank
    grouped = np.concatenate([block.reshape(tensor.layout.groups, -1, rank) for block in b_rows], axis=1)
    arrays |= {f"{name}.lora_A.weight": np.concatenate(a_rows), f"{name}.lora_B.weight": grouped.reshape(-1, rank)}
    if lora.dora:  # the norms of the merged weights are the trained ones
        theirs = tensor.join(leaves)
        arrays[f"{name}.lora_magnitude_vector"] = np.linalg.norm(theirs, axis=0 if tensor.layout.conv1d else 1)
    return rank


def _task_type(model: config.Model) -> str | None:
    if model.head is None:
        return None
    if model.head.outputs is not None:
        return "SEQ_CLS"
    return "SEQ_2_SEQ_LM" if model.encoder and model.decoder else "CAUSAL_LM" if model.decoder else None
