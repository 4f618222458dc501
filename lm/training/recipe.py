"""The interface of a recipe, which defines one kind of training, and the parts of a run; `lm.training.run` does the rest."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from etils import epath
from jax.sharding import Mesh, NamedSharding

from lm import config, flops, sharding
from lm.data.corpus.prepare import Prepared, prepare
from lm.data.loader import Position
from lm.data.rows import blank
from lm.data.tokenizer import Tokenizer
from lm.objectives import Lengths
from lm.training.loop import Source, prefetched
from lm.training.step import StatePlan
from lm.training.task import Task


@dataclass(frozen=True)
class Computation:
    """What a run computes, without data, on a mesh whose devices need not be here (`tpu.aot`)."""

    run: config.Run
    mesh: Mesh
    task: Task
    lengths: Lengths
    row: Any  # blank, as host arrays
    plan: StatePlan
    step: Any  # jitted: (state, frozen, batch) -> (state, metrics)
    schedule: Callable[[int], Any]
    frozen: Any  # abstract arrays with their shardings, or None

    @property
    def flops_per_step(self) -> float:
        """Model FLOPs, forward and backward, of rows without padding."""
        lengths: dict[str, Any] = {name: getattr(self.lengths, name) for name in ("encoder", "decoder", "blocks", "tree")}
        lora = None if self.task.adapter is None else self.task.adapter.lora
        count = lambda m, p: flops.count(m, batch=self.run.train.batch_size, predicted=p, lora=lora, **lengths)
        trained = sum(count(m, p).train for m, p in self.task.passes(self.lengths))
        return trained + sum(count(m, p).forward for m, p in self.task.reads(self.lengths))

    @property
    def batch(self) -> Any:
        """Abstract arrays with their shardings: what a step reads."""
        return abstract_batch(self.row, self.run.train.batch_size, NamedSharding(self.mesh, sharding.BATCH))

    def lower(self) -> Any:
        """The step, traced for its mesh and not yet compiled."""
        with sharding.use(self.mesh):
            return self.step.lower(self.plan.targets(), self.frozen, self.batch)


@dataclass(frozen=True)
class Parts(Computation):
    """Everything that a run consists of before its first step."""

    data: Prepared
    rows: dict[str, Any]  # by split: "train", and "holdout" if anything was held out

    @property
    def test_size(self) -> int:
        """Rows of a held-out batch."""
        return self.run.evaluate.batch_size or self.run.train.batch_size

    def scorer(self, frozen: Any) -> Callable[[Any, Any], Any]:
        """(params, batch) -> the task's held-out scores, jitted."""
        jitted = jax.jit(self.task.scores)
        return lambda params, batch: jitted(params, frozen, batch)


def abstract_batch(row: Any, size: int, placed: NamedSharding | None = None) -> Any:
    """`size` rows as shapes and dtypes."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((size, *x.shape), x.dtype, sharding=placed), row)


class Recipe:
    """The base class of recipes, which override `check`, `task`, `rows`, and other methods as needed. One object serves one
    run; attributes that `complete` sets must not change afterwards."""

    tokenizer: Tokenizer | None = None  # that the data is read with; None: as `run.data` says
    # Whether `source` reads the state's parameters: where there are adapters, it is given those of the task itself.
    reads_params = False
    why_left_out = "documents too short for the objective, ends that do not fit"  # why some text is in no row

    def complete(self, run: config.Run, workdir: epath.Path | None) -> config.Run:
        """Fills in settings that the config takes from the model that the run starts from. Called before any check. If
        `workdir` (None: a dry run) has checkpoints, everything must come from there, since that model may be gone."""
        return run

    def check(self, run: config.Run, task: Task, mesh: Mesh) -> None:
        """Raises UserError for a config that contradicts itself, as far as that can be checked without data."""
        raise NotImplementedError

    def task(self, run: config.Run) -> Task:
        raise NotImplementedError

    def data(self, run: config.Run, *, progress: bool) -> Prepared:
        """The prepared data, with its tokenizer. Raises UserError if the run does not fit it."""
        return prepare(run.data, tokenizer=self.tokenizer, progress=progress)

    def rows(self, run: config.Run, data: Prepared) -> dict[str, Any]:
        """Rows by split (`lm.data.rows.Rows` or a class with the same methods): "train", and "holdout" if anything was held
        out."""
        raise NotImplementedError

    def row(self, rows: Any) -> Any:
        """A blank row, as host arrays: the shapes of a batch without its leading axis."""
        return blank(rows.lengths)

    def shapes(self, run: config.Run) -> tuple[Lengths, Any] | None:
        """The lengths of rows and a blank row, of a recipe whose config alone tells them; None: its data does."""
        return None

    def check_data(self, parts: Parts) -> None:
        """Raises UserError if the run does not fit its data or tokenizer, before anything is trained."""

    def source(self, parts: Parts, position: Position, steps: range) -> Source:
        """The batches of these steps: by default training rows in order, prefetched."""
        rows, mesh = parts.rows["train"], parts.mesh
        return prefetched(lambda step: sharding.global_batch(rows.rows, position.of(step), mesh), steps)

    def facts(self, parts: Parts) -> dict[str, Any]:
        """Further entries of summary.json about the run's data."""
        return {}

    def evaluators(self, parts: Parts, frozen: Any) -> Sequence[Callable[[Any], dict[str, float]]]:
        """Functions from parameters to held-out figures, which are merged into one row of the log. One may have `intervals()`:
        the ends of the 95 % intervals of its latest figures by their names, for summary.json."""
        return ()

    def samples(self, parts: Parts, params: Any, frozen: Any) -> Sequence[Mapping[str, Any]]:
        """Prompts with the model's continuations, for the log and the report: `{"prompt": ..., "text": ...}`, and beside them
        "pictures", a list of PNG files in base64, where there are any."""
        return []

    def baselines(self, parts: Parts) -> dict[str, Any] | None:
        """Figures to compare the model's with, computed after training on one host."""
        return None
