"""Hooks, for all that is done now and then: each is called after every step with (steps done, state, metrics)."""

import math
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from lm import config, flops, process, sharding, startup
from lm.checkpoint import Checkpoints
from lm.errors import EXIT_PREEMPTED, Diverged, Stopped, add_also
from lm.training.display import Display, figure
from lm.training.loop import Clock
from lm.training.report import write_report
from lm.training.rundir import RunDir
from lm.training.step import STEP_METRICS, counted
from lm.training.trackers import Trackers
from lm.types import TrainState


def check_progress(train: config.Train, step: int, skipped_in_a_row: int) -> None:
    """Raises Diverged if `max_skipped` steps in a row were skipped, or if a run ends with more than a tenth of its steps
    skipped in a row: with fewer steps than `max_skipped`, it may have learned nothing. A few bad batches at the end of a long
    run are not an error."""
    if skipped_in_a_row >= train.max_skipped:
        what = f"{skipped_in_a_row} steps in a row were skipped (train.max_skipped={train.max_skipped})"
    elif step == train.steps and 10 * skipped_in_a_row > step:
        what = f"the last {skipped_in_a_row} of {step} steps were skipped"
    else:
        return
    raise Diverged(
        f"{what}: the loss, the gradient or the update was not finite. The parameters are those of the last good step. "
        f"Lower optimizer.learning_rate, or look at the data of step {step}"
    )


def due(step: int, every: int | None, last: int) -> bool:
    """Whether something is done after `step` steps that is done after every `every` of them and after the last."""
    return step == last or (every is not None and step % every == 0)


@dataclass
class Log:
    """Writes the means of the loss and of the task's own metrics since its last row, speed and MFU, to metrics.jsonl,
    the trackers and the display.

    Raises Diverged if steps are skipped one after the other; the parameters are still those of the last good step.
    """

    c: config.Run
    rundir: RunDir
    display: Display
    clock: Clock
    schedule: Callable[[int], Any]
    flops_per_step: float
    trackers: Trackers = field(default_factory=Trackers)
    since: dict[str, list[Any]] = field(default_factory=dict)  # name -> values of each step since the last row
    last: tuple[int, float, int] | None = None  # step, seconds of training, tokens seen

    def __call__(self, step: int, state: TrainState, metrics: dict[str, Any]) -> None:
        own = [name for name in metrics if name not in STEP_METRICS]
        for name in ("loss", *own):
            self.since.setdefault(name, []).append(metrics[name])
        if not due(step, self.c.log.every, self.c.train.steps):
            return
        values = jax.device_get(metrics)
        seconds = self.clock.train + self.clock.kinds.get("data_wait", 0.0)
        seen, with_loss = counted(values["seen"])
        means = {name: float(np.mean(of_steps)) for name, of_steps in self._fetched().items()}
        row = {
            "step": step,
            "loss": means.pop("loss"),
            "learning_rate": float(self.schedule(max(step - int(values["skipped"]) - 1, 0))),  # of the latest update
            "grad_norm": float(values["grad_norm"]),
            "skipped": int(values["skipped"]),
            "tokens_seen": seen,
            "tokens_with_loss": with_loss,
        }
        row |= means | self._speed(step, seconds, seen)
        self.since, self.last = {}, (step, seconds, seen)
        self.write(row)
        speed = f"  {row['tokens_per_second']:,.0f} tokens/s" if "tokens_per_second" in row else ""
        self.display.show(step, f"loss {row['loss']:.3f}{speed}")
        check_progress(self.c.train, step, int(values["skipped_in_a_row"]))

    def pending(self) -> dict[str, Any]:
        """Returns {"losses": [...], "metrics": {name: [...]}} of the steps since the last row, as JSON. Checkpoints keep them,
        so that a resumed run logs the same means as one that was not interrupted."""
        lists = {name: of_steps.tolist() for name, of_steps in self._fetched().items()}
        return {"losses": lists.pop("loss", [])} | ({"metrics": lists} if lists else {})

    def _fetched(self) -> dict[str, np.ndarray]:
        return {name: np.asarray(of_steps, np.float32) for name, of_steps in jax.device_get(self.since).items()}

    def _speed(self, step: int, seconds: float, seen: int) -> dict[str, float]:
        if self.last is None:  # the first interval includes the compilation
            return {}
        steps, spent = step - self.last[0], max(seconds - self.last[1], 1e-9)
        speed = {"tokens_per_second": (seen - self.last[2]) / spent, "steps_per_second": steps / spent}
        peak = flops.peak(jax.devices()[0].device_kind)
        return speed | ({"mfu": self.flops_per_step * steps / spent / peak / jax.device_count()} if peak else {})

    def write(self, row: dict[str, Any]) -> None:
        """Appends a row of numbers to metrics.jsonl, and gives it to the trackers."""
        self.rundir.append("metrics.jsonl", row)
        self.trackers.figures(row["step"], row)


@dataclass
class Evaluate:
    """Held-out figures and samples, of the averaged parameters if there are any."""

    c: config.Run
    evaluators: Sequence[Callable[[Any], dict[str, float]]]  # params -> figures by name
    sample: Callable[[Any], Sequence[Mapping[str, Any]]]  # params -> prompts and texts
    log: Log
    latest: dict[str, float] = field(default_factory=dict)
    at: int = -1

    def __call__(self, step: int, state: TrainState, metrics: dict[str, Any]) -> None:
        if not due(step, self.c.evaluate.every, self.c.train.steps):
            return
        jax.block_until_ready(state.params)  # otherwise, steps that still run would count as evaluation
        params = self.evaluate(step, state)
        self.log.write({"step": step} | {f"heldout/{k}": v for k, v in self.latest.items()})
        shown = [k for k in ("loss", "nll", "accuracy", "exact", "f1", "bits_per_byte") if k in self.latest]
        if shown:
            self.log.display.say(f"step {step}  held-out  " + "  ".join(f"{k} {figure(self.latest[k])}" for k in shown))
        with self.log.clock("sample"):
            texts = self.sample(params)
        for text in texts:
            self.log.rundir.append("samples.jsonl", {"step": step, **text})
        self.log.trackers.samples(step, texts)
        startup.release_pages()  # of the programs that evaluate, which steps do not need

    def evaluate(self, step: int, state: TrainState) -> Any:
        """Sets `latest` to the figures of all evaluators, and returns the parameters that they are of."""
        params = state.params if state.ema is None else sharding.on_device(state.ema)
        with self.log.clock("evaluate"):
            self.latest = {name: value for evaluator in self.evaluators for name, value in evaluator(params).items()}
        self.at = step
        return params


@dataclass
class Save:
    """Saves checkpoints, with the held-out loss of the same step, by which the best is kept."""

    c: config.Run
    checkpoints: Checkpoints
    evaluate: Evaluate
    clock: Clock
    rows: Callable[[int], int]  # steps done -> rows of the data read

    def __call__(self, step: int, state: TrainState, metrics: dict[str, Any]) -> None:
        if due(step, self.c.checkpoint.every, self.c.train.steps):
            self.now(step, state)

    def now(self, step: int, state: TrainState) -> None:
        check_progress(self.c.train, step, int(state.skipped_in_a_row))  # waits for the step, which would count as saving
        with self.clock("checkpoint"):
            found = self.evaluate.latest if self.evaluate.at == step else {}
            loss = found.get("loss", found.get("nll"))
            progress = {"rows": self.rows(step)} | self.evaluate.log.pending()
            self.checkpoints.save(state, {"loss": loss} if loss is not None else None, progress=progress)


@dataclass
class Goodput:
    """Appends the step and the clock's seconds to goodput.jsonl, from which goodput is computed even after a kill."""

    c: config.Run
    rundir: RunDir
    clock: Clock
    at: int = 0

    def __post_init__(self) -> None:
        self.rundir.append("goodput.jsonl", {"event": "start", "time": time.time()})

    def __call__(self, step: int, state: TrainState, metrics: dict[str, Any]) -> None:
        self.at = step
        if due(step, self.c.log.every, self.c.train.steps):
            self.now()

    def now(self, event: str = "step", *, at: int | None = None) -> None:
        """Appends a row for step `at`, by default the latest."""
        self.at = self.at if at is None else at
        row = {"event": event, "time": time.time(), "step": self.at, "seconds": self.clock.seconds()}
        self.rundir.append("goodput.jsonl", row)
        self.rundir.publish()


@dataclass
class Report:
    """Writes report.html after an evaluation, so that a run can be watched: at the first one, and then at most every `pause`
    seconds. The last step's is left to the end of the run."""

    c: config.Run
    rundir: RunDir
    clock: Clock
    evaluate: Evaluate
    quiet: bool
    pause: float = 60.0
    last: float = -math.inf

    def __call__(self, step: int, state: TrainState, metrics: dict[str, Any]) -> None:
        new = self.evaluate.at == step < self.c.train.steps
        if new and not self.quiet and time.monotonic() - self.last >= self.pause:
            with self.clock("report"):
                write_report(self.rundir.path)
            self.last = time.monotonic()

    def ended(self, error: BaseException) -> None:
        """Writes that the run was stopped, or diverged. A failure is added to `error`, which it must not hide."""
        if self.quiet or not isinstance(error, (Stopped, Diverged)):
            return
        try:
            with self.clock("report"):
                write_report(self.rundir.path, ended=str(error))
        except Exception as also:
            add_also(error, f"report.html was not written: {also}")


@dataclass
class Profile:
    """Traces `steps` with jax.profiler on host 0. Never the first step of a process, which compiles; a run that resumes within
    `steps` traces the rest of them."""

    rundir: RunDir
    clock: Clock
    steps: range | None
    tracing: bool = False

    def __call__(self, step: int, state: TrainState, metrics: dict[str, Any]) -> None:
        if self.steps is None or not self.rundir.writes:
            return
        if not self.tracing and step + 1 in self.steps:
            with self.clock("profile"):
                jax.block_until_ready(state.params)  # otherwise, steps that still run would be in the trace
                jax.profiler.start_trace(str(self.rundir.path / "profile"))
            self.tracing = True
        elif self.tracing and step + 1 not in self.steps:
            jax.block_until_ready(state.params)
            self.close()

    def close(self) -> None:
        """Stops and writes the trace, if there is one."""
        if self.tracing:
            with self.clock("profile"):
                jax.profiler.stop_trace()
            self.tracing = False


class StopOnSignal:
    """On SIGTERM, SIGHUP or Ctrl-C, raises Stopped after the current step, once a checkpoint is saved. A second Ctrl-C ends the
    run without saving.

    With several hosts, a signal to one is enough: JAX's coordination service catches SIGTERM, and all hosts stop after the
    same step.
    """

    def __init__(self, save: Save):
        self.save, self.code, self.together = save, 0, jax.distributed.is_initialized()
        signals = (signal.SIGHUP, signal.SIGINT) if self.together else process.SIGNALS
        self.restore = process.catch(self._note, signals)

    def _note(self, code: int) -> None:
        self.code = code
        process.say_now("\nstopping after this step, then saving ...\n")
        if self.together:
            os.kill(os.getpid(), signal.SIGTERM)

    def __call__(self, step: int, state: TrainState, metrics: dict[str, Any]) -> None:
        stop = multihost_utils.reached_preemption_sync_point(step) if self.together else self.code
        if stop:
            self.save.now(step, state)
            with self.save.clock("checkpoint"):
                self.save.checkpoints.wait()
            raise Stopped(self.code or EXIT_PREEMPTED, step)
