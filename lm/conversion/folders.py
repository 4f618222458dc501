"""Converts folders from and to Hugging Face's format, for `python -m lm.convert`."""

import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from lm import atomic, checkpoint, config, paths, saved, untrusted
from lm.conversion import card, check_family, clip, describe, files, gguf_files, read, tokenizer_files, write
from lm.data import chat, tokenizer_check
from lm.errors import UserError, printable
from lm.models.transformer import abstract_params

ATTRIBUTES = "".join(f"{name} filter=lfs diff=lfs merge=lfs -text\n" for name in ("*.safetensors", "*.model", "tokenizer.json"))
KEPT = ("architectures", "id2label", "label2id", "problem_type")  # in a classifier's config.json: the meaning of its outputs


def _labels(source: saved.Saved) -> dict[str, Any]:
    """What the outputs of a fine-tuned classifier mean, as their config.json says it."""
    recipe = source.run.recipe if source.run else None
    if not (isinstance(recipe, config.Finetune) and recipe.how == "head" and recipe.classes):
        return {}
    return {
        "id2label": {str(i): name for i, name in enumerate(recipe.classes)},
        "label2id": {name: i for i, name in enumerate(recipe.classes)},
    }


def from_hf(given: str, target: str, *, dtype: str | None, scan: bool | None, allow_pickle: bool, drop: str | None) -> str:
    """Converts a Hugging Face folder or a GGUF file to `target`: model.json, params/, and hf/ with config.json and tokenizer.

    Returns a one-line summary. UserError if the source cannot be read or converted, or if the target is not new.
    """
    start, source, new = time.perf_counter(), Path(given).expanduser(), paths.local(target, name="the target")
    if clip.is_one(source):
        return _from_clip(source, new, start, dtype=dtype, scan=scan)
    with atomic.new_folder(new) as folder:
        kept = folder / "hf"
        kept.mkdir()
        file = gguf_files.opened(source) if gguf_files.is_one(source) else None
        carried = file.write_files(kept) if file else files.carry(source, kept)
        if tokenizer := next((name for name in saved.TOKENIZERS if name in carried), None):
            cure = "remove it from the folder to convert only the weights"
            name = str(source / tokenizer) if file is None else f"the tokenizer of {source}"
            tokenizer_check.check((kept / tokenizer).read_bytes(), name=name, cure=cure)
        with _bar("reading") as progress:
            imported = read(
                source, dtype=dtype, scan=scan, allow_pickle=allow_pickle, drop=drop, scratch=folder, progress=progress
            )
        if file:
            atomic.write_json(kept / "config.json", file.settings)
        else:
            (kept / "config.json").write_bytes(untrusted.inside(source, "config.json").read_bytes())
        checkpoint.save_params(folder, imported.model, imported.params)
    for note in imported.notes:
        print(f"note: {printable(note)}", file=sys.stderr)
    return summary(imported.params, f"{imported.family}, {imported.model.param_dtype}", carried, new, start)


def _from_clip(source: Path, new: Path, start: float, *, dtype: str | None, scan: bool | None) -> str:
    """Converts a CLIPModel to two converted models below `new`: `image`, and `text` with the tokenizer."""
    found = clip.read(source, dtype=dtype, scan=scan)
    with atomic.new_folder(new) as folder:
        carried: list[str] = []
        for name, model, part in (("image", found.image, "model"), ("text", found.text, "text")):
            kept = folder / name / "hf"
            kept.mkdir(parents=True)
            carried = files.carry(source, kept) if name == "text" else []
            settings = describe(model, clip.FAMILY_OF[name])[1] | {"model_type": clip.FAMILY_OF[name]}
            atomic.write_json(kept / "config.json", settings)
            checkpoint.save_params(folder / name, model, found.params[part])
    scale = float(np.exp(found.params["log_scale"]))
    about = f"clip, image and text, cosines times {scale:.3g}, {found.image.param_dtype}"
    return summary([found.params["model"], found.params["text"]], about, carried, new, start)


def to_hf(
    given: str,
    target: str,
    *,
    family: str | None,
    shard_gb: float,
    repository: str | None = None,
    licence: str | None = None,
) -> str:
    """Converts a run's workdir or a converted model to a Hugging Face folder. Returns a one-line summary.

    repository: of the hub, for which the folder is made; None: it is loaded as a folder
    licence: what the card names
    """
    start, new = time.perf_counter(), paths.local(target, name="the target")
    shard = shard_gb * 1e9
    if not 1 <= shard < float("inf"):
        raise UserError(f"--shard_gb={shard_gb} must be a finite number above 0")
    if family is not None:
        check_family(family, "--family")
    with ExitStack() as stack:
        folder = stack.enter_context(atomic.new_folder(new))
        source = saved.open(given, name="SRC")
        if source.run is not None and isinstance(source.run.recipe, config.TwoEncoders):
            return _to_clip(source, folder, new, start, shard_bytes=int(shard))
        params = source.params()
        if (source.folder / "hf").exists():
            saved.check_files(source.folder, "hf")
        kept = stack.enter_context(local(source.folder / "hf"))
        also = untrusted.read_json(kept, "config.json") if untrusted.has(kept, "config.json") else {}
        if (family := family or also.get("model_type")) is not None:
            check_family(family, f"model_type of {kept / 'config.json'}")
        with _bar("writing") as progress:
            also = {k: v for k, v in also.items() if k.endswith("token_id") or k in KEPT}
            also |= (ids := tokenizer_files.token_ids(source)) | _labels(source)
            kind = write(source.model, params, folder, family=family, also=also, shard_bytes=int(shard), progress=progress)
        carried = files.carry(kept, folder)
        carried += [name for name in _tokenizer(source, folder, ids) if name not in carried]
        count = sum(leaf.size for leaf in jax.tree.leaves(params))
        settings = untrusted.read_json(folder, "config.json")
        text = card.written(source, settings, count, name=repository or new.name, licence=licence)
        (folder / "README.md").write_text(text, encoding="utf-8")
        if repository:
            (folder / ".gitattributes").write_text(ATTRIBUTES, encoding="utf-8")
    return summary(params, kind, carried, new, start)


def _to_clip(source: saved.Saved, folder: Path, new: Path, start: float, *, shard_bytes: int) -> str:
    """Writes a run of two encoders as a CLIPModel with its tokenizer."""
    assert source.run is not None and isinstance(source.run.recipe, config.TwoEncoders)
    text, scale = source.run.recipe.text, jax.ShapeDtypeStruct((), np.float32)
    target = {"model": abstract_params(source.model), "text": abstract_params(text), "log_scale": scale}
    params = source.params(target)
    clip.write(clip.Clip(source.model, text, params), folder, shard_bytes=shard_bytes)
    carried = _tokenizer(source, folder, tokenizer_files.token_ids(source))
    return summary(params, "clip", carried, new, start)


def _tokenizer(source: saved.Saved, folder: Path, ids: dict[str, int]) -> list[str]:
    """Writes what `tokenizer_files` makes, and the `ids` as generation_config.json; returns the names of the files."""
    made = tokenizer_files.written(source)
    if ids and source.model.decoder is not None:
        made[chat.GENERATION] = json.dumps(ids, indent=2).encode()
    for name, data in made.items():
        (folder / name).write_bytes(data)
    return list(made)


@contextmanager
def _bar(about: str) -> Generator[Callable[[int, int], None]]:
    """Shows a progress bar on a terminal. Yields `progress(done, total)`, in bytes."""
    columns = (TextColumn(about), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(about, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def local(folder: epath.Path) -> Generator[Path]:
    """Yields a local path of the folder: its own, or that of a temporary copy if it is in a bucket."""
    if not str(folder).startswith("gs://"):
        yield Path(folder)
        return
    with tempfile.TemporaryDirectory(prefix="lm-convert-") as copy:
        for path in folder.iterdir() if folder.exists() else []:
            (Path(copy) / path.name).write_bytes(path.read_bytes())
        yield Path(copy)


def summary(params: Any, about: str, carried: list[str], target: Path, start: float) -> str:
    """One line with the parameters' number and size, copied files, seconds since `start` and the process's peak memory."""
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    tokenizer = f"; with {', '.join(carried)}" if carried else ""
    return (
        f"{target}: {about}, {count:,} parameters, {size / 1e9:.2f} GB{tokenizer}; "
        f"{time.perf_counter() - start:.1f} s, peak memory {peak / 1e9:.2f} GB"
    )
