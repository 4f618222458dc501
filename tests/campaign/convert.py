"""Hostile and broken folders for `python -m lm.convert from_hf`."""

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.campaign.bench import Bench, Injection, refused

WEIGHTS = "model.safetensors"


def _theirs(bench: Bench) -> Path:
    """A small LLaMA as transformers saves it."""
    source = bench.root / "llama"
    if not source.exists():
        import jax
        from flax import linen as nn

        from lm import conversion
        from lm.config import Attention, Block, Head, Mlp, Model, Norm, Rope, Stack
        from lm.models.transformer import abstract_params

        block = Block(Attention(4, 2), Mlp(48, "silu", gated=True), Norm("rms", eps=1e-6))
        model = Model(50, 32, decoder=Stack(2, {"L": block}, position=Rope()), head=Head(tied=False))
        rng = np.random.default_rng(0)
        params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), nn.unbox(abstract_params(model)))
        conversion.write(model, params, source)
    copy = bench.folder()
    shutil.copytree(source, copy)
    return copy


def _config(**change: object) -> Callable[[Path], None]:
    def harm(folder: Path) -> None:
        said = json.loads((folder / "config.json").read_text()) | change
        (folder / "config.json").write_text(json.dumps({k: v for k, v in said.items() if v != "DROP"}))

    return harm


def _index(file: str) -> Callable[[Path], None]:
    """An index that maps all tensors to `file`."""

    def harm(folder: Path) -> None:
        names = [name for name in _header(folder / WEIGHTS)[0] if name != "__metadata__"]
        (folder / WEIGHTS).rename(folder.with_name("outside.safetensors"))
        (folder / "model.safetensors.index.json").write_text(
            json.dumps({"weight_map": {name: file.format(folder.parent) for name in names}})
        )

    return harm


def _header(path: Path) -> tuple[dict, bytes]:
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def _rewrite(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def harm(folder: Path) -> None:
        header, body = _header(folder / WEIGHTS)
        change(header)
        raw = json.dumps(header).encode()
        (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(raw)) + raw + body)

    return harm


def _first(header: dict) -> dict:
    return header[next(name for name in sorted(header) if name.endswith("q_proj.weight"))]


def _as(dtype: str, width: int) -> Callable[[dict], None]:
    """Declares one tensor as a dtype of `width` bytes, with the number of entries that fits its bytes."""

    def change(header: dict) -> None:
        tensor = _first(header)
        tensor["dtype"] = dtype
        if width < 4:
            tensor["shape"][-1] *= 4 // width

    return change


def _two_shards(folder: Path) -> None:
    shutil.copy(folder / WEIGHTS, folder / "model-00001-of-00002.safetensors")
    (folder / WEIGHTS).rename(folder / "model-00002-of-00002.safetensors")


def _broken_index(folder: Path) -> None:
    _two_shards(folder)
    (folder / "model.safetensors.index.json").write_text("{")


def _fifo(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    os.mkfifo(folder / WEIGHTS)


def _linked(folder: Path) -> None:
    (folder / "tokenizer.json").symlink_to("/etc/passwd")


def _tokenizer(tree: object) -> Callable[[Path], object]:
    return lambda folder: (folder / "tokenizer.json").write_text(json.dumps(tree))


def _refuses(title: str, harm: Callable[[Path], object], cause: str, *flags: str) -> Injection:
    def run(bench: Bench) -> str:
        source = _theirs(bench)
        harm(source)
        target = source.with_name("ours")
        seen = refused(bench.call("lm.convert", "from_hf", str(source), str(target), *flags), cause)
        assert not target.exists(), "half a model is left behind"
        return seen

    return Injection("conversion", title, run)


def _passwd(bench: Bench) -> str:
    source = _theirs(bench)
    _linked(source)
    target = source.with_name("ours")
    said = bench.call("lm.convert", "from_hf", str(source), str(target))
    copied = (
        [p for p in target.rglob("*") if p.is_file() and "root:" in p.read_text(errors="replace")] if target.exists() else []
    )
    assert not copied, "/etc/passwd was copied"
    return refused(said, "tokenizer.json") if said.code else "left out"


def _cut_and_tried_again(bench: Bench) -> str:
    source = _theirs(bench)
    data = (source / WEIGHTS).read_bytes()
    (source / WEIGHTS).write_bytes(data[:-100])
    target = source.with_name("ours")
    seen = refused(bench.call("lm.convert", "from_hf", str(source), str(target)), WEIGHTS)
    (source / WEIGHTS).write_bytes(data)
    assert bench.call("lm.convert", "from_hf", str(source), str(target)).code == 0, "the mended folder is refused"
    victim = target / "model.json"
    victim.write_text(victim.read_text().replace("32", "33", 1))
    again = bench.call("lm.convert", "to_hf", str(target), str(source.with_name("back")))
    return f"{seen[:60]}; mended it converts; a changed model.json: {refused(again, 'model.json')[:60]}"


DEEP = '{"a":' * 50_000 + "1" + "}" * 50_000
INJECTIONS = [
    _refuses("config.json: not JSON", lambda f: (f / "config.json").write_text("{"), "config.json"),
    _refuses("config.json: a list", lambda f: (f / "config.json").write_text("[]"), "config.json"),
    _refuses("config.json: bytes", lambda f: (f / "config.json").write_bytes(b"\xff\xfe{"), "config.json"),
    _refuses("config.json: nested 50,000 deep", lambda f: (f / "config.json").write_text(DEEP), "config.json"),
    _refuses("config.json: rms_norm_eps NaN", _config(rms_norm_eps=float("nan")), "NaN|rms_norm_eps"),
    _refuses("config.json: no heads", _config(num_attention_heads=0), "num_attention_heads"),
    _refuses("config.json: a thousand million layers", _config(num_hidden_layers=10**9), "layers"),
    _refuses("config.json: layers of text", _config(num_hidden_layers="two"), "num_hidden_layers"),
    _refuses("config.json: an unknown attribute", _config(rope_twist=3), "rope_twist"),
    _refuses("config.json: an unknown type", _config(model_type="lama"), "lama"),
    _refuses("config.json: no type", _config(model_type="DROP"), "model_type"),
    _refuses("an index that leaves the folder", _index("../outside.safetensors"), "outside"),
    _refuses("an index with an absolute name", _index("{}/outside.safetensors"), "outside"),
    _refuses("an index whose file is gone", _index("gone.safetensors"), "gone.safetensors"),
    _refuses("an index that is no JSON", _broken_index, "index.json"),
    _refuses("weights that are a pipe", _fifo, WEIGHTS),
    _refuses("weights cut short", lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:-100]), WEIGHTS),
    _refuses("weights with a header of 2**60 bytes", lambda f: (f / WEIGHTS).write_bytes(struct.pack("<Q", 2**60)), WEIGHTS),
    _refuses("a tensor in two files", _two_shards, "00001.*00002|00002.*00001"),
    _refuses("a tensor of int32", _rewrite(_as("I32", 4)), "q_proj"),
    _refuses("a tensor of bool", _rewrite(_as("BOOL", 1)), "q_proj"),
    _refuses("a tensor of float8", _rewrite(_as("F8_E4M3", 1)), "q_proj"),
    _refuses("--drop that is no expression", lambda f: None, "drop", "--drop=("),
    _refuses("--drop of what is needed", lambda f: None, "missing", "--drop=.*q_proj.*"),
    _refuses("tokenizer.json with an id of 2**32", _tokenizer(
        {"model": {"type": "WordLevel", "vocab": {"a": 2**32 - 2}, "unk_token": "a"}, "added_tokens": []}), "tokenizer.json"),
    _refuses("tokenizer.json that is no JSON", lambda f: (f / "tokenizer.json").write_text("{"), "tokenizer.json"),
    Injection("conversion", "a tokenizer.json that is a link to /etc/passwd", _passwd),
    Injection("conversion", "cut short, mended, tried again; model.json changed", _cut_and_tried_again),
]  # fmt: skip
