"""The state that a process begins with: new parameters, those of another model, or a checkpoint of the same run."""

from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from lm import config, saved, sharding
from lm.checkpoint import Checkpoints
from lm.config import resolve
from lm.data.corpus.prepare import Prepared
from lm.data.loader import Position
from lm.data.tokenizer import Tokenizer
from lm.errors import UserError
from lm.training import adapted, mapped
from lm.training.loop import Clock
from lm.training.recipe import Parts
from lm.training.step import StatePlan, finite, first_average
from lm.training.task import Task
from lm.types import TrainState

FREE = ("checkpoint", "evaluate", "log", "mesh", "pod")  # sections that may change on resume: they affect no parameter
# Fields of a model that may change: they affect no parameter's shape.
LOOSE = ("scan", "remat", "keep", "offload", "dtype", "dropout", "token_dropout", "kernel")
# Folders that may have moved: their contents are in the checkpoint, or compared by fingerprint.
FOLDERS = ("data.cache", "train.init_from", "recipe.teacher")
PLACES = ("optimizer.offload",)  # in which memory a state waits, which changes no number of it


@dataclass(frozen=True)
class Start:
    """What a process begins with, after `step` steps of the run."""

    step: int
    state: TrainState
    frozen: Any
    position: Position
    pending: dict[str, list[Any]]  # name -> the loss or metric of each step since the last row of the log


def begin(parts: Parts, checkpoints: Checkpoints, clock: Clock, *, allow_changes: bool) -> Start:
    """The state of the latest intact checkpoint, or the one before the first step."""
    run, data, task = parts.run, parts.data, parts.task
    with sharding.use(parts.mesh):
        with clock("restore"):
            step = step_to_go_on_from(run, data, checkpoints, allow_changes=allow_changes)
            position, pending = position_after(run, checkpoints, step)
        with clock("restore" if step else "prepare"):
            if step:
                state = checkpoints.restore(step, parts.plan.targets())
            else:
                state = first_state(run, data.tokenizer, parts.plan, task)
            state = can_go_on(state, run.train, checkpoints.directory / str(step) if step else run.train.init_from)
            frozen = task.frozen.load(parts.frozen) if task.frozen else None
    return Start(step, state, frozen, position, pending)


def first_state(run: config.Run, tokenizer: Tokenizer, plan: StatePlan, task: Task) -> TrainState:
    """The state before the first step, from the seed. With `train.init_from`, parameters come from there, except those that
    the task begins afresh."""
    state, folder = plan.create(run.train.seed), run.train.init_from
    if folder is None:
        return state
    pretrained = saved.open(folder, name="train.init_from")
    proto = pretrained.tokenizer_bytes()
    if proto is not None and proto != tokenizer.proto:
        raise UserError(
            f"train.init_from={folder} was trained with another tokenizer: take its data.tokenizer settings over the same "
            "sources, or give its tokenizer (a converted model's is in hf/) as data.tokenizer.path"
        )
    if task.adapter is not None:
        params = state.params | adapted.begun(pretrained, plan.targets().params, task)
        return _with_average(state, params)
    if run.train.init_map or run.train.init_layers:
        source = mapped.Thinned(pretrained, run.train.init_layers) if run.train.init_layers else pretrained
        params = mapped.params(source, plan.targets().params, state.params, run.train.init_map, task.fresh)
    else:
        first = lambda names: {name: state.params[name] for name in names}
        params = pretrained.params(plan.targets().params, fresh=first(task.fresh), beside=first(task.beside))
    return _with_average(state, params)


def _with_average(state: TrainState, params: Any) -> TrainState:
    """The state with these parameters, and their average where the state has one, and in the memory where it has it."""
    if state.ema is None:
        return replace(state, params=params)
    placed = jax.tree.map(lambda x: x.sharding, state.ema)
    return replace(state, params=params, ema=jax.jit(first_average, out_shardings=placed)(params))


def can_go_on(state: TrainState, train: config.Train, source: Any) -> TrainState:
    """Returns a state that training can continue from. UserError if it has numbers that are not finite, since all steps would
    be skipped; runs never save such a state. Resets the count of skipped steps in a row if it has reached `max_skipped`, as in
    checkpoints of earlier versions or after `max_skipped` was lowered, since no step would be applied any more."""
    if not bool(jax.jit(finite)(sharding.on_device((state.params, state.opt_state, state.ema)))):
        raise UserError(
            f"the state from {source or 'the seed'} has numbers that are not finite, and no step could change that: begin from "
            "an earlier checkpoint or another model"
        )
    stuck = int(state.skipped_in_a_row) >= train.max_skipped
    return replace(state, skipped_in_a_row=state.skipped_in_a_row * 0) if stuck else state


def position_after(run: config.Run, checkpoints: Checkpoints, step: int) -> tuple[Position, dict[str, list[Any]]]:
    """The position in the data after `step` steps; and name -> the loss or metric of each step since the log's last row."""
    progress = checkpoints.saved_progress(step) if step else {}
    rows = progress.get("rows")
    if rows is None:  # earlier versions saved only the step
        rows = step * checkpoints.saved_run(step)[0].train.batch_size if step else 0
    pending = {"loss": progress.get("losses", [])} | progress.get("metrics", {})
    return Position(step, rows, run.train.batch_size), {
        name: [np.float32(x) for x in of_steps] for name, of_steps in pending.items() if of_steps
    }


def step_to_go_on_from(run: config.Run, data: Prepared, checkpoints: Checkpoints, *, allow_changes: bool) -> int:
    """The step to resume from, 0 for a new run. UserError, with a diff, if the config or the tokenizer is not the saved one."""
    step = checkpoints.latest_intact()
    if step is None:
        return 0
    old, tokenizer, fingerprint = checkpoints.saved_run(step)
    if tokenizer != data.tokenizer.proto:
        raise UserError(
            f"{checkpoints.directory.parent} was trained with another tokenizer; use its data and tokenizer settings, or "
            "another --workdir"
        )
    changed = {k: v for k, v in resolve.diff(old, run).items() if k.split(".")[0] not in FREE and k not in FOLDERS + PLACES}
    if fingerprint != data.fingerprint:
        changed["contents of the data"] = (fingerprint[:8], data.fingerprint[:8])
    kind, wanted = (config.kind_of(type(r.recipe)) for r in (old, run))
    if kind != wanted:
        raise UserError(
            f"{checkpoints.directory.parent} holds a run with recipe.kind={kind}, and the config has {wanted}: give another "
            "--workdir, and this one as train.init_from"
        )
    fixed = [k for k in changed if k.startswith(("model.", "adapter")) and k.split(".")[-1] not in LOOSE]
    shown = {k: changed[k] for k in [*fixed, *changed]}  # what cannot change is named first
    lines = "; ".join(f"{k}: {a!r} -> {b!r}" for k, (a, b) in list(shown.items())[:6])
    if fixed:
        raise UserError(f"{checkpoints.directory.parent} holds another model ({lines}); use its config, or another --workdir")
    if changed and not allow_changes:
        raise UserError(f"config differs from the one saved at step {step}: {lines}. --allow_changes goes on with the new one")
    if step > (last := run.train.steps):
        raise UserError(
            f"{checkpoints.directory.parent} is at step {step}, beyond train.steps={last}: give more, or another --workdir"
        )
    return step
