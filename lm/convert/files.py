"""Weights on disk in Hugging Face's format: safetensors, one file or several with an index. Pickles only when asked for."""

import json
import math
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from lm.errors import UserError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
CODES = {"float32": "F32", "bfloat16": "BF16"}  # of dtypes, in a safetensors header
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


def weight_files(source: Path) -> list[Path]:
    """The safetensors files of a folder, all of them there."""
    if (source / INDEX).exists():
        names = sorted(set(json.loads((source / INDEX).read_text())["weight_map"].values()))
        missing = [n for n in names if not (source / n).exists()]
        if missing:
            raise UserError(f"{source}: {INDEX} names {', '.join(missing)}, which is not there; download it again")
        return [source / n for n in names]
    return sorted(source.glob("*.safetensors"))


@contextmanager
def opened(file: Path) -> Generator[Any]:
    """A safetensors file: `keys()`, `get_tensor(key)`, nothing read before it is asked for."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "np") as f:
            yield f
    except SafetensorError as error:
        raise UserError(f"{file} is not a whole safetensors file: {error}") from None


def keys(files: list[Path]) -> dict[str, Path]:
    """Names of all tensors and the file that each lies in."""
    found: dict[str, Path] = {}
    for file in files:
        with opened(file) as f:
            found |= dict.fromkeys(f.keys(), file)
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
        (target / INDEX).write_text(json.dumps(listing, indent=2) + "\n")
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


def carry(source: Path, target: Path) -> list[str]:
    """Copies the tokenizer's files, and names them."""
    found = [name for name in CARRIED if (source / name).exists()]
    for name in found:
        shutil.copyfile(source / name, target / name)
    return found


@contextmanager
def unpickled(source: Path) -> Generator[list[Path]]:
    """The weights of a folder of pickles as safetensors, in a folder that goes away; read by a process of its own."""
    pickles = sorted(source.glob("pytorch_model*.bin"))
    with tempfile.TemporaryDirectory(prefix="lm-convert-") as folder:
        for file in pickles:
            out = Path(folder) / f"{file.stem}.safetensors"
            run = subprocess.run([sys.executable, "-m", "lm.convert.unpickle", file, out], capture_output=True, text=True)
            if run.returncode:
                raise UserError(f"{file} could not be read: {(run.stderr.strip().splitlines() or ['no reason given'])[-1]}")
        yield sorted(Path(folder).glob("*.safetensors"))
