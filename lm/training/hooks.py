"""Everything periodic: each hook is called after every step with (steps done, state, metrics) and decides for itself."""

import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from lm import cli, config, flops
from lm.checkpoint import Checkpoints
from lm.errors import EXIT_PREEMPTED, Diverged, Stopped, printable
from lm.training.loop import Clock
from lm.training.rundir import RunDir
from lm.training.step import STEP_METRICS, counted
from lm.types import TrainState


def check_progress(train: config.Train, step: int, skipped_in_a_row: int) -> None:
    """Raises Diverged where `max_skipped` steps in a row were skipped, and where a run ends with more than a tenth of its steps
    skipped in a row: a run of fewer steps than `max_skipped` may have learned nothing. A single bad batch at the end of a long
    run does not cost the run."""
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
    return step == last or (every is not None and step % every == 0)


class Display:
    """A rich progress bar where there is a terminal, a line now and then where there is none."""

    def __init__(self, total: int, first: int, quiet: bool = False):
        self.console = Console(stderr=True, quiet=quiet)
        columns = ("step", MofNCompleteColumn(), BarColumn(), TextColumn("{task.fields[text]}"))
        self.bar = Progress(
            *columns, TimeElapsedColumn(), TimeRemainingColumn(), console=self.console, disable=not self.console.is_terminal
        )
        self.task = self.bar.add_task("train", total=total, completed=first, text="compiling")
        self.total, self.printed = total, first

    def show(self, step: int, text: str) -> None:
        self.bar.update(self.task, completed=step, text=text)
        if not self.console.is_terminal and (step - self.printed >= self.total / 20 or step == self.total):
            self.say(f"step {step}/{self.total}  {text}")
            self.printed = step

    def say(self, text: str) -> None:
        """Prints lines; what a terminal would act on is written out."""
        self.console.print("\n".join(map(printable, text.split("\n"))), highlight=False, markup=False, soft_wrap=True)


@dataclass
class Log:
    """Every so many steps: the means since the last time of the loss and of what else the task's loss returns, speed, MFU ->
    metrics.jsonl, TensorBoard, the display.

    Also stops a run whose steps are skipped one after the other: the parameters are still those of the last good step.
    """

    c: config.Run
    rundir: RunDir
    display: Display
    clock: Clock
    schedule: Callable[[int], Any]
    flops_per_step: float
    writer: Any = None
    since: dict[str, list[Any]] = field(default_factory=dict)  # the loss and the task's metrics of each step since the last row
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
        """`{"losses", "metrics"}` of the steps since the last row, as JSON. A checkpoint keeps them, so that a resumed run logs
        what it would have logged without a stop."""
        lists = {name: of_steps.tolist() for name, of_steps in self._fetched().items()}
        return {"losses": lists.pop("loss", [])} | ({"metrics": lists} if lists else {})

    def _fetched(self) -> dict[str, np.ndarray]:
        return {name: np.asarray(of_steps, np.float32) for name, of_steps in jax.device_get(self.since).items()}

    def _speed(self, step: int, seconds: float, seen: int) -> dict[str, float]:
        if self.last is None:  # the first interval holds the compilation
            return {}
        steps, spent = step - self.last[0], max(seconds - self.last[1], 1e-9)
        speed = {"tokens_per_second": (seen - self.last[2]) / spent, "steps_per_second": steps / spent}
        peak = flops.peak(jax.devices()[0].device_kind)
        return speed | ({"mfu": self.flops_per_step * steps / spent / peak / jax.device_count()} if peak else {})

    def write(self, row: dict[str, Any]) -> None:
        """A row of numbers to metrics.jsonl and TensorBoard."""
        self.rundir.append("metrics.jsonl", row)
        if self.writer is not None:
            for name, value in row.items():
                self.writer.add_scalar(name, value, row["step"])


@dataclass
class Evaluate:
    """Held-out metrics and samples, with the averaged parameters if there are any."""

    c: config.Run
    evaluators: Sequence[Callable[[Any], dict[str, float]]]  # each from parameters
    sample: Callable[[Any], list[dict[str, str]]]
    log: Log
    latest: dict[str, float] = field(default_factory=dict)
    at: int = -1

    def __call__(self, step: int, state: TrainState, metrics: dict[str, Any]) -> None:
        if not due(step, self.c.evaluate.every, self.c.train.steps):
            return
        jax.block_until_ready(state.params)  # else the steps still under way would count as evaluation
        params = self.evaluate(step, state)
        self.log.write({"step": step} | {f"heldout/{k}": v for k, v in self.latest.items()})
        shown = ("loss", "nll", "accuracy", "exact", "f1", "bits_per_byte")
        self.log.display.say(
            f"step {step}  held-out  " + "  ".join(f"{k} {self.latest[k]:.4f}" for k in shown if k in self.latest)
        )
        with self.log.clock("sample"):
            texts = self.sample(params)
        for text in texts:
            self.log.rundir.append("samples.jsonl", {"step": step} | text)

    def evaluate(self, step: int, state: TrainState) -> Any:
        """Sets `latest` to the figures of all evaluators; returns the parameters that they are of."""
        params = state.params if state.ema is None else state.ema
        with self.log.clock("evaluate"):
            self.latest = {name: value for evaluator in self.evaluators for name, value in evaluator(params).items()}
        self.at = step
        return params


@dataclass
class Save:
    """Checkpoints when due, with the held-out loss of the same step so that the best can be kept."""

    c: config.Run
    checkpoints: Checkpoints
    evaluate: Evaluate
    clock: Clock
    rows: Callable[[int], int]  # rows of the data that have been read when so many steps are done

    def __call__(self, step: int, state: TrainState, metrics: dict[str, Any]) -> None:
        if due(step, self.c.checkpoint.every, self.c.train.steps):
            self.now(step, state)

    def now(self, step: int, state: TrainState) -> None:
        check_progress(self.c.train, step, int(state.skipped_in_a_row))  # waits for the step; else it would count as saving
        with self.clock("checkpoint"):
            found = self.evaluate.latest if self.evaluate.at == step else {}
            loss = found.get("loss", found.get("nll"))
            progress = {"rows": self.rows(step)} | self.evaluate.log.pending()
            self.checkpoints.save(state, {"loss": loss} if loss is not None else None, progress=progress)


@dataclass
class Goodput:
    """Where the run stands and what its seconds went into -> goodput.jsonl, which outlives a kill."""

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

    def now(self, event: str = "step") -> None:
        row = {"event": event, "time": time.time(), "step": self.at, "seconds": self.clock.seconds()}
        self.rundir.append("goodput.jsonl", row)
        self.rundir.publish()


@dataclass
class Profile:
    """Traces the given steps with jax.profiler, at host 0. What is left of them if the run goes on within them; the first
    step of a process, which compiles, is never among them."""

    rundir: RunDir
    clock: Clock
    steps: range | None
    tracing: bool = False

    def __call__(self, step: int, state: TrainState, metrics: dict[str, Any]) -> None:
        if self.steps is None or not self.rundir.writes:
            return
        if not self.tracing and step + 1 in self.steps:
            with self.clock("profile"):
                jax.block_until_ready(state.params)  # else the steps still under way would be in the trace
                jax.profiler.start_trace(str(self.rundir.path / "profile"))
            self.tracing = True
        elif self.tracing and step + 1 not in self.steps:
            jax.block_until_ready(state.params)
            self.close()

    def close(self) -> None:
        """Writes the trace, if one is under way."""
        if self.tracing:
            with self.clock("profile"):
                jax.profiler.stop_trace()
            self.tracing = False


class StopOnSignal:
    """SIGTERM, SIGHUP and Ctrl-C end the run after the step under way, saved; a second Ctrl-C ends it without saving.

    Of several hosts one is enough: jax's service catches SIGTERM there, and all agree on the step after which they stop.
    """

    def __init__(self, save: Save):
        self.save, self.code, self.together = save, 0, jax.distributed.is_initialized()
        signals = (signal.SIGHUP, signal.SIGINT) if self.together else cli.SIGNALS
        self.restore = cli.catch(self._note, signals)

    def _note(self, code: int) -> None:
        self.code = code
        cli.say_now("\nstopping after this step, then saving ...\n")
        if self.together:
            os.kill(os.getpid(), signal.SIGTERM)

    def __call__(self, step: int, state: TrainState, metrics: dict[str, Any]) -> None:
        stop = multihost_utils.reached_preemption_sync_point(step) if self.together else self.code
        if stop:
            self.save.now(step, state)
            with self.save.clock("checkpoint"):
                self.save.checkpoints.wait()
            raise Stopped(self.code or EXIT_PREEMPTED, step)
