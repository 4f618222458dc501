"""Pretraining: a config becomes a model, data, a step and hooks; the shared loop does the rest."""

import math
import os
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from lm import config, flops, optim, paths, sharding
from lm.checkpoint import Checkpoints
from lm.config import resolve
from lm.data.corpus.prepare import Prepared, prepare
from lm.data.loader import Position, batches
from lm.data.rows import Rows, blank
from lm.errors import UserError, add_also, printable
from lm.evaluation.heldout import HeldOut
from lm.generation.samples import check as check_samples
from lm.generation.samples import samples
from lm.models.positions import check_reach
from lm.objectives import Lengths, Objective, Vocabulary, build, suited
from lm.objectives.dummy_vocabulary import DummyVocabulary
from lm.training import hooks, loop, resume
from lm.training.goodput import account
from lm.training.ledger import SAMPLE, left_out, of_a_row, parameters
from lm.training.report import write_report
from lm.training.rundir import RunDir, manifest, params_sha256
from lm.training.step import StatePlan, counted, make_step, plan_state
from lm.training.task import Task, task
from lm.types import Example

NOTHING_HELD_OUT = (
    "evaluate.baselines are judged on held-out documents, and none is held out: raise data.holdout, give more documents, or "
    "set --config.evaluate.baselines=False"
)


@dataclass(frozen=True)
class Training:
    """What a run computes: no data in it, and a mesh whose devices need not be here (`tpu.compile`)."""

    run: config.Run
    mesh: Mesh
    task: Task
    lengths: Lengths
    plan: StatePlan
    step: Any
    schedule: Any

    @property
    def flops_per_step(self) -> float:
        lengths: dict[str, Any] = dict(encoder=self.lengths.encoder, decoder=self.lengths.decoder)
        passes = self.task.passes(self.lengths)
        return sum(flops.count(m, batch=self.run.train.batch_size, predicted=p, **lengths).train for m, p in passes)

    @property
    def batch(self) -> Example:
        """Abstract arrays with their shardings: what a step reads."""
        return abstract_batch(self.lengths, self.run.train.batch_size, NamedSharding(self.mesh, sharding.BATCH))

    def lower(self) -> Any:
        """The step, traced for its mesh and not yet compiled."""
        with sharding.use(self.mesh):
            return self.step.lower(self.plan.targets(), self.batch)


@dataclass(frozen=True)
class Parts(Training):
    """All that a run is made of before its first step."""

    data: Prepared
    objective: Objective
    rows: dict[str, Rows]  # by split: "train", and "holdout" if anything was held out


def assemble(run: config.Run, *, progress: bool = True) -> Parts:
    """Checks the config against itself, the devices and the data, in the order of cost, and builds the parts."""
    mesh = sharding.make_mesh(run.mesh)
    check(run, mesh)
    data = prepare(run.data, progress=progress)
    if run.evaluate.baselines and not data.holdout:
        raise UserError(NOTHING_HELD_OUT)
    if data.tokenizer.vocab_size > run.model.vocab_size:
        raise UserError(
            f"model.vocab_size={run.model.vocab_size} is smaller than the tokenizer's {data.tokenizer.vocab_size}; "
            f"set --config.model.vocab_size={data.tokenizer.vocab_size} or more"
        )
    objective = objective_of(run, data.tokenizer)
    rows = rows_of(run, data, objective)
    parts = Parts(**vars(training(run, mesh, objective.lengths)), data=data, objective=objective, rows=rows)
    check_memory(bytes_a_device(parts.plan.targets()), mesh.local_devices)
    if _has_samples(run):
        place = parts.task.writes
        settings: dict[str, Any] = dict(new_tokens=run.log.sample_tokens, seed=run.train.seed, place=place)
        check_samples(parts.task.models[place], data.tokenizer, run.objective, run.log.samples, **settings)
    return parts


def check(run: config.Run, mesh: Mesh) -> None:
    """Against itself and the devices: what can be told before any data is read."""
    if not (run.model.encoder or run.model.decoder):
        raise UserError("model has neither an encoder nor a decoder: give one of them, or both")
    if run.evaluate.baselines and run.data.holdout == 0:
        raise UserError(NOTHING_HELD_OUT)
    if run.evaluate.baselines and run.data.train_share < 1:
        raise UserError(
            f"evaluate.baselines learn from all training documents, and data.train_share={run.data.train_share} trains on a "
            "part of them: set --config.evaluate.baselines=False, or data.train_share=1.0"
        )
    optim.schedule(run.optimizer.schedule, run.optimizer.learning_rate, run.train.steps)
    if run.train.init_from is not None and not run.train.init_from.startswith("gs://"):
        paths.local(run.train.init_from, name="train.init_from")
    sharding.check_batch(run.train.batch_size, run.train.microbatches, mesh)
    if run.evaluate.batch_size is not None:
        sharding.check_batch(run.evaluate.batch_size, 1, mesh, name="evaluate.batch_size")
    models, parts = task(run).models, mesh.shape["sequence"]
    check_lengths(run, models)
    for name in ("encoder_length", "decoder_length"):
        if (getattr(run.data, name) or 0) % parts:
            raise UserError(
                f"data.{name}={getattr(run.data, name)} does not divide over mesh.sequence={parts}; change one of them"
            )
    if run.data.tokenizer.path is None:  # the special tokens of a tokenizer that is trained here are known before it is
        objective_of(run, DummyVocabulary(run.model.vocab_size))
    platform = mesh.devices.flat[0].platform
    for place, model in models.items():
        if model.kernel == "splash" and platform != "tpu":
            raise UserError(
                f"{place}.kernel='splash' runs on TPUs alone, and this is a {platform}: set --config.{place}.kernel=plain"
            )


def check_memory(state: int, devices: list[Any]) -> None:
    """UserError where a device's part of the state, in bytes, is more than the device has; a step needs more yet."""
    limit = (devices[0].memory_stats() or {}).get("bytes_limit")
    if devices[0].platform == "cpu":  # which has no limit of its own, and shares the machine's memory with the others
        limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // len(devices)
    if limit is not None and state > limit:
        raise UserError(
            f"parameters, moments and averages take {state / 2**30:,.1f} GiB of a device, which has {limit / 2**30:,.1f} GiB: "
            "take a smaller model or vocabulary, or shard it over more devices (config.mesh.fsdp)"
        )


def objective_of(run: config.Run, vocabulary: Vocabulary) -> Objective:
    objective = build(run.objective, run.model.architecture, run.data, vocabulary)
    cure = "shorten data.encoder_length, whose places these are, or raise --config.model.{stack}.position.max_length"
    check_reach(run.model, None, objective.reach, cure=cure)
    if objective.lengths.types and run.model.embed.types < 2:
        raise UserError(
            f"model.embed.types={run.model.embed.types}, and this objective tells two texts apart by their types; "
            "set --config.model.embed.types=2"
        )
    return objective


def training(run: config.Run, mesh: Mesh, lengths: Lengths) -> Training:
    """From rows of these lengths alone. Nothing is put on the mesh's devices."""
    what = task(run)
    tx, schedule = optim.make(run.optimizer, run.train.steps)
    shapes = abstract_batch(lengths, run.train.batch_size)
    example = lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    # Outside of `sharding.use`: Optax makes a few numbers at once, which would have to lie on the mesh.
    plan = plan_state(lambda key: what.init(key, example()), tx, mesh, ema=run.optimizer.ema is not None)
    step = make_step(what.loss, tx, plan, optimizer=run.optimizer, train=run.train)
    return Training(run, mesh, what, lengths, plan, step, schedule)


def abstract_batch(lengths: Lengths, size: int, placed: NamedSharding | None = None) -> Example:
    """`size` rows as shapes and dtypes."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((size, *x.shape), x.dtype, sharding=placed), blank(lengths))


def rows_of(run: config.Run, data: Prepared, objective: Objective) -> dict[str, Rows]:
    weights = {name: source.weight for name, source in run.data.sources.items()}
    train, share = data.train, run.data.train_share
    if share < 1:
        train = {name: store.share(share) for name, store in train.items()}
    splits = {"train": train, "holdout": data.holdout}
    return {
        split: Rows(stores, objective, run.train.seed, weights, shuffle=split == "train")
        for split, stores in splits.items()
        if stores
    }


def check_lengths(run: config.Run, models: dict[str, config.Model]) -> None:
    """Rows that are longer than a stack has learned positions for; models by their place in the config."""
    for place, model in models.items():
        cure = f"shorten data.{{stack}}_length, or raise --config.{place}.{{stack}}.position.max_length"
        check_reach(model, run.data.encoder_length, run.data.decoder_length, cure=cure)


def heldout(parts: Parts) -> HeldOut | None:
    """The evaluation of a run, or None where nothing was held out."""
    if "holdout" not in parts.rows:
        return None
    run = parts.run
    jitted = jax.jit(parts.task.scores)
    size = run.evaluate.batch_size or run.train.batch_size
    factors = suited(run.model.architecture, run.objective).factors
    return HeldOut(parts.rows["holdout"], jitted, size, parts.mesh, run.evaluate.rows, factors, parts.task.nats)


def train(
    run: config.Run, workdir: str | Path, *, allow_changes: bool = False, quiet: bool = False, profile: range | None = None
) -> dict[str, Any]:
    """Trains, or goes on, in `workdir`; returns what `summary.json` holds. Raises UserError, Stopped.

    `profile`: steps to trace. Of several hosts each calls this; the first alone writes, and the checkpoint's parts are all's.
    """
    rundir = RunDir(workdir)
    try:
        return _train(run, rundir, allow_changes=allow_changes, quiet=quiet or not rundir.writes, profile=profile)
    finally:
        rundir.close()


def _train(run: config.Run, rundir: RunDir, *, allow_changes: bool, quiet: bool, profile: range | None) -> dict[str, Any]:
    clock = loop.Clock()
    goodput = hooks.Goodput(run, rundir, clock)
    with clock("prepare"):
        parts = assemble(run, progress=not quiet)
    checkpoints = Checkpoints(rundir.home, run.checkpoint, run, parts.data.tokenizer.proto, parts.data.fingerprint)
    with sharding.use(parts.mesh):
        with clock("restore"):
            first = resume.step_to_go_on_from(run, parts.data, checkpoints, allow_changes=allow_changes)
            position, losses = resume.position_after(run, checkpoints, first)
        with clock("restore" if first else "prepare"):
            state = (
                checkpoints.restore(first, parts.plan.targets()) if first else resume.first_state(run, parts.data, parts.plan)
            )
            state = resume.can_go_on(state, run.train, checkpoints.directory / str(first) if first else run.train.init_from)
    before = counted(np.asarray(state.seen))[0]
    rundir.forget_after(first)
    rundir.write_json("config.json", resolve.to_dict(run))
    facts = dict(data_fingerprint=parts.data.fingerprint, tokenizer_fingerprint=parts.data.tokenizer.fingerprint)
    rundir.write_json("manifest.json", manifest(run, **facts, mesh=parts.mesh))
    display = hooks.Display(run.train.steps, first, quiet=quiet)
    display.say(parameter_table(parts))
    lost = {split: left_out(rows) for split, rows in parts.rows.items()}
    for split, share in lost.items():
        if share >= 0.001:
            display.say(
                f"{share:.1%} of the {split} text is in no row: documents too short for the objective, ends that do not fit"
            )
    if first:
        display.say(f"going on from step {first} in {rundir.home}")

    writer = _tensorboard(rundir, run)
    log = hooks.Log(run, rundir, display, clock, parts.schedule, parts.flops_per_step, writer, losses)
    sample = partial(_samples, parts)
    evaluate = hooks.Evaluate(run, heldout(parts) or (lambda params: {}), sample, log)
    save = hooks.Save(run, checkpoints, evaluate, clock, position.after)
    tracing = hooks.Profile(rundir, clock, profile)
    stop = hooks.StopOnSignal(save)
    goodput.at = first
    goodput.now()
    rows = parts.rows["train"]
    make = lambda s: sharding.global_batch(rows.rows, position.of(s), parts.mesh)
    source = batches(make, first=first, last=run.train.steps)
    try:
        with sharding.use(parts.mesh), display.bar:
            state = loop.run(state, parts.step, source, [log, evaluate, save, goodput, tracing, stop], first=first, clock=clock)
            stop.restore()  # from here on there is no step after which to stop
            hooks.check_progress(run.train, int(state.step), int(state.skipped_in_a_row))
            with clock("checkpoint"):
                checkpoints.wait()
            if evaluate.at != run.train.steps:  # nothing was left to do: the figures are those of the restored state
                with clock("evaluate"):
                    evaluate.latest = evaluate.heldout(state.params if state.ema is None else state.ema)
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
        baselines = _baselines(parts) if run.evaluate.baselines and rundir.writes else None
    goodput.now("done")
    summary = _summary(parts, state, evaluate.latest, baselines, clock, position=position, before=before)
    summary["text_left_out"] = lost
    summary["goodput"] = account(rundir.rows("goodput.jsonl"))
    checkpoints.close()
    rundir.write_json("summary.json", summary)
    if rundir.writes:
        report = write_report(rundir, summary)
        show_results(display, summary, rundir, report)
    return summary


def _has_samples(run: config.Run) -> bool:
    return bool(run.log.samples) and run.log.sample_tokens >= 1


def _samples(parts: Parts, params: Any) -> list[dict[str, str]]:
    log = parts.run.log
    if not _has_samples(parts.run):
        return []
    settings: dict[str, Any] = dict(new_tokens=log.sample_tokens, temperature=log.temperature, seed=parts.run.train.seed)
    model, own = parts.task.writer(params)
    return samples(model, own, parts.data.tokenizer, parts.run.objective, log.samples, **settings)


def _tensorboard(rundir: RunDir, run: config.Run) -> Any:
    if not run.log.tensorboard or not rundir.writes:
        return None
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(rundir.path / "tensorboard"))


def _baselines(parts: Parts) -> dict[str, Any] | None:
    """None, with a warning, if the prepared texts were damaged: a run that has trained to the end does not fail for them."""
    from lm.evaluation.baselines import of_prepared

    try:
        found = of_prepared(parts.data)
    except UserError as error:
        warnings.warn(f"no baselines: {error}", stacklevel=2)
        return None
    return {name: value for name, value in found.items() if name not in ("bytes", "seconds")}


def _summary(
    parts: Parts, state: Any, heldout: Any, baselines: Any, clock: loop.Clock, *, position: Position, before: int
) -> dict[str, Any]:
    """`before`: the tokens that the run had seen when this process began."""
    seen, with_loss = counted(np.asarray(state.seen))
    seconds = clock.seconds()
    rows = position.after(int(state.step))
    whole = of_a_row(parts.run, parts.rows["train"], min(max(rows, 1), SAMPLE)).of(rows)
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


def dry_run(run: config.Run) -> str:
    """Config, parameters, FLOPs and memory of a run, from its compiled step; nothing is trained or written but the cache."""
    parts = assemble(run)
    memory = parts.lower().compile().memory_analysis()
    report = {
        "state, bytes a device": bytes_a_device(parts.plan.targets()),
        "temporaries, bytes a device (XLA)": memory.temp_size_in_bytes,
        "batch, bytes a device": bytes_a_device(parts.batch),
    }
    lines = [f"{v:>14,}  {k}" for k, v in report.items()]
    held = [
        f"whole on every device: {name}"
        for name in sharding.uncovered(parts.plan.abstract.params, parts.plan.shardings.params, parts.mesh)
    ]
    return "\n".join([resolve.to_json(run), parameter_table(parts), *lines, *held])


def bytes_a_device(tree: Any) -> int:
    """Of abstract arrays with shardings."""
    size = lambda x: math.prod(x.sharding.shard_shape(x.shape)) * jnp.dtype(x.dtype).itemsize
    return sum(size(x) for x in jax.tree.leaves(tree))


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
