"""Weights on disk in Hugging Face's format: safetensors, one file or several with an index. Pickles only when asked for.

Everything here may come from a stranger: `lm.untrusted` says which files are read.
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
from lm.errors import UserError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
CODES = {"float32": "F32", "bfloat16": "BF16"}  # of dtypes, in a safetensors header
CARRIED_BYTES = 256 * 2**20  # of one of the files below; the largest tokenizer.json that is published has 34 MB
Get = Callable[[str], np.ndarray]
CARRIED = (  # what belongs to the tokenizer and the way it is used
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
    """Where a tensor lies, and what the file's header says of it."""

    file: Path
    dtype: str  # as safetensors writes it: "F32", "BF16", "I64", ...
    shape: tuple[int, ...]


def weight_files(source: Path) -> list[Path]:
    """The safetensors files of a folder, in the order in which transformers looks for them: the one of the usual name, those
    that the index names, or all that there are."""
    if untrusted.has(source, SINGLE):
        return [untrusted.inside(source, SINGLE)]
    if untrusted.has(source, INDEX):
        return _indexed(source)
    return [untrusted.inside(source, path.name) for path in sorted(source.glob("*.safetensors"))]


def _indexed(source: Path) -> list[Path]:
    """The files that the index names; each must hold the tensors that the index says it has."""
    places = untrusted.read_json(source, INDEX).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise UserError(f"{source / INDEX} has no weight_map from the names of tensors to those of files")
    held = {name: header(untrusted.inside(source, name)) for name in sorted(set(places.values()))}
    for key, name in places.items():
        if key not in held[name]:
            raise UserError(f"{source / INDEX} says that {key!r} lies in {name}, and it does not; download both again")
    return [source / name for name in held]


@contextmanager
def opened(file: Path) -> Generator[Any]:
    """A safetensors file: `keys()`, `get_tensor(key)`, nothing read before it is asked for."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "np") as f:
            yield f
    except SafetensorError as error:
        raise UserError(f"{file} is not a whole safetensors file: {error}") from None


def header(file: Path) -> dict[str, Stored]:
    """All tensors of a safetensors file by name, none of them read."""
    with opened(file):  # the library holds lengths, offsets and sizes against the file
        pass
    with file.open("rb") as f:
        said = untrusted.parse_json(f.read(int.from_bytes(f.read(8), "little")), f"the header of {file}")
    return {key: Stored(file, t["dtype"], tuple(t["shape"])) for key, t in said.items() if key != "__metadata__"}


def keys(files: list[Path]) -> dict[str, Stored]:
    """All tensors of these files by name."""
    found: dict[str, Stored] = {}
    for file in files:
        for key, stored in header(file).items():
            if key in found:
                raise UserError(f"{key!r} lies in both {found[key].file} and {file}; remove the file that does not belong here")
            found[key] = stored
    return found


def write(target: Path, shapes: Mapping[str, tuple[int, ...]], dtype: np.dtype, get: Get, shard_bytes: int) -> list[str]:
    """Writes the tensors that `get` gives, in files of up to `shard_bytes` in the order of `shapes`; the names of the files."""
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
    """The bytes that `safetensors.numpy.save_file` writes, which wants all tensors at once: the header's length in 8 bytes,
    the header in JSON padded to a multiple of 8, the tensors (huggingface.co/docs/safetensors, "Format")."""
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
    """Copies the tokenizer's files, and names them."""
    found = [name for name in CARRIED if untrusted.has(source, name)]
    for name in found:
        shutil.copyfile(untrusted.inside(source, name, largest=CARRIED_BYTES), target / name)
    return found


@contextmanager
def unpickled(source: Path, scratch: Path | None = None) -> Generator[list[Path]]:
    """The weights of a folder of pickles as safetensors, in a folder below `scratch` (None: of the system) that goes away;
    read by a process of its own."""
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


def check_room(folder: Path, needed: int) -> None:
    """Before a byte is written."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"no disk space in {folder}: the weights take {needed / 1e6:,.1f} MB and {free / 1e6:,.1f} MB are free. "
            "Free some, or give another target; nothing was written"
        )
