"""Copies of a run's settings, figures and samples for programs that show many runs: TensorBoard, W&B, MLflow, trackio.

`log.tensorboard` and `log.trackers` choose them. Where they keep runs, in which project, and whether they are offline, is set
as their own documentation says: WANDB_MODE and WANDB_PROJECT, MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME, TRACKIO_DIR and
TRACKIO_PROJECT. `trackers.json` in the workdir keeps their ids of the run, so that a resumed run goes on in the same one.
"""

import importlib.util
import json
import os
import secrets
import sys
import time
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from lm import atomic, config, redact
from lm.config import resolve
from lm.errors import UserError, printable

IDS = "trackers.json"
PROJECT = "lm"
Samples = Sequence[Mapping[str, Any]]  # each with a "prompt" and a "text"


class Tracker(Protocol):
    id: str | None  # by which a later process finds the run again

    def figures(self, step: int, values: Mapping[str, float]) -> None: ...

    def samples(self, step: int, samples: Samples) -> None: ...

    def close(self, finished: bool) -> None: ...


@dataclass(frozen=True)
class Start:
    """What a tracker begins with: a new run if `id` is None, else the run of that id, which goes on after step `first`."""

    folder: Path
    settings: dict[str, Any]  # dotted key -> number, bool or text
    first: int
    id: str | None


@contextmanager
def _hidden(module: str) -> Generator[None]:
    """Where a module that is not imported yet is as if it were not installed."""
    modules: dict[str, Any] = sys.modules  # a name whose value is None cannot be imported
    imported = module in modules
    modules.setdefault(module, None)
    try:
        yield
    finally:
        if not imported:
            modules.pop(module, None)


class TensorBoard:
    """Event files in the workdir. Those of steps that run again are dropped when they are shown."""

    id: str | None = None

    def __init__(self, start: Start):
        with _hidden("torch"):  # tensorboardX imports it where it is installed, for two seconds, and uses none of it here
            from tensorboardX import SummaryWriter
            from tensorboardX.summary import hparams

        again = start.first + 1 if start.first else None
        self.writer: Any = SummaryWriter(str(start.folder / "tensorboard"), purge_step=again, filename_suffix=f".{start.first}")
        if not start.first:
            # As `add_hparams` does, which would put them into another run beside this one.
            for summary in hparams(start.settings, dict.fromkeys(("loss", "heldout/loss", "heldout/bits_per_byte")))[:2]:
                self.writer.file_writer.add_summary(summary)

    def figures(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def samples(self, step: int, samples: Samples) -> None:
        for i, sample in enumerate(samples):
            self.writer.add_text(f"samples/{i}", _as_code(_line(sample)), step)

    def close(self, finished: bool) -> None:
        self.writer.close()


class Wandb:
    """The project is WANDB_PROJECT; WANDB_MODE=offline keeps the run in the workdir, from where `wandb sync` sends it."""

    def __init__(self, start: Start):
        import wandb

        self.id: str | None = start.id or secrets.token_hex(8)
        project = os.environ.get("WANDB_PROJECT", PROJECT)
        settings: Any = wandb.Settings(console="off", silent=True)  # the run's display has the terminal
        where: Any = dict(dir=str(start.folder), project=project, name=start.folder.name, id=self.id, settings=settings)
        self.run = wandb.init(**where, resume="allow", config=start.settings)
        self.table: Any = wandb.Table

    def figures(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=step)  # W&B leaves out steps that it has; what runs again is the same

    def samples(self, step: int, samples: Samples) -> None:
        rows = [[step, sample["prompt"], sample["text"]] for sample in samples]
        self.run.log({"samples": self.table(columns=["step", "prompt", "text"], data=rows)}, step=step)

    def close(self, finished: bool) -> None:
        self.run.finish(exit_code=0 if finished else 1)


class Mlflow:
    """The experiment is MLFLOW_EXPERIMENT_NAME; MLFLOW_TRACKING_URI may be a server or a folder."""

    def __init__(self, start: Start):
        from mlflow.entities import Metric, Param
        from mlflow.tracking import MlflowClient

        self.client: Any = MlflowClient()
        self.metric: Any = Metric
        self.id: str | None
        if start.id is not None:
            self.id = start.id
            self.client.update_run(self.id, status="RUNNING")
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        found = self.client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else self.client.create_experiment(name)
        self.id = self.client.create_run(experiment, run_name=start.folder.name).info.run_id
        params = [Param(key, str(value)[:6000]) for key, value in start.settings.items()]
        for i in range(0, len(params), 100):  # the most that a batch may have
            self.client.log_batch(self.id, params=params[i : i + 100])

    def figures(self, step: int, values: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        self.client.log_batch(self.id, metrics=[self.metric(name, float(value), now, step) for name, value in values.items()])

    def samples(self, step: int, samples: Samples) -> None:
        texts = [_line(sample) for sample in samples]
        self.client.log_text(self.id, "\n\n".join(texts), f"samples/step_{step:08}.txt")

    def close(self, finished: bool) -> None:
        self.client.set_terminated(self.id, status="FINISHED" if finished else "KILLED")


class Trackio:
    """The project is TRACKIO_PROJECT; runs lie in TRACKIO_DIR."""

    def __init__(self, start: Start):
        import trackio

        self.id: str | None = start.id or f"{start.folder.name}-{secrets.token_hex(3)}"
        project = os.environ.get("TRACKIO_PROJECT", PROJECT)
        self.run = trackio.init(
            project=project,
            name=self.id,
            config=start.settings,
            resume="allow",
            embed=False,
            auto_log_cpu=False,
            auto_log_gpu=False,
        )
        self.text = trackio.Markdown

    def figures(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=step)

    def samples(self, step: int, samples: Samples) -> None:
        texts = [_as_code(_line(sample)) for sample in samples]
        self.run.log({"samples": self.text("\n\n".join(texts))}, step=step)

    def close(self, finished: bool) -> None:
        self.run.finish()


TRACKERS: dict[str, Callable[[Start], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": Wandb,
    "mlflow": Mlflow,
    "trackio": Trackio,
}


def check(log: config.Log) -> None:
    """Raises UserError if a tracker is asked for whose library is not installed."""
    for name in log.trackers:
        if importlib.util.find_spec(name) is None:
            raise UserError(f"log.trackers has '{name}', which is not installed: pip install -e '.[{name}]', or leave it out")


@dataclass
class Trackers:
    """All trackers of a run. One that fails is left out from then on, with a warning: training does not end for it."""

    each: dict[str, Tracker] = field(default_factory=dict)

    def figures(self, step: int, row: Mapping[str, float]) -> None:
        values = {name: value for name, value in row.items() if name != "step"}
        self._all(lambda tracker: tracker.figures(step, values))

    def samples(self, step: int, samples: Samples) -> None:
        if samples:
            self._all(lambda tracker: tracker.samples(step, samples))

    def close(self, *, finished: bool) -> None:
        self._all(lambda tracker: tracker.close(finished))

    def _all(self, call: Callable[[Tracker], None]) -> None:
        for name in list(self.each):
            try:
                call(self.each[name])
            except Exception as error:
                del self.each[name]
                text = f"{name} gets no more of this run: {redact.redacted(str(error)) or type(error).__name__}"
                warnings.warn(printable(text), stacklevel=2)


def start(run: config.Run, folder: Path, first: int) -> Trackers:
    """The trackers that `run.log` asks for, of a run in `folder` that goes on after step `first`. TensorBoard is left out where
    its library is missing, since it is asked for by default."""
    flat = resolve.flatten(resolve.to_dict(run)).items()
    plain = lambda value: value if isinstance(value, (bool, int, float)) else redact.redacted(str(value))
    settings = {key: plain(value) for key, value in flat if value is not None}
    default = ["tensorboard"] if run.log.tensorboard and importlib.util.find_spec("tensorboardX") else []
    ids = _ids(folder / IDS) if first else {}
    each = {
        name: _begun(name, Start(folder, settings, first, ids.get(name)))
        for name in [*dict.fromkeys(run.log.trackers), *default]  # those that may refuse first
    }
    if new := {name: tracker.id for name, tracker in each.items() if tracker.id is not None}:
        atomic.write_json(folder / IDS, ids | new)
    return Trackers(each)


def _begun(name: str, begin: Start) -> Tracker:
    try:
        return TRACKERS[name](begin)
    except Exception as error:  # each library has its own
        cause = (str(error) or type(error).__name__).split("\n")[0]
        raise UserError(f"{name} cannot begin: {redact.redacted(cause)}; set it up, or leave it out of log.trackers") from error


def _ids(path: Path) -> dict[str, str]:
    """Name -> id; none if the file is missing or damaged, and the run is a new one for its trackers."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {k: v for k, v in found.items() if isinstance(v, str)} if isinstance(found, dict) else {}


def _line(sample: Mapping[str, Any]) -> str:
    return f"{sample['prompt']} -> {sample['text']}"


def _as_code(text: str) -> str:
    """Markdown that shows the text as it is."""
    return "\n".join(f"    {line}" for line in text.split("\n"))
