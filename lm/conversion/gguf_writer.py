"""Writes a model as a GGUF file, which llama.cpp and others run: the architectures of `gguf_files.ARCHITECTURES`, with a
sentencepiece model of BPE as tokenizer."""

import json
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from lm import paths, saved
from lm.conversion import files, folders
from lm.conversion.gguf_files import ARCHITECTURES, MODULES, SIZES, SPECIAL, library
from lm.data import chat
from lm.errors import UserError

MODULE_OF = {theirs: own for own, theirs in MODULES.items()}


def to_gguf(given: str, target: str) -> str:
    """Writes a run or a converted model to a new GGUF file, in float32. Returns a one-line summary.

    UserError if it is of an architecture that is not known, or its tokenizer is no sentencepiece model of BPE.
    """
    start, new = time.perf_counter(), paths.local(target, name="the target")
    if new.suffix != ".gguf" or new.exists():
        raise UserError(f"{new} must be a new file whose name ends in .gguf")
    gguf = library()
    source = saved.open(given, name="SRC")
    tokenizer = _tokenizer(source)
    with tempfile.TemporaryDirectory(prefix="lm-gguf-", dir=new.parent) as scratch:
        folder, part = Path(scratch) / "hf", Path(scratch) / new.name
        folders.to_hf(given, str(folder), family=None, shard_gb=5.0)
        settings = json.loads((folder / "config.json").read_bytes())
        kind = settings["model_type"]
        if kind not in ARCHITECTURES:
            raise UserError(f"llama.cpp has no architecture for {kind} here; known: {', '.join(sorted(ARCHITECTURES))}")
        writer = gguf.GGUFWriter(part, kind)
        _settings(writer, settings, kind)
        _write_tokenizer(writer, tokenizer, settings["vocab_size"], _template(folder))
        for file in files.weight_files(folder):
            with files.opened(file) as f:
                for key in f.keys():
                    writer.add_tensor(_name(key), _tensor(f.get_tensor(key), key, settings))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        size = part.stat().st_size
        part.replace(new)
    return f"{new}: {kind}, float32, {size / 1e9:.2f} GB; {time.perf_counter() - start:.1f} s"


def _settings(writer: Any, settings: dict[str, Any], kind: str) -> None:
    rope = settings["rope_parameters"]
    if rope["rope_type"] not in ("default", "linear") or any(
        settings.get(n) for n in ("attention_bias", "mlp_bias", "sliding_window")
    ):
        raise UserError("the model has biases, windows or a scaling of positions that are not written to GGUF files")
    for own, theirs in SIZES.items():
        value = settings[theirs]
        (writer.add_float32 if isinstance(value, float) else writer.add_uint32)(f"{kind}.{own}", value)
    writer.add_head_count_kv(settings["num_key_value_heads"])
    for add in (writer.add_key_length, writer.add_value_length, writer.add_rope_dimension_count):
        add(settings["head_dim"])
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "linear":
        writer.add_string(f"{kind}.rope.scaling.type", "linear")
        writer.add_float32(f"{kind}.rope.scaling.factor", rope["factor"])
    writer.add_vocab_size(settings["vocab_size"])
    for word, theirs in SPECIAL.items():
        if (i := settings.get(f"{word}_token_id")) is not None:
            writer.add_uint32(f"tokenizer.ggml.{theirs}_token_id", i)


def _name(key: str) -> str:
    module, _, leaf = key.rpartition(".")
    layer = re.search(r"\.layers\.(\d+)\.", module)
    return f"{MODULE_OF[re.sub(r'layers[.][0-9]+[.]', 'layers.{}.', module)].format(layer[1] if layer else '')}.{leaf}"


def _tensor(values: np.ndarray, key: str, settings: dict[str, Any]) -> np.ndarray:
    """float32; rows of queries and keys interleaved where llama.cpp rotates neighbours (the inverse of `_in_halves`)."""
    values, part = np.asarray(values, np.float32), re.search(r"self_attn\.([qk])_proj\.", key)
    if part is None or not ARCHITECTURES[settings["model_type"]].rotated:
        return values
    heads = settings["num_attention_heads" if part[1] == "q" else "num_key_value_heads"]
    return np.ascontiguousarray(values.reshape(heads, 2, -1, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape))


def _tokenizer(source: saved.Saved) -> Any:
    """The parsed sentencepiece model. UserError if it is none, or none that llama.cpp reads alike."""
    from sentencepiece import sentencepiece_model_pb2

    proto = source.tokenizer().proto
    format: Any = sentencepiece_model_pb2
    model = None if proto.lstrip()[:1] == b"{" else format.ModelProto.FromString(proto)
    if model is None or model.trainer_spec.model_type != format.TrainerSpec.BPE or model.normalizer_spec.precompiled_charsmap:
        raise UserError(
            f"the tokenizer of {source.folder} is no sentencepiece model of BPE, and no other is written to GGUF files"
        )
    return model


def _template(folder: Path) -> str | None:
    """The chat template of an exported folder."""
    if (file := folder / chat.TEMPLATE).exists():
        return file.read_text(encoding="utf-8")
    file = folder / chat.SETTINGS
    found = json.loads(file.read_bytes()).get("chat_template") if file.exists() else None
    return found if isinstance(found, str) else None


def _write_tokenizer(writer: Any, model: Any, size: int, template: str | None) -> None:
    """The pieces with their scores and types, which have the same numbers in both formats. Rows of the table of embeddings that
    have no piece are given unused ones, since llama.cpp counts the pieces."""
    kind = type(model).SentencePiece
    pieces = [*model.pieces, *(kind(piece=f"[PAD{i}]", score=0.0, type=kind.UNUSED) for i in range(len(model.pieces), size))]
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([piece.piece for piece in pieces])
    writer.add_token_scores([piece.score for piece in pieces])
    writer.add_token_types([piece.type for piece in pieces])
    writer.add_add_space_prefix(model.normalizer_spec.add_dummy_prefix)
    writer.add_add_bos_token(template is None)  # a template writes bos itself
    if template is not None:
        writer.add_chat_template(template)
