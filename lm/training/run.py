"""A run from its config to its report, the same for every recipe: assemble, resume, hooks, loop, summary."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from lm import config, sharding
from lm.checkpoint import Checkpoints
from lm.config import resolve
from lm.data.loader import Position
from lm.errors import UserError, add_also
from lm.training import adapted, fit, hooks, loop, resume, trackers
from lm.training.assembly import assemble
from lm.training.display import Display, parameter_table
from lm.training.goodput import account
from lm.training.ledger import FEW, SAMPLE, left_out, of_a_row, parameters
from lm.training.loop import Clock
from lm.training.recipe import Parts, Recipe
from lm.training.report import write_report
from lm.training.rundir import RunDir, manifest, params_sha256
from lm.training.step import counted
from lm.types import TrainState


def train(
    run: config.Run,
    recipe: Recipe,
    workdir: str | Path,
    *,
    allow_changes: bool = False,
    quiet: bool = False,
    profile: range | None = None,
    until: int | None = None,
) -> dict[str, Any]:
    """Trains in `workdir`, resuming the run that it holds, and returns the contents of `summary.json`. Raises UserError,
    Stopped or Diverged.

    `quiet`: show nothing, and write no report.html. `profile`: steps to trace. `until`: after so many of the run's steps it is
    evaluated and saved, and goes on with the next call; what it has done so far is returned, and no summary.json is written.
    All hosts must call this; each writes its shards of checkpoints, and host 0 everything else.
    """
    rundir = RunDir(workdir)
    try:
        quiet = quiet or not rundir.writes
        with fit.in_a_line():
            return _train(run, recipe, rundir, allow_changes=allow_changes, quiet=quiet, profile=profile, until=until)
    except (UserError, OSError):
        rundir.refused()
        raise
    finally:
        rundir.close()


def _train(
    run: config.Run,
    recipe: Recipe,
    rundir: RunDir,
    *,
    allow_changes: bool,
    quiet: bool,
    profile: range | None,
    until: int | None,
) -> dict[str, Any]:
    trackers.check(run.log)
    clock = Clock()
    goodput = hooks.Goodput(run, rundir, clock)
    named = run.data.template
    with clock("prepare"):
        run = adapted.complete(recipe.complete(run, rundir.home), recipe, rundir.home)
        parts = assemble(run, recipe, progress=not quiet)
    checkpoints = Checkpoints(rundir.home, run.checkpoint, run, parts.data.tokenizer.proto, parts.data.fingerprint)
    start = resume.begin(parts, checkpoints, clock, allow_changes=allow_changes)
    last = run.train.steps if until is None else min(until, run.train.steps)
    if start.step > last:
        raise UserError(f"{rundir.home} is at step {start.step}, beyond until={last}: give more, or another folder")
    finished = last == run.train.steps
    lost = {split: left_out(rows) for split, rows in parts.rows.items()}
    display = Display(run.train.steps, start.step, quiet=quiet)
    display.introduce(parts, lost, recipe.why_left_out)
    if run.data.template != named:
        display.say("conversations are written by the chat template of the model before (data.template in config.json)")
    if start.step:
        display.say(f"going on from step {start.step} in {rundir.home}")

    kept = trackers.start(run, rundir.path, start.step) if rundir.writes else trackers.Trackers()
    log = hooks.Log(run, rundir, display, clock, parts.schedule, parts.flops_per_step, kept, start.pending)
    view = adapted.View(parts, start.frozen)
    sample = lambda params: recipe.samples(view.parts, view.params(params), view.frozen)
    evaluators = recipe.evaluators(view.parts, view.frozen)
    evaluate = hooks.Evaluate(run, [view.evaluator(e) for e in evaluators], sample, log)
    save = hooks.Save(run, checkpoints, evaluate, clock, start.position.after)
    report = hooks.Report(run, rundir, clock, evaluate, quiet)
    _record(parts, rundir, start.step)  # from here on the folder holds a run; one that was refused before leaves none
    tracing, stop = hooks.Profile(rundir, clock, profile), hooks.StopOnSignal(save)
    goodput.now(at=start.step)
    before = counted(np.asarray(start.state.seen))[0]
    try:
        every = [log, evaluate, save, goodput, report, tracing, stop]
        state = _steps(view, recipe, start, last, every, display, clock)
        stop.restore()  # no step is left after which a signal could stop the run
        hooks.check_progress(run.train, int(state.step), int(state.skipped_in_a_row))
        if evaluate.at != last:  # no step was left: evaluate the restored state, or save that of a run of 0 steps; or `until`
            with sharding.use(parts.mesh):
                evaluate.evaluate(last, state)
        save.now(last, state)
        with clock("checkpoint"):
            checkpoints.wait()
    except BaseException as error:
        _finish_saving(checkpoints, error)
        report.ended(error)
        kept.close(finished=False)
        raise
    finally:
        stop.restore()
        tracing.close()
        goodput.now()
    kept.close(finished=finished)
    with clock("baselines"):
        baselines = recipe.baselines(parts) if rundir.writes and finished else None
    goodput.now("done")
    summary = _summary(parts, state, evaluate.latest, baselines, clock, position=start.position, before=before)
    summary |= recipe.facts(parts) | {"text_left_out": lost, "goodput": account(rundir.rows("goodput.jsonl"))}
    if ends := {name: pair for one in evaluators for name, pair in getattr(one, "intervals", dict)().items()}:
        summary["heldout_intervals"] = ends
    checkpoints.close()
    if finished:
        rundir.write_json("summary.json", summary)
    if finished and not quiet:
        display.results(summary, rundir, write_report(rundir.path, summary))
    return summary


def _steps(
    view: adapted.View, recipe: Recipe, start: resume.Start, last: int, every: list[Any], display: Display, clock: Clock
) -> TrainState:
    parts, steps = view.run_parts, range(start.step, last)
    source = recipe.source(parts, start.position, steps)
    if recipe.reads_params:
        source = view.source(source)
    with sharding.use(parts.mesh), display.bar:
        step = fit.FittedStep(parts, recipe, display.say)
        return loop.run(start.state, step, source, every, steps=steps, frozen=start.frozen, clock=clock)


def _finish_saving(checkpoints: Checkpoints, error: BaseException) -> None:
    """Waits for a save in progress, so that an error does not lose it. A failure is added to the error."""
    if jax.process_count() > 1:  # the save may wait for hosts that are gone
        return
    try:
        checkpoints.wait()
    except Exception as also:
        add_also(error, f"the save under way failed: {also}")


def _record(parts: Parts, rundir: RunDir, first: int) -> None:
    """Writes config.json and manifest.json, and moves logs of steps after `first`, which will run again, out of the way."""
    rundir.forget_after(first)
    rundir.write_json("config.json", resolve.to_dict(parts.run))
    facts = dict(data_fingerprint=parts.data.fingerprint, tokenizer_fingerprint=parts.data.tokenizer.fingerprint)
    row = of_a_row(parts.task, parts.rows["train"], FEW)  # so that a report has FLOPs before the end
    costs = {"model_flops_per_token": row.flops / max(row.seen, 1e-9)}
    rundir.write_json("manifest.json", manifest(parts.run, **facts, mesh=parts.mesh) | costs)


def _summary(
    parts: Parts, state: Any, heldout: Any, baselines: Any, clock: Clock, *, position: Position, before: int
) -> dict[str, Any]:
    """What summary.json holds. `before`: tokens that the run had read when this process began."""
    seen, with_loss = counted(np.asarray(state.seen))
    seconds = clock.seconds()
    rows = position.after(int(state.step))
    totals = of_a_row(parts.task, parts.rows["train"], min(max(rows, 1), SAMPLE)).of(rows)
    return {
        "step": int(state.step),
        **parameters(state.params),
        "params_sha256": params_sha256(state.params),
        "heldout": heldout,
        "baselines": baselines,
        "tokens_seen": seen,
        "tokens_with_loss": with_loss,
        "skipped_steps": int(state.skipped),
        "model_flops": totals["model_flops"] * seen / max(totals["tokens_seen"], 1),
        "raw_bytes": totals["raw_bytes"],
        "tokens_per_second": round((seen - before) / max(seconds["train"] + seconds.get("data_wait", 0.0), 1e-9), 1),
        "seconds": seconds,
    }


def dry_run(run: config.Run, recipe: Recipe) -> str:
    """Returns text with the complete config, parameters, FLOPs and memory of a run, from its compiled step. Trains nothing, and
    writes only the data cache."""
    run = adapted.complete(recipe.complete(run, None), recipe, None)
    parts = assemble(run, recipe)
    replicated = [
        f"replicated on every device: {name}"
        for name in sharding.replicated_params(parts.plan.abstract.params, parts.plan.shardings.params, parts.mesh)
    ]
    return "\n".join([resolve.to_json(run), parameter_table(parts), *replicated, fit.report(parts, recipe)])
