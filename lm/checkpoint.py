"""Checkpoints: written and read by Orbax, and checked here to be intact, that is, complete and unchanged.

A step's directory holds `state`, `config`, `tokenizer`, `progress` (the number of rows read, and the losses that are not in the
log yet) and `SHA256.json`, a digest of every file (`lm/integrity.py`). The digests are written before the directory gets its
final name, so a kill at any moment leaves either an intact checkpoint or one that is never read. Steps are ordered by number.
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

MODEL = "model.json"  # of a converted model
GOES_ON = "earlier checkpoints are intact. Free some space and start again: the run goes on where it was saved"
FULL = (errno.ENOSPC, errno.EDQUOT)
STATUS = re.compile(r"[A-Z]+(_[A-Z]+)*: ")  # what TensorStore's ValueErrors begin with, such as "PERMISSION_DENIED: "
STEP = re.compile("0|[1-9][0-9]*")  # the name of a step's directory


def _write_digests(path: atomicity.TemporaryPathBase) -> None:
    if path.get_final().name.isdigit():  # a step, not one of its items, which Orbax finalizes in the same way before it
        integrity.write(path.get(), step=int(path.get_final().name))


class _Renamed(atomicity.AtomicRenameTemporaryPath):
    """On a file system, Orbax renames a temporary directory when it is complete. This writes the digests into it first."""

    async def finalize(self) -> None:
        _write_digests(self)
        await super().finalize()


class _Marked(atomicity.CommitFileTemporaryPath):
    """A bucket cannot rename: Orbax writes a last file when the rest is complete. This writes the digests before it."""

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
        distributed.barrier("checkpoints")  # the other hosts read the directory only after it was tidied
        self._saved: int | None = None  # the step whose save was started and not yet waited for
        policies = checkpoint_managers
        keep: list[Any] = [policies.LatestN(c.keep)]
        # Orbax takes NaN for the smallest loss. `save` passes none, but older versions did.
        loss = lambda metrics: metrics["loss"] if math.isfinite(metrics["loss"]) else math.inf
        if c.keep_best:
            keep.append(policies.BestN(get_metric_fn=loss, reverse=True, n=1, keep_checkpoints_without_metrics=False))
        in_bucket = str(self.directory).startswith("gs://")
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policies.AnyPreservationPolicy(keep),
                best_fn=loss,  # without it Orbax writes no metrics, and after a restart no checkpoint is the best
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
        """Starts to save; the arrays may change as soon as this returns. UserError if the previous save failed.

        `metrics`: `{"loss": nats}`, the held-out loss that decides which checkpoint is the best; ignored if not finite.
        `progress`: whatever else a restart needs, as JSON; `saved_progress` returns it.
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
            raise _save_error(error, self.directory, GOES_ON) from error
        self._saved = step

    def wait(self) -> None:
        """Waits until the save that was started is on disk. UserError where it failed."""
        saved, self._saved = self._saved, None  # an error is raised once
        try:
            self._manager.wait_until_finished()
        except (OSError, ValueError) as error:
            raise _save_error(error, self.directory, GOES_ON) from error
        if (
            saved is not None
            and distributed.is_main_process()
            and not (self.directory / str(saved) / integrity.DIGESTS).exists()
        ):
            raise UserError(f"step {saved} was saved without an error, and is not in {self.directory}: give another --workdir")

    def close(self) -> None:
        self._manager.close()

    def steps(self) -> list[int]:
        return sorted(self._manager.all_steps())

    def latest_intact(self) -> int | None:
        """The latest step that is intact, or None for a new run. Later steps are moved to `damaged/`, with a warning. Host 0
        finds the step and tells the others."""
        distributed.barrier("restore")
        found = distributed.broadcast(self._latest_intact() if distributed.is_main_process() else None)
        if not distributed.is_main_process():
            self._manager.reload()
        return found

    def _latest_intact(self) -> int | None:
        if not self.steps():
            return None
        # If no step is intact, this raises and moves nothing: hours of training are not repeated without asking.
        step, faults = integrity.latest(self.directory, self.steps(), cure="begin anew in another --workdir")
        for damaged, fault in faults.items():
            path = self.directory / str(damaged)
            aside = atomic.put_aside(path, self.directory.parent / "damaged")
            text = f"checkpoint {path} is damaged: {fault}. Moved to {aside}; using the step before"
            warnings.warn(printable(text), stacklevel=2)
        if faults:
            self._manager.reload()
        return step

    def _put_side_files_aside(self) -> None:
        """Moves damaged metrics and metadata to `damaged/`, since Orbax reads them before the steps are checked, and files that
        stand where a directory belongs. A checkpoint without its metrics is still usable, but never counts as the best."""
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
            warnings.warn(printable(f"{path} is damaged; moved to {aside}, the run goes on without it"), stacklevel=2)

    def saved_run(self, step: int) -> tuple[config.Run, bytes, str]:
        """The config, the tokenizer and the data's fingerprint that a checkpoint was saved with."""
        items = ocp.args.Composite(config=ocp.args.JsonRestore(), tokenizer=ocp.args.JsonRestore())
        saved: Any = self._manager.restore(step, args=items)
        return (
            resolve.build(config.Run, saved.config),
            base64.b64decode(saved.tokenizer["sentencepiece"]),
            saved.tokenizer["data"],
        )

    def saved_progress(self, step: int) -> dict[str, Any]:
        """The `progress` that a checkpoint was saved with; empty for checkpoints of earlier versions."""
        if not (self.directory / str(step) / "progress").exists():
            return {}
        saved: Any = self._manager.restore(step, args=ocp.args.Composite(progress=ocp.args.JsonRestore()))
        return saved.progress

    def restore(self, step: int, target: TrainState) -> TrainState:
        """The state of a step in the shardings of `target` (abstract). UserError where a shape or dtype differs."""
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
        """UserError unless there is room for the state. Older checkpoints are deleted only after the new one is complete."""
        _check_free(self.directory, state, GOES_ON, margin=1.1)


class _InTurn(ocp.type_handlers.NumpyHandler):
    """Orbax copies all NumPy arrays and compresses them at the same time, which takes the memory of three models. This copies
    none and compresses one after the other."""

    def __init__(self):
        super().__init__(deepcopy_host_arrays=False)

    async def serialize(self, values: Any, infos: Any, args: Any = None) -> list[Any]:
        for value, info, arg in zip(values, infos, args or [ocp.SaveArgs()] * len(values), strict=True):
            for written in await super().serialize([value], [info], [arg]):
                await asyncio.to_thread(written.result)
        return []  # there are no futures left to wait for


def save_params(directory: str | Path, model: config.Model, params: Any) -> None:
    """Saves a model without a run: `params/`, `SHA256.json` with a digest of every file in the folder, also of those that were
    there before, and `model.json`. The latter is written last, so a folder without it is an unfinished conversion."""
    path = epath.Path(paths.local(str(directory), name="the model's folder"))
    path.mkdir(parents=True, exist_ok=True)
    cure = "free some, or give another folder, and convert it again"
    _check_free(path, params, cure)
    try:
        registry = ocp.type_handlers.create_type_handler_registry(
            (np.ndarray, _InTurn()), (jax.Array, ocp.type_handlers.ArrayHandler())
        )
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(type_handler_registry=registry)) as checkpointer:
            checkpointer.save(path / "params", args=ocp.args.PyTreeSave(params), force=True)
        text = json.dumps(resolve.to_dict(model), indent=1) + "\n"
        listing = integrity.digests(path) | {MODEL: hashlib.sha256(text.encode()).hexdigest()}
        if fault := integrity.lacks_arrays(listing):
            raise OSError(f"the save of {path} is not complete: {fault}")
        (path / integrity.DIGESTS).write_text(json.dumps(listing, indent=1), encoding="utf-8")
        (path / MODEL).write_text(text, encoding="utf-8")
    except (OSError, ValueError) as error:
        raise _save_error(error, path, cure) from error


def _is_json(path: epath.Path, **types: tuple[type, ...]) -> bool:
    """Whether a file holds a JSON object with these keys and types of values."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and all(isinstance(found.get(name), kinds) for name, kinds in types.items())


def _check_free(directory: epath.Path, tree: Any, cure: str, margin: float = 1.0) -> None:
    """UserError unless the file system has `margin` times the space that these arrays need."""
    if str(directory).startswith("gs://"):
        return
    needed = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))
    free = shutil.disk_usage(directory).free
    if free < needed * margin:
        raise _no_space(directory, f"a save takes {needed / 1e6:.1f} MB and {free / 1e6:.1f} MB are free", cure)


def _no_space(directory: epath.Path, cause: str, cure: str) -> UserError:
    return UserError(f"no disk space in {directory}: {cause}; {cure}")


def _save_error(error: Exception, directory: epath.Path, cure: str) -> Exception:
    text = " ".join(str(error).split())
    if len(text) > 300:  # names of files stand first, the cause last
        text = f"{text[:100]} ... {text[-200:]}"
    if "RESOURCE_EXHAUSTED" in text or "No space left" in text or getattr(error, "errno", None) in FULL:
        return _no_space(directory, text, cure)
    if "File too large" in text or getattr(error, "errno", None) == errno.EFBIG:
        return UserError(
            f"cannot save in {directory}: a file grew past the limit of this shell; raise it (ulimit -f) and start again"
        )
    if isinstance(error, OSError) or STATUS.match(text):
        return UserError(
            f"cannot save in {directory}: {text}; mend that and start again: nothing that was saved before is lost"
        )
    return error
