"""What a teacher predicts in the rows of a run, computed once: its likeliest tokens, which later runs read without it.

Row i of a run is a function of its seed, its data and i alone, noise and all, so that this holds for every objective. A folder
below `data.cache` has the teacher's predictions in rows 0 .. N - 1, named after the digest of the teacher's files, of the data,
and of all settings that rows and predictions depend on:

    log_probs.npy  float32 [N, P, K + 1]       the K likeliest tokens, and the mass of all others (`lm.losses.distill.TopK`)
    ids.npy        uint16 or uint32 [N, P, K]
    rows.npy       uint64 [N]                  a digest of each row, so that a row is never read with another's predictions
    report.json    {"about": what the name is the digest of, "files": {name: SHA-256}}
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath
from flax import struct

from lm import atomic, config, integrity, paths, untrusted
from lm.config import resolve
from lm.data.corpus.stages import Progress
from lm.data.rows import blank
from lm.errors import UserError
from lm.losses.distill import TopK
from lm.objectives import Lengths
from lm.types import Array, Example

ARRAYS, REPORT = ("log_probs", "ids", "rows"), "report.json"
# Settings of a recipe that rows and predictions depend on.
READ = ("top_k", "temperature", "everywhere", "length", "answer", "prefix", "teacher_sha256")


@struct.dataclass
class Taught:
    """Rows with what a teacher predicts there."""

    example: Example
    known: TopK  # arrays [B, P, ...]

    def tokens_read(self) -> Array:
        return self.example.tokens_read()

    def tokens_asked(self) -> Array:
        return self.example.tokens_asked()


def example_of(batch: Any) -> Example:
    return batch.example if isinstance(batch, Taught) else batch


def blank_row(lengths: Lengths, k: int, vocab_size: int, *, everywhere: bool) -> Taught:
    """A row of padding, as host arrays."""
    example, size = blank(lengths), min(k + 1, vocab_size)
    stream: Any = example.decoder or example.encoder
    count = len(stream.tokens if everywhere else example.targets)
    return Taught(example, TopK(np.zeros((count, size), np.float32), np.zeros((count, k), np.int32)))


@dataclass(frozen=True)
class Kept:
    """An open folder. Arrays are read from disk as they are needed."""

    folder: Path
    log_probs: np.ndarray
    ids: np.ndarray
    rows: np.ndarray

    def batch(self, rows: Any, index: np.ndarray) -> Taught:
        """Rows `index` of `rows`, with what the teacher predicts there. UserError for rows that it has not read."""
        if len(index) and int(np.max(index)) >= len(self.rows):
            raise UserError(
                f"{self.folder} has {len(self.rows)} rows, and the run reads row {int(np.max(index))}: leave recipe.top_k out, "
                "or give train.batch_size and train.steps as they were"
            )
        example = rows.rows(index)
        if not np.array_equal(_digests(example), self.rows[index]):
            raise UserError(f"{self.folder} is of other rows than those of this run: remove it, and it is made anew")
        return Taught(example, TopK(np.array(self.log_probs[index]), self.ids[index].astype(np.int32)))


def kept(
    run: config.Run,
    rows: Any,
    predict: Callable[[], Callable[[np.ndarray], TopK]],
    *,
    fingerprint: str,
    progress: bool,
) -> Kept:
    """Opens the folder of a run, and makes it first if it is not there. `predict()` loads the teacher and returns a function
    from numbers of rows to its predictions; `fingerprint` is that of the data. Of two processes that need the same folder, one
    waits for the other."""
    from filelock import FileLock

    about = _about(run, fingerprint)
    name = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
    folder = paths.local(run.data.cache, name="data.cache") / f"teacher-{name[:40]}"
    if not folder.exists():
        if jax.process_count() > 1:
            raise UserError(
                "what the teacher predicts is computed by one process, in a folder that all read: run python -m lm.prepare "
                "with this config first, and give data.cache on a disk that they share"
            )
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f".{folder.name}.lock")):
            if not folder.exists():  # another process may have made it while this one waited
                ids = "uint16" if run.model.vocab_size <= 2**16 else "uint32"
                with atomic.new_folder(folder) as new, Progress(progress) as bar:
                    _write(new, about, rows, predict(), run.train.batch_size, bar, ids)
    return _open(folder)


def _about(run: config.Run, fingerprint: str) -> dict[str, Any]:
    tree, recipe = resolve.to_dict(run), run.recipe
    data = {name: value for name, value in tree["data"].items() if name != "cache"}
    settings = {name: getattr(recipe, name) for name in READ}
    about = {"format": 1, "data": data, "contents": fingerprint, "objective": tree["objective"], "recipe": settings}
    return about | {"seed": run.train.seed, "rows": run.train.steps * run.train.batch_size, "of": run.model.architecture}


def _write(
    folder: Path, about: dict[str, Any], rows: Any, predict: Callable[[np.ndarray], TopK], size: int, bar: Progress, ids: str
) -> None:
    arrays, dtypes = dict[str, Any](), {"log_probs": "float32", "ids": ids, "rows": "uint64"}
    for first in bar.track(range(0, about["rows"], size), "the teacher reads", total=about["rows"] // size):
        index = np.arange(first, first + size)
        known = jax.tree.map(np.asarray, predict(index))
        found = {"log_probs": known.log_probs, "ids": known.ids, "rows": _digests(rows.rows(index))}
        if not arrays:
            arrays = {
                name: np.lib.format.open_memmap(
                    folder / f"{name}.npy", mode="w+", dtype=dtypes[name], shape=(about["rows"], *x.shape[1:])
                )
                for name, x in found.items()
            }
        for name, x in found.items():
            arrays[name][first : first + size] = x
    for array in arrays.values():
        array.flush()
    files = integrity.digests(epath.Path(folder), [f"{name}.npy" for name in ARRAYS])
    atomic.write_json(folder / REPORT, {"about": about, "files": files})


def _open(folder: Path) -> Kept:
    again = f"remove the folder {folder}, and it is made anew"
    try:
        files = untrusted.read_json(folder, REPORT)["files"]
        found = integrity.digests(epath.Path(folder), [f"{name}.npy" for name in ARRAYS])
        if bad := [name for name in found if found[name] != files.get(name)]:
            raise UserError(f"{folder / bad[0]} was changed or cut short: {again}")
        return Kept(folder, *(np.load(folder / f"{name}.npy", mmap_mode="r") for name in ARRAYS))
    except (OSError, KeyError) as error:
        raise UserError(f"{folder} cannot be read ({error}): {again}") from None


def _digests(example: Example) -> np.ndarray:
    """uint64 [B]: of all arrays of each row."""
    leaves = [np.ascontiguousarray(x) for x in jax.tree.leaves(example)]
    digest = lambda i: hashlib.blake2b(b"".join(x[i].tobytes() for x in leaves), digest_size=8).digest()
    return np.array([int.from_bytes(digest(i), "little") for i in range(len(leaves[0]))], np.uint64)
