"""Reads a Hugging Face checkpoint, config.json and its tensors, or a GGUF file -> our model and parameters."""

import difflib
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

from lm import config, untrusted
from lm.conversion import files, gguf_files, pixels
from lm.conversion.families import FAMILIES
from lm.conversion.files import Stored
from lm.conversion.naming import BUFFERS, drop_pattern, name_in_file, names_in_file
from lm.conversion.tables import Family, Tensor, param_shapes, read_model, tensors
from lm.errors import UserError

DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
FLOATS = {"F64", "F32", "F16", "BF16"}  # dtypes of a safetensors header that weights may have
Progress = Callable[[int, int], None]  # (bytes done, bytes in total)


@dataclass(frozen=True)
class Imported:
    model: config.Model
    params: dict[str, Any]  # numpy arrays, nested as `Transformer.init` nests them
    family: str  # the model_type
    notes: tuple[str, ...] = ()  # how dtypes were chosen, where that is worth telling the user


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
    """Reads the checkpoint in the folder `source`, or the GGUF file `source`.

    dtype: of the parameters; None: bfloat16 if all tensors of the file are bfloat16, otherwise float32.
    scan: whether layers are scanned; None: models of 8 layers or more are.
    allow_pickle: read `pytorch_model*.bin` if there are no safetensors files.
    drop: a regular expression; tensors whose full name matches are ignored.
    scratch: the folder for safetensors copies of pickles; None: the system's temporary folder.
    """
    file = gguf_files.opened(source) if gguf_files.is_one(source) else None
    if file is None and not untrusted.has(source, "config.json"):
        raise UserError(f"{source} has no config.json; give the folder of a Hugging Face checkpoint, or a .gguf file")
    settings = file.settings if file else untrusted.read_json(source, "config.json")
    with ExitStack() as stack:
        weights = [source] if file else files.weight_files(source)
        if not weights:
            if not sorted(source.glob("pytorch_model*.bin")):
                raise UserError(f"{source} has no .safetensors files")
            if not allow_pickle:
                raise UserError(
                    f"{source} has only pickled weights, which can run code when read; "
                    "--allow_pickle reads them with weights_only in a process of its own"
                )
            weights = stack.enter_context(files.unpickled(source, scratch))
        stored = _without_dropped(files.keys(weights), drop)
        found = imported(settings, stored, dtype=dtype, scan=scan, progress=progress)
        model = found.model if file else pixels.read(found.model, source)
        return replace(found, model=model, notes=(*found.notes, file.note) if file and file.note else found.notes)


def imported(
    settings: Mapping[str, Any],
    stored: Mapping[str, Stored],
    *,
    dtype: str | None = None,
    scan: bool | None = None,
    progress: Progress = lambda done, total: None,
) -> Imported:
    """Reads the model that a config.json (`settings`) describes from these tensors, as `read` does."""
    family = _find_family(settings, stored)
    with _explain_defaults(family, settings):
        model = read_model(family, settings, stored)
    kept, notes = (dtype, ()) if dtype else _choose_dtype(stored)
    model = _with_scan(replace(model, dtype=kept, param_dtype=kept), scan)
    mapping = _match(family, model, stored)
    with _explain_defaults(family, settings):  # before memory is allocated for the sizes of config.json
        _check_shapes(mapping.tensors, stored)
    return Imported(model, _load_params(model, stored, mapping, progress), settings["model_type"], notes)


@contextmanager
def _explain_defaults(family: Family, settings: Mapping[str, Any]) -> Generator[None]:
    """Adds to a UserError the sizes that config.json leaves out, since transformers' defaults stand in for them."""
    names = {family.aliases.get(name, name) for name in settings}
    lacking = [f"{name}={value}" for name, value in family.defaults.items() if type(value) is int and name not in names]
    try:
        yield
    except UserError as error:
        hint = f" (not in config.json, so by transformers' default: {', '.join(lacking)})" if lacking else ""
        raise UserError(f"{error}{hint}") from None


def _find_family(settings: Mapping[str, Any], stored: Mapping[str, Stored]) -> Family:
    """Returns the family of the file's `model_type`. For an unknown type the error names the families that fit the file."""
    name = settings.get("model_type")
    if isinstance(name, str) and name in FAMILIES:
        return FAMILIES[name]
    close = difflib.get_close_matches(str(name), FAMILIES, n=3)
    fitting = [other for other in dict.fromkeys([*close, *FAMILIES]) if _fits(FAMILIES[other], settings, stored)]
    if not fitting:
        known = ", ".join(sorted(FAMILIES))
        raise UserError(f"model_type {name!r} of config.json is not known, and no known family fits this file; known: {known}")
    also = f", and so do {', '.join(fitting[1:])}" if fitting[1:] else ""
    raise UserError(
        f"model_type {name!r} of config.json is not known; did you mean '{fitting[0]}'? It fits everything in the file{also}"
    )


def _fits(family: Family, settings: Mapping[str, Any], stored: Mapping[str, Stored]) -> bool:
    """Whether the family reads this config.json and maps all of the file's tensors, in their shapes."""
    try:
        model = read_model(family, settings, stored)
        _check_shapes(_match(family, model, stored).tensors, stored)
    except UserError:
        return False
    return True


def _without_dropped(stored: dict[str, Stored], drop: str | None) -> dict[str, Stored]:
    """Returns the tensors whose names do not match the regular expression."""
    try:
        return {k: v for k, v in stored.items() if not (drop and re.fullmatch(drop, k))}
    except (re.error, OverflowError, RecursionError) as error:
        raise UserError(f"--drop={drop} is not a regular expression: {error}; write the dots of a name as \\.") from None


def _choose_dtype(stored: Mapping[str, Stored]) -> tuple[str, tuple[str, ...]]:
    """Returns bfloat16 if every weight is bfloat16, otherwise float32, and notes on the weights that this changes."""
    by_dtype: dict[str, list[str]] = {}
    for key, tensor in stored.items():
        if tensor.dtype in FLOATS and not BUFFERS.fullmatch(key):
            by_dtype.setdefault(tensor.dtype, []).append(key)
    if by_dtype.keys() == {"BF16"}:
        return "bfloat16", ()
    notes = []
    if doubles := by_dtype.get("F64"):
        notes.append(f"{len(doubles):,} float64 tensors are rounded to float32: {_first_few(doubles)}")
    if "BF16" in by_dtype and len(by_dtype) > 1:
        others = [key for dtype, keys in by_dtype.items() if dtype != "BF16" for key in keys]
        notes.append(f"bfloat16 tensors are kept in float32 because of {_first_few(others)}; --dtype=bfloat16 would halve them")
    return "float32", tuple(notes)


def _with_scan(model: config.Model, scan: bool | None) -> config.Model:
    """Returns the model with `scan` set in its stacks, where the pattern repeats an integer number of times."""

    def one(stack: config.Stack | None) -> config.Stack | None:
        if stack is None:
            return None
        even = stack.num_layers % len(stack.pattern) == 0 and stack.num_layers > len(stack.pattern)
        return replace(stack, scan=even and (stack.num_layers >= 8 if scan is None else scan))

    return replace(model, encoder=one(model.encoder), decoder=one(model.decoder))


@dataclass(frozen=True)
class _Mapping:
    """How the tensors of a file are read, by their names in the file."""

    tensors: dict[str, Tensor]
    copies: dict[str, str]  # tensor -> the tensor that it must equal
    zeros: Collection[str]  # tensors that must be zero


def _match(family: Family, model: config.Model, stored: Mapping[str, Stored]) -> _Mapping:
    """Maps the file's tensors to the model's parameters; UserError if any are missing or left over."""
    expected = tensors(family, model, param_shapes(model))
    copies, zeros = dict(family.copies), family.zeros(model)
    in_file = names_in_file(family, expected, stored)
    expected = {in_file[k]: replace(t, key=in_file[k]) for k, t in expected.items()}
    copies = {name_in_file(family, a, stored): in_file[b] for a, b in copies.items() if b in in_file}
    _check_weights({k: v for k, v in stored.items() if k in expected | copies | zeros})
    missing = sorted(expected.keys() - stored.keys())
    unknown = sorted(k for k in stored if k not in expected | copies | zeros and not BUFFERS.fullmatch(k))
    if missing or unknown:
        drop = drop_pattern(unknown, stored.keys() - set(unknown))
        parts = [f"missing: {_first_few(missing)}"] if missing else []
        parts += [f"not taken: {_first_few(unknown)} (to leave them out: --drop {shlex.quote(drop)})"] if unknown else []
        raise UserError(f"the tensors are not those that config.json describes; {'; '.join(parts)}")
    return _Mapping(expected, copies, zeros)


def _load_params(model: config.Model, stored: Mapping[str, Stored], mapping: _Mapping, progress: Progress) -> dict[str, Any]:
    """Reads the tensors file by file into the model's parameters, nested."""
    dtype = DTYPES[model.param_dtype]
    leaves = {path: np.empty(shape, dtype) for path, shape in param_shapes(model).items()}
    total = sum(leaf.nbytes for leaf in leaves.values())
    done = 0
    for file in sorted({tensor.file for tensor in stored.values()}):
        with files.opened(file) as f:
            for key in (k for k in f.keys() if k in stored):
                if key in mapping.tensors:
                    theirs = f.get_tensor(key)
                    mapping.tensors[key].split(files.cast(key, theirs, dtype), leaves)
                    done += theirs.size * dtype.itemsize
                    progress(done, total)
                elif key in mapping.zeros and f.get_tensor(key).any():
                    raise UserError(f"{key} is not zero, and our model has no parameter for it")
    for key in (k for k in mapping.copies if k in stored and k not in mapping.tensors):
        _check_copy(key, stored, mapping.tensors[mapping.copies[key]], leaves)
    return traverse_util.unflatten_dict(leaves, sep="/")


def _check_weights(stored: Mapping[str, Stored]) -> None:
    """Raises UserError unless all are floating-point tensors of at least 16 bits."""
    other = {key: tensor.dtype for key, tensor in stored.items() if tensor.dtype not in FLOATS}
    if other:
        key, dtype = next(iter(other.items()))
        raise UserError(
            f"{key} is of type {dtype} ({len(other)} tensors are no weights in 16 bits or more): a quantised model needs its "
            "scales as well; give the model in bfloat16, float16 or float32"
        )


def _check_shapes(expected: Mapping[str, Tensor], stored: Mapping[str, Stored]) -> None:
    for key, tensor in expected.items():
        if tuple(stored[key].shape) != tensor.shape:
            raise UserError(f"{key} is {list(stored[key].shape)} where config.json means {list(tensor.shape)}")


def _check_copy(key: str, stored: Mapping[str, Stored], tensor: Tensor, leaves: Mapping[str, np.ndarray]) -> None:
    """Raises UserError unless the file's tensor `key` equals `tensor`, which has been read into `leaves`."""
    with files.opened(stored[key].file) as f:
        theirs = f.get_tensor(key)
    ours = tensor.join(leaves)
    if theirs.shape != ours.shape or not np.array_equal(files.cast(key, theirs, ours.dtype), ours):
        raise UserError(f"{key} should equal {tensor.key} and does not: config.json ties them, the file does not")


def _first_few(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
