"""GGUF files (github.com/ggml-org/ggml, docs/gguf.md), in which llama.cpp keeps weights, settings and tokenizer together.

Settings become those of a config.json, and tensors have their names and layout in transformers, so that the rest of the
conversion reads a GGUF file as any other. Quantised tensors are read as float32, one by one.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from lm.conversion.gguf_tokenizer import tokenizer_files
from lm.errors import UserError, nearest

LONGEST = 1 << 22  # elements of an array in the settings; the largest vocabulary has 262,144 tokens
FLOATS = ("F32", "F16", "BF16", "F64")  # types that a safetensors header names in the same way
MODULES = {  # of theirs -> of transformers, for the architectures below
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "blk.{}.attn_norm": "model.layers.{}.input_layernorm",
    "blk.{}.attn_q": "model.layers.{}.self_attn.q_proj",
    "blk.{}.attn_k": "model.layers.{}.self_attn.k_proj",
    "blk.{}.attn_v": "model.layers.{}.self_attn.v_proj",
    "blk.{}.attn_output": "model.layers.{}.self_attn.o_proj",
    "blk.{}.attn_q_norm": "model.layers.{}.self_attn.q_norm",
    "blk.{}.attn_k_norm": "model.layers.{}.self_attn.k_norm",
    "blk.{}.ffn_norm": "model.layers.{}.post_attention_layernorm",
    "blk.{}.ffn_gate": "model.layers.{}.mlp.gate_proj",
    "blk.{}.ffn_up": "model.layers.{}.mlp.up_proj",
    "blk.{}.ffn_down": "model.layers.{}.mlp.down_proj",
}
SIZES = {  # settings of theirs, below the name of the architecture -> keys of config.json
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}


@dataclass(frozen=True)
class Architecture:
    """rotated: rows of queries and keys are in the order of their rotation, see `_in_halves`
    theta: `rope_theta` if a file does not say
    """

    model_type: str
    class_name: str
    rotated: bool
    theta: float


ARCHITECTURES = {
    "llama": Architecture("llama", "LlamaForCausalLM", rotated=True, theta=10_000.0),
    "qwen3": Architecture("qwen3", "Qwen3ForCausalLM", rotated=False, theta=1_000_000.0),
}


class File:
    """An open GGUF file. UserError if it is damaged, or of an architecture that is not in ARCHITECTURES.

    settings: keys of a config.json
    metadata: what the file says beside tensors, by its own names
    """

    def __init__(self, path: Path) -> None:
        self.path, (self.metadata, tensors) = path, _read(path)
        name = str(self.metadata.get("general.architecture"))
        if name not in ARCHITECTURES:
            raise UserError(f"{path} is a GGUF file of the architecture {name[:60]!r}{nearest(name, ARCHITECTURES)}")
        if self.metadata.get("split.count", 1) > 1:
            raise UserError(f"{path} is one of {self.metadata['split.count']} parts; join them with llama-gguf-split --merge")
        self.architecture = ARCHITECTURES[name]
        self._tensors = {_their_name(key): tensor for key, tensor in tensors.items()}
        try:
            self.settings = self._settings(name)
        except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
            raise UserError(f"{path} has no usable setting {error}; download it again") from None

    def _settings(self, name: str) -> dict[str, Any]:
        own = {k.removeprefix(f"{name}."): v for k, v in self.metadata.items() if k.startswith(f"{name}.")}
        found: dict[str, Any] = dict(model_type=self.architecture.model_type, architectures=[self.architecture.class_name])
        found |= {theirs: own.pop(key) for key, theirs in SIZES.items()}
        heads = found["num_attention_heads"]
        found["num_key_value_heads"] = own.pop("attention.head_count_kv", heads)
        size = own.pop("attention.key_length", found["hidden_size"] // heads)
        found |= dict(head_dim=size, rope_parameters=_rope(own, self.architecture.theta))
        for key in ("attention.value_length", "rope.dimension_count"):
            if own.pop(key, size) != size:
                raise UserError(f"{self.path}: {name}.{key} differs from the size of a head, {size}, which is not implemented")
        own.pop("vocab_size", None)  # that of the table counts
        if left := [key for key, value in own.items() if value]:
            raise UserError(f"{self.path} has settings that are not implemented: {', '.join(f'{name}.{k}' for k in left)}")
        table = self._tensors.get("model.embed_tokens.weight")
        if table is None:
            raise UserError(f"{self.path} has no token_embd.weight; download it again")
        found |= dict(vocab_size=int(table.shape[-1]), tie_word_embeddings="lm_head.weight" not in self._tensors)
        special = {word: self.metadata.get(f"tokenizer.ggml.{key}_token_id") for word, key in SPECIAL.items()}
        return found | {f"{word}_token_id": i for word, i in special.items() if i is not None}

    @property
    def types(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """The type of each tensor, as a safetensors header names what it is read as, and its shape."""
        of = lambda name: name if name in FLOATS else "F32"
        return {k: (of(t.tensor_type.name), tuple(map(int, t.shape[::-1]))) for k, t in self._tensors.items()}

    @property
    def note(self) -> str | None:
        """What was quantised, for people to read."""
        counts: dict[str, int] = {}
        for tensor in self._tensors.values():
            counts[tensor.tensor_type.name] = counts.get(tensor.tensor_type.name, 0) + 1
        named = ", ".join(f"{count} of {name}" for name, count in sorted(counts.items()) if name not in FLOATS)
        return f"quantised tensors are read as float32: {named}" if named else None

    def keys(self) -> list[str]:
        return list(self._tensors)

    def get_tensor(self, key: str) -> np.ndarray:
        """float32, in the layout of transformers."""
        import gguf

        tensor = self._tensors[key]
        shape = tuple(map(int, tensor.shape[::-1]))
        try:
            found = np.asarray(gguf.dequantize(tensor.data, tensor.tensor_type), np.float32).reshape(shape)
        except (NotImplementedError, ValueError) as error:
            raise UserError(f"{self.path}: {key} cannot be read as {tensor.tensor_type.name} ({error})") from None
        part = re.search(r"self_attn\.([qk])_proj\.", key)
        if part is None or not self.architecture.rotated:
            return found
        return _in_halves(found, self.settings["num_attention_heads" if part[1] == "q" else "num_key_value_heads"])

    def write_files(self, folder: Path) -> list[str]:
        """Writes tokenizer and chat template into a folder, as a Hugging Face folder has them; returns their names."""
        return tokenizer_files(self.metadata, folder, self.path)


SPECIAL = {"bos": "bos", "eos": "eos", "pad": "padding"}  # ours -> theirs


def is_one(path: Path) -> bool:
    return path.suffix.lower() == ".gguf"


def opened(path: Path) -> File:
    """The open file; the same one for as long as it is not written to."""
    at = path.stat() if path.is_file() else None
    return _opened(path, at and (at.st_mtime_ns, at.st_size))


@lru_cache(1)
def _opened(path: Path, changed: Any) -> File:
    return File(path)


def _rope(own: dict[str, Any], theta: float) -> dict[str, Any]:
    """Takes the settings of rotary positions out of `own`."""
    found: dict[str, Any] = dict(rope_type="default", rope_theta=float(own.pop("rope.freq_base", theta)))
    kind, factor = own.pop("rope.scaling.type", "none"), own.pop("rope.scaling.factor", 1.0)
    if kind == "linear":
        found |= dict(rope_type="linear", factor=float(factor))
    elif kind != "none" and factor != 1.0:
        own["rope.scaling.type"] = kind
    return found


def _in_halves(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of queries or keys in the order of transformers, which rotates the halves of a head against each other; llama.cpp
    rotates neighbours, and its converter (`LlamaModel.permute`) interleaves the halves for that.

    a head's rows in the file    0 4 1 5 2 6 3 7
    in transformers              0 1 2 3 4 5 6 7
    """
    return rows.reshape(heads, -1, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def _their_name(key: str) -> str:
    """A tensor's name in transformers; one that is not known keeps its own, and the conversion refuses it."""
    module, _, leaf = key.rpartition(".")
    layer = re.match(r"blk\.(\d+)\.", module)
    named = MODULES.get(re.sub(r"^blk\.\d+\.", "blk.{}.", module))
    return key if named is None else f"{named.format(layer[1] if layer else '')}.{leaf}"


def library() -> Any:
    """The gguf library. UserError if it is not installed."""
    try:
        import gguf
    except ImportError:
        raise UserError("a GGUF file needs the gguf library: pip install -e '.[convert]'") from None
    return gguf


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the file says, and its tensors, both by their names in it. UserError if it is damaged."""
    gguf = library()

    class Reader(gguf.GGUFReader):
        """Refuses lengths beyond the file's end, which the library reads as nothing."""

        def _get(self, offset: int, dtype: Any, count: Any = 1, override_order: Any = None) -> Any:
            if offset + np.dtype(dtype).itemsize * int(count) > len(self.data):
                raise ValueError("it ends too early")
            return super()._get(offset, dtype, count, override_order)

        def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
            if raw_type == gguf.GGUFValueType.ARRAY and self._get(orig_offs + 4, np.uint64)[0] > LONGEST:
                raise ValueError(f"it has an array of more than {LONGEST:,} elements")
            return super()._get_field_parts(orig_offs, raw_type)

    if not path.is_file():
        raise UserError(f"{path} is not a regular file; give a GGUF file")
    try:
        reader = Reader(path)
        metadata = {name: field.contents() for name, field in reader.fields.items()}
        return metadata, {tensor.name: tensor for tensor in reader.tensors}
    except Exception as error:  # of a damaged file the library raises whatever numpy does
        raise UserError(f"{path} is not a complete GGUF file: {error}; download it again") from None
