"""Checkpoints of runs, written and read by Orbax, and checked here to be complete and unchanged ("intact").

A step's directory holds `state`, `config`, `tokenizer`, `progress` (the number of rows read, and the losses not logged yet)
and `SHA256.json`, a digest of every file (`lm/integrity.py`). The digests are written before the directory gets its final
name, so a kill at any moment leaves either an intact checkpoint or one that is never read. Steps are ordered by number.
"""

import asyncio
import base64
import errno
import hashlib
import json
import math
import re
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers
from orbax.checkpoint.path import atomicity

from lm import atomic, config, distributed, integrity, layout, paths
from lm.config import resolve
from lm.errors import UserError, printable
from lm.types import TrainState

MODEL = "model.json"  # the model's config in the folder of a converted model
RESUMES = "earlier checkpoints are intact. Free some space and start again: the run resumes from its last checkpoint"
FULL = (errno.ENOSPC, errno.EDQUOT)
STATUS = re.compile(r"[A-Z]+(_[A-Z]+)*: ")  # how TensorStore's ValueErrors begin, such as "PERMISSION_DENIED: "
STEP = re.compile("0|[1-9][0-9]*")  # the name of a step's directory


def _write_digests(path: atomicity.TemporaryPathBase) -> None:
    if path.get_final().name.isdigit():  # a step: Orbax finalizes each of its items in the same way first
        integrity.write(path.get(), step=int(path.get_final().name))


class _Renamed(atomicity.AtomicRenameTemporaryPath):
    """Writes the digests before Orbax renames a complete temporary directory, which is how it commits on a file system."""

    async def finalize(self) -> None:
        _write_digests(self)
        await super().finalize()


class _Marked(atomicity.CommitFileTemporaryPath):
    """Writes the digests before Orbax writes its commit file, which it does in a bucket, where nothing can be renamed."""

    async def finalize(self) -> None:
        _write_digests(self)
        await super().finalize()


class Checkpoints:
    """The checkpoints of one run, in `<workdir>/checkpoints/<step>`."""

    def __init__(self, workdir: epath.PathLike, c: config.Checkpoint, run: config.Run, tokenizer: bytes, data: str = ""):
        self.directory = epath.Path(workdir).resolve() / "checkpoints"
        self.run, self.tokenizer, self.data = run, tokenizer, data
        if distributed.is_main_process():
            self._put_side_files_aside()
        distributed.barrier("checkpoints")  # other hosts read the directory only once damaged files are moved
        self._saved: int | None = None  # the step of the save in progress
        policies = checkpoint_managers
        keep: list[Any] = [policies.LatestN(c.keep)]
        # Orbax treats NaN as the smallest loss. `save` never passes NaN, but older versions did.
        loss = lambda metrics: metrics["loss"] if math.isfinite(metrics["loss"]) else math.inf
        if c.keep_best:
            keep.append(policies.BestN(get_metric_fn=loss, reverse=True, n=1, keep_checkpoints_without_metrics=False))
        in_bucket = str(self.directory).startswith("gs://")
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policies.AnyPreservationPolicy(keep),
                best_fn=loss,  # without it Orbax writes no metrics, and a restart forgets which checkpoint is the best
                best_mode="min",
                cleanup_tmp_directories=True,
                temporary_path_class=_Marked if in_bucket else _Renamed,
            ),
            item_handlers={
                "state": ocp.StandardCheckpointHandler(),
                "config": ocp.JsonCheckpointHandler(),
                "tokenizer": ocp.JsonCheckpointHandler(),
                "progress": ocp.JsonCheckpointHandler(),
            },
        )

    def save(
        self, state: TrainState, metrics: dict[str, float] | None = None, *, progress: Mapping[str, Any] | None = None
    ) -> None:
        """Starts an asynchronous save; the arrays may be overwritten once this returns. UserError if the previous save failed.

        `metrics`: `{"loss": nats}`, the held-out loss that decides which checkpoint is the best; ignored if not finite.
        `progress`: other JSON values that a restart needs; `saved_progress` returns them.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        if metrics is not None and not all(map(math.isfinite, metrics.values())):
            metrics = None
        self._check_room(state)
        self.wait()
        distributed.barrier(f"save of step {step}")
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            config=ocp.args.JsonSave(resolve.to_dict(self.run)),
            tokenizer=ocp.args.JsonSave({"sentencepiece": base64.b64encode(self.tokenizer).decode(), "data": self.data}),
            progress=ocp.args.JsonSave(atomic.strict(progress or {})),
        )
        try:
            self._manager.save(step, args=items, metrics=metrics)
        except (OSError, ValueError) as error:
            raise _save_error(error, self.directory, RESUMES) from error
        self._saved = step

    def wait(self) -> None:
        """Waits until the save in progress is on disk. UserError if it failed."""
        saved, self._saved = self._saved, None  # cleared first, so that an error is raised once only
        try:
            self._manager.wait_until_finished()
        except (OSError, ValueError) as error:
            raise _save_error(error, self.directory, RESUMES) from error
        if (
            saved is not None
            and distributed.is_main_process()
            and not (self.directory / str(saved) / integrity.DIGESTS).exists()
        ):
            raise UserError(f"step {saved} was saved without an error, but is not in {self.directory}: give another --workdir")

    def close(self) -> None:
        self._manager.close()

    def steps(self) -> list[int]:
        """The saved steps in ascending order, intact or not."""
        return sorted(self._manager.all_steps())

    def latest_intact(self) -> int | None:
        """Returns the latest intact step, or None for a new run. Later steps are moved to `damaged/`, with a warning.

        Host 0 checks the steps and broadcasts the result. UserError if there are steps and none is intact.
        """
        distributed.barrier("restore")
        found = distributed.broadcast(self._latest_intact() if distributed.is_main_process() else None)
        if not distributed.is_main_process():
            self._manager.reload()
        return found

    def _latest_intact(self) -> int | None:
        if not self.steps():
            return None
        # If no step is intact, this raises and moves nothing: training does not silently restart from step 0.
        step, faults = integrity.latest(self.directory, self.steps(), cure="start from the beginning in another --workdir")
        for damaged, fault in faults.items():
            path = self.directory / str(damaged)
            aside = atomic.put_aside(path, self.directory.parent / "damaged")
            text = f"checkpoint {path} is damaged: {fault}. Moved to {aside}; using the step before"
            warnings.warn(printable(text), stacklevel=2)
        if faults:
            self._manager.reload()
        return step

    def _put_side_files_aside(self) -> None:
        """Moves damaged metrics and metadata to `damaged/`, with a warning, because Orbax reads them before the steps are
        checked; also files in place of directories. A checkpoint without metrics is usable, but never counts as the best."""
        damaged: dict[str, epath.Path] = {}  # new name -> path
        if self.directory.exists() and not self.directory.is_dir():
            damaged["checkpoints"] = self.directory
        for step in self.directory.iterdir() if self.directory.is_dir() else []:
            if not STEP.fullmatch(step.name):
                continue
            metrics, about = step / "metrics", step / "_CHECKPOINT_METADATA"
            if not step.is_dir():
                damaged[step.name] = step
            readable = not (metrics / "metrics").exists() or _is_json(metrics / "metrics", loss=(int, float))
            if not readable or integrity.changed(step, f"{integrity.SIDE}/metrics"):
                damaged[f"{step.name}.metrics"] = metrics
            if about.exists() and not _is_json(about):
                damaged[f"{step.name}.metadata"] = about
        for name, path in damaged.items():
            aside = atomic.put_aside(path, self.directory.parent / "damaged", name=name)
            warnings.warn(printable(f"{path} is damaged; moved to {aside}; the run continues without it"), stacklevel=2)

    def saved_run(self, step: int) -> tuple[config.Run, bytes, str]:
        """Returns the config, the tokenizer file and the fingerprint of the data of a saved step."""
        items = ocp.args.Composite(config=ocp.args.JsonRestore(), tokenizer=ocp.args.JsonRestore())
        saved: Any = self._manager.restore(step, args=items)
        return (
            resolve.build_saved(config.Run, saved.config),
            base64.b64decode(saved.tokenizer["sentencepiece"]),
            saved.tokenizer["data"],
        )

    def saved_progress(self, step: int) -> dict[str, Any]:
        """Returns the `progress` of a saved step; empty for checkpoints of versions that saved none."""
        if not (self.directory / str(step) / "progress").exists():
            return {}
        saved: Any = self._manager.restore(step, args=ocp.args.Composite(progress=ocp.args.JsonRestore()))
        return saved.progress

    def restore(self, step: int, target: TrainState) -> TrainState:
        """Returns a saved state in the shardings of `target` (abstract). UserError if names, shapes or dtypes differ."""
        saved = layout.described(self._manager.item_metadata(step)["state"])
        first = layout.is_first(saved, self.directory / str(step))
        if wrong := layout.differences(saved, layout.described(target)):
            raise UserError(
                f"checkpoint {self.directory / str(step)} is of another model or optimizer: {wrong}. "
                "Use the config it was made with, or another --workdir"
            )
        item = layout.to_first(target) if first else target
        restored: Any = self._manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(item)))
        if int(restored.state.step) != step:  # SHA256.json of earlier versions does not name the step
            raise UserError(
                f"checkpoint {self.directory / str(step)} is step {int(restored.state.step)}, and was renamed: rename it back, "
                "or move it away"
            )
        return layout.to_current(restored.state) if first else restored.state

    def _check_room(self, state: TrainState) -> None:
        """UserError unless the state fits on the disk. Older checkpoints are deleted only after the new one is complete."""
        _check_free(self.directory, state, RESUMES, margin=1.1)


class _SequentialHandler(ocp.type_handlers.NumpyHandler):
    """Writes NumPy arrays one after the other, without copying them. Orbax's handler copies all and compresses them
    concurrently, which takes three times the memory of the model."""

    def __init__(self):
        super().__init__(deepcopy_host_arrays=False)

    async def serialize(self, values: Any, infos: Any, args: Any = None) -> list[Any]:
        for value, info, arg in zip(values, infos, args or [ocp.SaveArgs()] * len(values), strict=True):
            for written in await super().serialize([value], [info], [arg]):
                await asyncio.to_thread(written.result)
        return []  # no futures: all are written


def save_params(directory: str | Path, model: config.Model, params: Any) -> None:
    """Saves a model without a run: `params/`, `SHA256.json` and `model.json`. UserError if the disk is full or refuses.

    SHA256.json has a digest of every file in the folder, including those that were there before. model.json is written last,
    so a folder without it is an unfinished conversion.
    """
    path = epath.Path(paths.local(str(directory), name="the model's folder"))
    path.mkdir(parents=True, exist_ok=True)
    cure = "free some space, or give another folder, and convert it again"
    _check_free(path, params, cure)
    try:
        registry = ocp.type_handlers.create_type_handler_registry(
            (np.ndarray, _SequentialHandler()), (jax.Array, ocp.type_handlers.ArrayHandler())
        )
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(type_handler_registry=registry)) as checkpointer:
            checkpointer.save(path / "params", args=ocp.args.PyTreeSave(params), force=True)
        text = json.dumps(resolve.to_dict(model), indent=1) + "\n"
        listing = integrity.digests(path) | {MODEL: hashlib.sha256(text.encode()).hexdigest()}
        if fault := integrity.lacks_arrays(listing):
            raise OSError(f"the save of {path} is incomplete: {fault}")
        (path / integrity.DIGESTS).write_text(json.dumps(listing, indent=1), encoding="utf-8")
        (path / MODEL).write_text(text, encoding="utf-8")
    except (OSError, ValueError) as error:
        raise _save_error(error, path, cure) from error


def _is_json(path: epath.Path, **types: tuple[type, ...]) -> bool:
    """Whether a file contains a JSON object that has these keys with values of these types."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and all(isinstance(found.get(name), kinds) for name, kinds in types.items())


def _check_free(directory: epath.Path, tree: Any, cure: str, margin: float = 1.0) -> None:
    """UserError unless the file system has `margin` times the free space that the arrays of `tree` need."""
    if str(directory).startswith("gs://"):
        return
    needed = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))
    free = shutil.disk_usage(directory).free
    if free < needed * margin:
        raise _no_space(directory, f"a save takes {needed / 1e6:.1f} MB and {free / 1e6:.1f} MB are free", cure)


def _no_space(directory: epath.Path, cause: str, cure: str) -> UserError:
    return UserError(f"no disk space in {directory}: {cause}; {cure}")


def _save_error(error: Exception, directory: epath.Path, cure: str) -> Exception:
    """Returns the UserError for a failed save, or `error` itself if it does not come from the file system."""
    text = " ".join(str(error).split())
    if len(text) > 300:  # file names come first, the cause last
        text = f"{text[:100]} ... {text[-200:]}"
    if "RESOURCE_EXHAUSTED" in text or "No space left" in text or getattr(error, "errno", None) in FULL:
        return _no_space(directory, text, cure)
    if "File too large" in text or getattr(error, "errno", None) == errno.EFBIG:
        return UserError(
            f"cannot save in {directory}: a file exceeds this shell's size limit; raise it (ulimit -f) and start again"
        )
    if isinstance(error, OSError) or STATUS.match(text):
        return UserError(f"cannot save in {directory}: {text}; fix that and start again: earlier checkpoints are not lost")
    return error
