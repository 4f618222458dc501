"""Weight files: safetensors, one file or several with an index; pickles if the user allows them; GGUF.

Files may come from a stranger; `lm.untrusted` decides which are read.
"""

import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lm import atomic, untrusted
from lm.conversion import gguf_files
from lm.errors import UserError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
CODES = {"float32": "F32", "bfloat16": "BF16"}  # names of dtypes in a safetensors header
MAX_CARRIED_BYTES = 256 * 2**20  # of each file below; the largest published tokenizer.json has 34 MB
Get = Callable[[str], np.ndarray]
CARRIED = (  # files that are copied as they are: the tokenizer and how it is used
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "chat_template.jinja",
    "generation_config.json",
)


@dataclass(frozen=True)
class Stored:
    """A tensor in a file, as the file's header describes it."""

    file: Path
    dtype: str  # as safetensors writes it: "F32", "BF16", "I64", ...
    shape: tuple[int, ...]


def weight_files(source: Path) -> list[Path]:
    """Returns the folder's safetensors files. As in transformers: `model.safetensors` if it exists, else the files that the
    index names, else all."""
    if untrusted.has(source, SINGLE):
        return [untrusted.inside(source, SINGLE)]
    if untrusted.has(source, INDEX):
        return _indexed(source)
    return [untrusted.inside(source, path.name) for path in sorted(source.glob("*.safetensors"))]


def _indexed(source: Path) -> list[Path]:
    """Returns the files that the index names; each must hold the tensors that the index assigns to it."""
    weight_map = untrusted.read_json(source, INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(name, str) for name in weight_map.values()):
        raise UserError(f"{source / INDEX} has no weight_map from names of tensors to names of files")
    held = {name: header(untrusted.inside(source, name)) for name in sorted(set(weight_map.values()))}
    for key, name in weight_map.items():
        if key not in held[name]:
            raise UserError(f"{source / INDEX} says that {key!r} is in {name}, and it is not; download both again")
    return [source / name for name in held]


@contextmanager
def opened(file: Path) -> Generator[Any]:
    """Yields an open safetensors or GGUF file with `keys()` and `get_tensor(key)`, which reads one tensor."""
    from safetensors import SafetensorError, safe_open

    if gguf_files.is_one(file):
        yield gguf_files.opened(file)
        return
    try:
        with safe_open(file, "np") as f:
            yield f
    except SafetensorError as error:
        raise UserError(f"{file} is not a complete safetensors file: {error}") from None


def header(file: Path) -> dict[str, Stored]:
    """Returns a file's tensors by name, from its header alone."""
    if gguf_files.is_one(file):
        return {key: Stored(file, *described) for key, described in gguf_files.opened(file).types.items()}
    with opened(file):  # the library checks lengths, offsets and sizes
        pass
    with file.open("rb") as f:
        entries = untrusted.parse_json(f.read(int.from_bytes(f.read(8), "little")), f"the header of {file}")
    return {key: Stored(file, t["dtype"], tuple(t["shape"])) for key, t in entries.items() if key != "__metadata__"}


def keys(files: list[Path]) -> dict[str, Stored]:
    """Returns the tensors of these files by name; UserError if two files have one of the same name."""
    found: dict[str, Stored] = {}
    for file in files:
        for key, stored in header(file).items():
            if key in found:
                raise UserError(f"{key!r} is in both {found[key].file} and {file}; remove the file that does not belong here")
            found[key] = stored
    return found


def write(target: Path, shapes: Mapping[str, tuple[int, ...]], dtype: np.dtype, get: Get, shard_bytes: int) -> list[str]:
    """Writes the tensors that `get(name)` returns to files of up to `shard_bytes`, in the order of `shapes`; returns the
    names of the files."""
    sizes = {name: math.prod(shape) * dtype.itemsize for name, shape in shapes.items()}
    shards: list[list[str]] = [[]]
    room = shard_bytes
    for name, size in sizes.items():
        if shards[-1] and size > room:
            shards.append([])
            room = shard_bytes
        shards[-1].append(name)
        room -= size
    count = len(shards)
    files = [SINGLE] if count == 1 else [f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]
    for file, names in zip(files, shards, strict=True):
        _write_one(target / file, {name: shapes[name] for name in sorted(names)}, dtype, get)
    if count > 1:
        index = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        listing = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": index}
        atomic.write_json(target / INDEX, listing)
    return files


def _write_one(path: Path, shapes: Mapping[str, tuple[int, ...]], dtype: np.dtype, get: Get) -> None:
    """Writes the same bytes as `safetensors.numpy.save_file`, which needs all tensors in memory at once.

    The format is the header's length in 8 bytes, the header as JSON padded to a multiple of 8 bytes, and the tensors
    (huggingface.co/docs/safetensors, "Format").
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": CODES[dtype.name], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            tensor = get(name)
            assert tensor.shape == shape and tensor.dtype == dtype, name
            file.write(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data)
        file.flush()
        os.fsync(file.fileno())


def carry(source: Path, target: Path) -> list[str]:
    """Copies the files of CARRIED that `source` has, and returns their names."""
    found = [name for name in CARRIED if untrusted.has(source, name)]
    for name in found:
        shutil.copyfile(untrusted.inside(source, name, largest=MAX_CARRIED_BYTES), target / name)
    return found


@contextmanager
def unpickled(source: Path, scratch: Path | None = None) -> Generator[list[Path]]:
    """Yields safetensors copies of the folder's `pytorch_model*.bin` files, in a temporary folder below `scratch` (None: the
    system's).

    A process of its own reads the pickles, so that whatever a file does to its reader ends with that process.
    """
    pickles = [untrusted.inside(source, path.name) for path in sorted(source.glob("pytorch_model*.bin"))]
    with tempfile.TemporaryDirectory(prefix="lm-convert-", dir=scratch) as folder:
        for file in pickles:
            out = Path(folder) / f"{file.stem}.safetensors"
            run = subprocess.run(
                [sys.executable, "-m", "lm.conversion.unpickle", file, out], capture_output=True, text=True, errors="replace"
            )
            if run.returncode:
                raise UserError(f"{file} could not be read: {(run.stderr.strip().splitlines() or ['no reason given'])[-1]}")
        yield sorted(Path(folder).glob("*.safetensors"))


def cast(name: str, theirs: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Returns the tensor in `dtype`; UserError if a value is not finite, or is too large for `dtype`."""
    with np.errstate(over="ignore"):
        ours = theirs.astype(dtype, copy=False)
    if _all_finite(ours):
        return ours
    count = np.sum(~np.isfinite(theirs))
    if count:
        raise UserError(
            f"{name} has {count:,} values that are NaN or infinite, of {theirs.size:,}; the file is damaged or its run diverged"
        )
    largest = np.max(np.abs(theirs))
    raise UserError(f"{name} has values as large as {largest:.3g}, which {dtype.name} cannot hold")


def _all_finite(array: np.ndarray) -> bool:
    """`np.isfinite(array).all()` without an array of booleans; `max` and `min` propagate NaN."""
    return array.size == 0 or bool(np.isfinite(array.max()) and np.isfinite(array.min()))


def check_free_space(folder: Path, needed: int) -> None:
    """Raises UserError if `folder` has less than `needed` bytes free, before anything is written."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"no disk space in {folder}: the weights take {needed / 1e6:,.1f} MB and {free / 1e6:,.1f} MB are free. "
            "Free some, or give another target; nothing was written"
        )
