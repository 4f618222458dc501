"""To and from Hugging Face checkpoints, both ways, a tensor at a time.

    imported = read(Path("gpt2"), dtype=None)      # imported.model: config.Model; imported.params: numpy, by our names
    write(model, params, Path("out"))              # safetensors, config.json

Every tensor of theirs is taken and every one of ours filled, or it stops and lists which. A config attribute that we do
not implement stops it by name. Dropout is not carried over: it is the training run's business.
"""

import difflib
import math
import re
import shlex
from collections.abc import Callable, Collection, Generator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from flax import traverse_util

from lm import atomic, config, untrusted
from lm.conversion import files
from lm.conversion.families import FAMILIES
from lm.conversion.files import Stored
from lm.conversion.naming import BUFFERS, dropping, named_in, spelled
from lm.conversion.tables import Family, Tensor, canonical, differences, read_model, tensors
from lm.errors import UserError, nearest
from lm.models.transformer import abstract_params

DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
FLOATS = {"F64", "F32", "F16", "BF16"}  # of a safetensors header: what weights may be
Progress = Callable[[int, int], None]  # (bytes done, bytes in all)


@dataclass(frozen=True)
class Imported:
    model: config.Model
    params: dict[str, Any]  # numpy arrays in the nested dict that `Transformer.init` makes
    family: str
    notes: tuple[str, ...] = ()  # what a reader should know of how the weights were taken


def read(
    source: Path,
    *,
    dtype: str | None = None,
    scan: bool | None = None,
    allow_pickle: bool = False,
    drop: str | None = None,
    scratch: Path | None = None,
    progress: Progress = lambda done, total: None,
) -> Imported:
    """The model in a folder. `dtype` None: bfloat16 if all their weights are, otherwise float32. `scan` None: from 8 layers
    on. `drop`: a regular expression of tensors of theirs to leave out. `scratch`: a folder for what pickles hold."""
    if not untrusted.has(source, "config.json"):
        raise UserError(f"{source} has no config.json; give the folder of a Hugging Face checkpoint")
    said = untrusted.read_json(source, "config.json")
    with ExitStack() as stack:
        weights = files.weight_files(source)
        if not weights:
            if not sorted(source.glob("pytorch_model*.bin")):
                raise UserError(f"{source} has no .safetensors files")
            if not allow_pickle:
                raise UserError(
                    f"{source} has pickled weights alone, which can run code when read; "
                    "--allow_pickle reads them with weights_only in a process of its own"
                )
            weights = stack.enter_context(files.unpickled(source, scratch))
        found = _without(files.keys(weights), drop)
        family = _family_of(said, found)
        with _defaults_named(family, said):
            model = read_model(family, said, found)
        kept, notes = (dtype, ()) if dtype else _dtype(found)
        model = _scanned(replace(model, dtype=kept, param_dtype=kept), scan)
        of = _taken(family, model, found)
        with _defaults_named(family, said):  # before memory is taken for what config.json says
            _check_shapes(of.tensors, found)
        return Imported(model, _fill(model, found, of, progress), said["model_type"], notes)


@contextmanager
def _defaults_named(family: Family, said: Mapping[str, Any]) -> Generator[None]:
    """Adds to a UserError the sizes that config.json leaves out, so that transformers' defaults stand for them."""
    names = {family.aliases.get(name, name) for name in said}
    lacking = [f"{name}={value}" for name, value in family.defaults.items() if type(value) is int and name not in names]
    try:
        yield
    except UserError as error:
        hint = f" (not in config.json, so by transformers' default: {', '.join(lacking)})" if lacking else ""
        raise UserError(f"{error}{hint}") from None


def check_family(name: Any, place: str) -> None:
    """UserError if this is not the model_type of a family. `place`: where the user gave it."""
    if not isinstance(name, str) or name not in FAMILIES:
        raise UserError(f"{place} {name!r} is not known{nearest(str(name), FAMILIES)}")


def _family_of(said: Mapping[str, Any], found: Mapping[str, Stored]) -> Family:
    """The family of the file's `model_type`. For a type that is not known, the error names those that take the whole file."""
    name = said.get("model_type")
    if isinstance(name, str) and name in FAMILIES:
        return FAMILIES[name]
    close = difflib.get_close_matches(str(name), FAMILIES, n=3)
    fitting = [other for other in dict.fromkeys([*close, *FAMILIES]) if _takes(FAMILIES[other], said, found)]
    if not fitting:
        known = ", ".join(sorted(FAMILIES))
        raise UserError(f"model_type {name!r} of config.json is not known, and no known family takes this file; known: {known}")
    also = f", and so would {', '.join(fitting[1:])}" if fitting[1:] else ""
    raise UserError(
        f"model_type {name!r} of config.json is not known; did you mean '{fitting[0]}'? It takes all that is in the file{also}"
    )


def _takes(family: Family, said: Mapping[str, Any], found: Mapping[str, Stored]) -> bool:
    """Whether the family reads this config.json and takes all of the file's tensors, each in its shape."""
    try:
        model = read_model(family, said, found)
        _check_shapes(_taken(family, model, found).tensors, found)
    except UserError:
        return False
    return True


def _without(found: dict[str, Stored], drop: str | None) -> dict[str, Stored]:
    """The tensors whose names the expression does not match."""
    try:
        return {k: v for k, v in found.items() if not (drop and re.fullmatch(drop, k))}
    except (re.error, OverflowError, RecursionError) as error:
        raise UserError(f"--drop={drop} is not a regular expression: {error}; a dot of a name is written \\.") from None


def _dtype(found: Mapping[str, Stored]) -> tuple[str, tuple[str, ...]]:
    """The dtype that holds every weight: bfloat16 if all of them are, otherwise float32. And what that does to some."""
    held: dict[str, list[str]] = {}
    for key, stored in found.items():
        if stored.dtype in FLOATS and not BUFFERS.fullmatch(key):
            held.setdefault(stored.dtype, []).append(key)
    if held.keys() == {"BF16"}:
        return "bfloat16", ()
    notes = []
    if doubles := held.get("F64"):
        notes.append(f"{len(doubles):,} float64 tensors are rounded to float32: {_some(doubles)}")
    if "BF16" in held and len(held) > 1:
        others = [key for dtype, keys in held.items() if dtype != "BF16" for key in keys]
        notes.append(f"bfloat16 tensors are kept in float32 because of {_some(others)}; --dtype=bfloat16 would halve them")
    return "float32", tuple(notes)


def _scanned(model: config.Model, scan: bool | None) -> config.Model:
    def one(stack: config.Stack | None) -> config.Stack | None:
        if stack is None:
            return None
        even = stack.num_layers % len(stack.pattern) == 0 and stack.num_layers > len(stack.pattern)
        return replace(stack, scan=even and (stack.num_layers >= 8 if scan is None else scan))

    return replace(model, encoder=one(model.encoder), decoder=one(model.decoder))


def _shapes(model: config.Model) -> dict[str, tuple[int, ...]]:
    """Of its parameters, by path: `{"embed/tokens/embedding": (512, 64), ...}`."""
    return {path: leaf.shape for path, leaf in traverse_util.flatten_dict(abstract_params(model), sep="/").items()}


@dataclass(frozen=True)
class _Taken:
    """What is read of a file, by its names there."""

    tensors: dict[str, Tensor]
    copies: dict[str, str]  # a tensor -> the one that it must repeat
    zeros: Collection[str]


def _taken(family: Family, model: config.Model, found: Mapping[str, Stored]) -> _Taken:
    """UserError if tensors are missing, or left over."""
    expected = tensors(family, model, _shapes(model))
    copies, zeros = dict(family.copies), family.zeros(model)
    named = named_in(family, expected, found)
    expected = {named[k]: replace(t, key=named[k]) for k, t in expected.items()}
    copies = {spelled(family, a, found): named[b] for a, b in copies.items() if b in named}
    _check_weights({k: v for k, v in found.items() if k in expected | copies | zeros})
    missing = sorted(expected.keys() - found.keys())
    unknown = sorted(k for k in found if k not in expected | copies | zeros and not BUFFERS.fullmatch(k))
    if missing or unknown:
        drop = dropping(unknown, found.keys() - set(unknown))
        parts = [f"missing: {_some(missing)}"] if missing else []
        parts += [f"not taken: {_some(unknown)} (to leave them out: --drop {shlex.quote(drop)})"] if unknown else []
        raise UserError(f"the tensors are not those that config.json describes; {'; '.join(parts)}")
    return _Taken(expected, copies, zeros)


def _fill(model: config.Model, found: Mapping[str, Stored], of: _Taken, progress: Progress) -> dict[str, Any]:
    """Our parameters from their tensors, file by file."""
    shapes, expected = _shapes(model), of.tensors
    dtype = DTYPES[model.param_dtype]
    leaves = {path: np.empty(shape, dtype) for path, shape in shapes.items()}
    total = sum(leaf.nbytes for leaf in leaves.values())
    done = 0
    for file in sorted({stored.file for stored in found.values()}):
        with files.opened(file) as f:
            for key in (k for k in f.keys() if k in found):
                if key in expected:
                    theirs = f.get_tensor(key)
                    expected[key].split(_cast(key, theirs, dtype), leaves)
                    done += theirs.size * dtype.itemsize
                    progress(done, total)
                elif key in of.zeros and f.get_tensor(key).any():
                    raise UserError(f"{key} is not zero, and our model has no place for it")
    for key in (k for k in of.copies if k in found and k not in expected):
        _check_copy(key, found, expected[of.copies[key]], leaves)
    return traverse_util.unflatten_dict(leaves, sep="/")


def _check_weights(found: Mapping[str, Stored]) -> None:
    """They are floating-point numbers of 16 bits or more."""
    other = {key: stored.dtype for key, stored in found.items() if stored.dtype not in FLOATS}
    if other:
        key, dtype = next(iter(other.items()))
        raise UserError(
            f"{key} is of type {dtype} ({len(other)} tensors are no weights in 16 bits or more): of a quantised model the "
            "scales are needed as well; give the model in bfloat16, float16 or float32"
        )


def _cast(key: str, theirs: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """In our dtype. A value that is not finite, there or only here, is refused: no output would be."""
    with np.errstate(over="ignore"):
        ours = theirs.astype(dtype, copy=False)
    if _finite(ours):
        return ours
    count = np.sum(~np.isfinite(theirs))
    if count:
        raise UserError(
            f"{key} has {count:,} values that are NaN or infinite, of {theirs.size:,}; the file is damaged or its run diverged"
        )
    largest = np.max(np.abs(theirs))
    raise UserError(f"{key} has values as large as {largest:.3g}, which {dtype.name} cannot hold")


def _finite(array: np.ndarray) -> bool:
    """Without an array of as many booleans: NaN is kept by `max` and `min`."""
    return array.size == 0 or bool(np.isfinite(array.max()) and np.isfinite(array.min()))


def _check_shapes(expected: Mapping[str, Tensor], found: Mapping[str, Stored]) -> None:
    for key, tensor in expected.items():
        if tuple(found[key].shape) != tensor.shape:
            raise UserError(f"{key} is {list(found[key].shape)} where config.json means {list(tensor.shape)}")


def _check_copy(key: str, found: Mapping[str, Stored], tensor: Tensor, leaves: Mapping[str, np.ndarray]) -> None:
    with files.opened(found[key].file) as f:
        theirs = f.get_tensor(key)
    ours = tensor.join(leaves)
    if theirs.shape != ours.shape or not np.array_equal(_cast(key, theirs, ours.dtype), ours):
        raise UserError(f"{key} should repeat {tensor.key} and does not: config.json ties what the file does not")


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def describe(model: config.Model, family: str | None = None) -> tuple[str, dict[str, Any]]:
    """The model_type that can say this model, and its config.json: what it writes, read again, is the model."""
    tried: dict[str, list[str]] = {}
    wanted, shapes = canonical(model), _shapes(model)
    if family:
        check_family(family, "model_type")
    for name in [family] if family else FAMILIES:
        try:
            said = FAMILIES[name].write(model) | {"architectures": [FAMILIES[name].architecture(model)]}
            if model.head and model.head.outputs is not None:
                said["num_labels"] = model.head.outputs
            keys = tensors(FAMILIES[name], model, shapes).keys()
            tried[name] = differences(wanted, canonical(read_model(FAMILIES[name], said, keys)))
        except (AssertionError, AttributeError, KeyError, TypeError, UserError) as error:
            tried[name] = [str(error) or "another kind of model"]
        if not tried[name]:
            return name, said
    closest = min(tried, key=lambda n: len(tried[n]) + 100 * ("another kind" in tried[n][0]))
    why = "; ".join(tried[closest][:3])
    if family:
        raise UserError(f"model_type {family} cannot say this model: {why}")
    raise UserError(f"no Hugging Face family can say this model; the nearest is {closest}, but {why}")


def _other_classifier(ours: list[str], theirs: Any) -> bool:
    """Whether one is a classifier of tokens and the other of texts, which ModernBERT's heads do not tell."""
    kinds = "ForSequenceClassification", "ForTokenClassification"
    return any(
        ours[0].endswith(kind) and theirs == [ours[0].removesuffix(kind) + other] for kind, other in (kinds, kinds[::-1])
    )


def write(
    model: config.Model,
    params: dict[str, Any],
    target: Path,
    *,
    family: str | None = None,
    also: Mapping[str, Any] | None = None,
    shard_bytes: int = 5 * 10**9,
    progress: Progress = lambda done, total: None,
) -> str:
    """Writes config.json and safetensors, in the dtype of `params`; returns the family. `also`: more entries of config.json,
    of which `architectures` stands if it is the same model's other kind of classifier."""
    name, said = describe(model, family)
    also = dict(also or {})
    leaves = traverse_util.flatten_dict(params, sep="/")
    expected = tensors(FAMILIES[name], model, {path: leaf.shape for path, leaf in leaves.items()})
    if _other_classifier(said["architectures"], theirs := also.pop("architectures", None)):
        other = said | {"architectures": theirs}
        same = not differences(canonical(model), canonical(read_model(FAMILIES[name], other, expected)))
        said = other if same else said
    zeros = FAMILIES[name].zeros(model)
    dtype = next(iter(leaves.values())).dtype
    shapes = {key: t.shape for key, t in expected.items()} | zeros
    total, done = sum(math.prod(shape) for shape in shapes.values()) * dtype.itemsize, 0

    def get(key: str) -> np.ndarray:
        nonlocal done
        tensor = np.zeros(zeros[key], dtype) if key in zeros else _cast(key, expected[key].join(leaves), dtype)
        done += tensor.nbytes
        progress(done, total)
        return tensor

    target.mkdir(parents=True, exist_ok=True)
    files.check_room(target, total)
    files.write(target, shapes, dtype, get, shard_bytes)
    heading = {"model_type": name, "torch_dtype": dtype.name}
    atomic.write_json(target / "config.json", {**also, **said, **heading})
    return name
