"""A run from its config to its report, the same for every recipe: assemble, resume, hooks, loop, summary."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from lm import config, sharding
from lm.checkpoint import Checkpoints
from lm.config import resolve
from lm.data.loader import Position
from lm.errors import add_also, printable
from lm.training import hooks, loop, resume
from lm.training.assembly import assemble, bytes_a_device
from lm.training.goodput import account
from lm.training.ledger import SAMPLE, left_out, of_a_row, parameters
from lm.training.recipe import Parts, Recipe
from lm.training.report import write_report
from lm.training.rundir import RunDir, manifest, params_sha256
from lm.training.step import counted


def train(
    run: config.Run,
    recipe: Recipe,
    workdir: str | Path,
    *,
    allow_changes: bool = False,
    quiet: bool = False,
    profile: range | None = None,
) -> dict[str, Any]:
    """Trains, or goes on, in `workdir`; returns what `summary.json` holds. Raises UserError, Stopped, Diverged.

    `profile`: steps to trace. With several hosts each calls this: all write their parts of checkpoints, the first the rest.
    """
    rundir = RunDir(workdir)
    try:
        quiet = quiet or not rundir.writes
        return _train(run, recipe, rundir, allow_changes=allow_changes, quiet=quiet, profile=profile)
    finally:
        rundir.close()


def _train(
    run: config.Run, recipe: Recipe, rundir: RunDir, *, allow_changes: bool, quiet: bool, profile: range | None
) -> dict[str, Any]:
    clock = loop.Clock()
    goodput = hooks.Goodput(run, rundir, clock)
    with clock("prepare"):
        run = recipe.complete(run, rundir.home)
        parts = assemble(run, recipe, progress=not quiet)
    checkpoints = Checkpoints(rundir.home, run.checkpoint, run, parts.data.tokenizer.proto, parts.data.fingerprint)
    start = resume.begin(parts, checkpoints, clock, allow_changes=allow_changes)
    first, before = start.step, counted(np.asarray(start.state.seen))[0]
    lost = {split: left_out(rows) for split, rows in parts.rows.items()}
    display = hooks.Display(run.train.steps, first, quiet=quiet)
    _record(parts, rundir, first)
    _introduce(parts, display, lost, f"going on from step {first} in {rundir.home}" if first else None)

    writer = _tensorboard(rundir, run)
    log = hooks.Log(run, rundir, display, clock, parts.schedule, parts.flops_per_step, writer, start.pending)
    sample = lambda params: recipe.samples(parts, params, start.frozen)
    evaluate = hooks.Evaluate(run, recipe.evaluators(parts, start.frozen), sample, log)
    save = hooks.Save(run, checkpoints, evaluate, clock, start.position.after)
    tracing = hooks.Profile(rundir, clock, profile)
    stop = hooks.StopOnSignal(save)
    goodput.at = first
    goodput.now()
    steps = range(first, run.train.steps)
    source = recipe.source(parts, start.position, steps)
    every = [log, evaluate, save, goodput, tracing, stop]
    try:
        with sharding.use(parts.mesh), display.bar:
            state = loop.run(start.state, parts.step, source, every, steps=steps, frozen=start.frozen, clock=clock)
            stop.restore()  # from here on there is no step after which to stop
            hooks.check_progress(run.train, int(state.step), int(state.skipped_in_a_row))
            with clock("checkpoint"):
                checkpoints.wait()
            if evaluate.at != run.train.steps:  # nothing was left to do: the figures are those of the restored state
                evaluate.evaluate(run.train.steps, state)
    except BaseException as error:
        if jax.process_count() == 1:  # of several, others may be gone that a save would wait for
            try:
                checkpoints.wait()  # what was being saved is not lost with the process
            except Exception as also:  # the first error is the one to be told
                add_also(error, f"the save under way failed: {also}")
        raise
    finally:
        stop.restore()
        tracing.close()
        goodput.now()
        if writer is not None:
            writer.close()
    with clock("baselines"):
        baselines = recipe.baselines(parts) if rundir.writes else None
    goodput.now("done")
    summary = _summary(parts, state, evaluate.latest, baselines, clock, position=start.position, before=before)
    summary["text_left_out"] = lost
    summary["goodput"] = account(rundir.rows("goodput.jsonl"))
    checkpoints.close()
    rundir.write_json("summary.json", summary)
    if rundir.writes:
        report = write_report(rundir, summary)
        show_results(display, summary, rundir, report)
    return summary


def _record(parts: Parts, rundir: RunDir, first: int) -> None:
    """Writes what the run is; moves aside what earlier processes logged of steps after `first`."""
    rundir.forget_after(first)
    rundir.write_json("config.json", resolve.to_dict(parts.run))
    facts = dict(data_fingerprint=parts.data.fingerprint, tokenizer_fingerprint=parts.data.tokenizer.fingerprint)
    rundir.write_json("manifest.json", manifest(parts.run, **facts, mesh=parts.mesh))


def _introduce(parts: Parts, display: hooks.Display, left_out: dict[str, float], resumed: str | None) -> None:
    display.say(parameter_table(parts))
    for split, share in left_out.items():
        if share >= 0.001:
            display.say(
                f"{share:.1%} of the {split} text is in no row: documents too short for the objective, ends that do not fit"
            )
    if resumed:
        display.say(resumed)


def _tensorboard(rundir: RunDir, run: config.Run) -> Any:
    if not run.log.tensorboard or not rundir.writes:
        return None
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(rundir.path / "tensorboard"))


def _summary(
    parts: Parts, state: Any, heldout: Any, baselines: Any, clock: loop.Clock, *, position: Position, before: int
) -> dict[str, Any]:
    """`before`: the tokens that the run had seen when this process began."""
    seen, with_loss = counted(np.asarray(state.seen))
    seconds = clock.seconds()
    rows = position.after(int(state.step))
    whole = of_a_row(parts.task, parts.rows["train"], min(max(rows, 1), SAMPLE)).of(rows)
    return {
        "step": int(state.step),
        **parameters(state.params),
        "params_sha256": params_sha256(state.params),
        "heldout": heldout,
        "baselines": baselines,
        "tokens_seen": seen,
        "tokens_with_loss": with_loss,
        "skipped_steps": int(state.skipped),
        "model_flops": whole["model_flops"],
        "raw_bytes": whole["raw_bytes"],
        "tokens_per_second": round((seen - before) / max(seconds["train"] + seconds.get("data_wait", 0.0), 1e-9), 1),
        "seconds": seconds,
    }


def parameter_table(parts: Parts, depth: int = 3) -> str:
    """Parameters by module, and what a step costs."""
    counts: dict[str, int] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(parts.plan.abstract.params)[0]:
        name = "/".join(jax.tree_util.keystr(path, simple=True, separator="/").split("/")[:depth])
        counts[name] = counts.get(name, 0) + leaf.size
    total = sum(counts.values())
    lines = [f"{n:>14,}  {name}" for name, n in counts.items()]
    return "\n".join([*lines, f"{total:>14,}  parameters", f"{parts.flops_per_step:>14.3e}  model FLOPs a step"])


def dry_run(run: config.Run, recipe: Recipe) -> str:
    """Config, parameters, FLOPs and memory of a run, from its compiled step; nothing is trained or written but the cache."""
    run = recipe.complete(run, None)
    parts = assemble(run, recipe)
    memory = parts.lower().compile().memory_analysis()
    report = {
        "state, bytes a device": bytes_a_device((parts.plan.targets(), parts.frozen)),
        "temporaries, bytes a device (XLA)": memory.temp_size_in_bytes,
        "batch, bytes a device": bytes_a_device(parts.batch),
    }
    lines = [f"{v:>14,}  {k}" for k, v in report.items()]
    held = [
        f"whole on every device: {name}"
        for name in sharding.replicated_params(parts.plan.abstract.params, parts.plan.shardings.params, parts.mesh)
    ]
    return "\n".join([resolve.to_json(run), parameter_table(parts), *lines, *held])


def show_results(display: hooks.Display, summary: dict[str, Any], rundir: RunDir, report: Path) -> None:
    """The last words of a run: held-out figures beside the baselines, samples, where everything is."""
    say = display.say
    for text in rundir.rows("samples.jsonl")[-3:]:
        say(f"\n> {printable(text['prompt'])} -> {printable(text['text'])}")
    say("")
    for name, value in summary["heldout"].items():
        say(f"held-out {name:<14} {value:,.4f}")
    for name, value in (summary["baselines"] or {}).items():
        say(f"  baseline {name:<22} {value:.4f} bits per byte")
    say(f"\nreport: {report}")
