"""A study: cells, each a run that is measured, seeds, and the relations between cells that a paper claims.

`experiments/<name>/study.py` has `study(**settings) -> Study`; `python -m experiments.run <name>` executes it and
`python -m experiments.report` judges it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lm import config

Results = dict[str, dict[int, dict[str, Any]]]  # cell -> seed -> what its result.json holds


@dataclass(frozen=True)
class Task:
    """A fine-tuning that starts from a cell's parameters; gives the metrics `<name>/accuracy`, `<name>/nll`, ..."""

    name: str  # see `lm.data.labelled`
    how: Literal["text", "head"]
    settings: config.Finetune = config.Finetune()


@dataclass(frozen=True)
class Cell:
    """One run of a study: everything but the seed, the steps (if the study matches a cost) and where it starts from."""

    label: str
    run: config.Run
    facts: Mapping[str, str] = field(default_factory=dict)  # columns that describe it in the tables
    start: str | None = None  # the cell that it goes on from, at the same seed
    share: float = 1.0  # of the study's budget
    scores: tuple[str, ...] = ()  # kinds of `lm.evaluate.comparable`
    tasks: tuple[Task, ...] = ()


@dataclass(frozen=True)
class Metric:
    name: str  # in a result's "metrics", such as "suffix/bits_per_byte"
    label: str
    higher: bool = True  # is more better?
    flag: str = ""  # such as "not normalised"


@dataclass(frozen=True)
class Relation:
    """`better` is above `than` by this metric (in its good direction), or within `margin` of it."""

    name: str
    metric: str
    better: str
    than: str
    kind: Literal["greater", "equivalent"] = "greater"
    margin: float = 0.0  # of an equivalence, in the metric's unit
    source: str = ""  # paper and table
    published: tuple[float, float] | None = None  # their figures for (better, than)
    primary: bool = True  # counts in the study's Holm family; others are exploratory, and not corrected


@dataclass(frozen=True)
class Study:
    """`match` holds one figure of the ledger equal in all cells (times their share): `budget` FLOPs, tokens or parameters.

    With `flops`, `seen` or `loss_tokens` the steps of a cell follow from it; with `params`, or without `match`, the
    steps are those of the cell's run.
    """

    name: str
    title: str
    cells: Mapping[str, Cell]
    seeds: int
    metrics: tuple[Metric, ...]
    relations: tuple[Relation, ...]
    match: Literal["flops", "seen", "loss_tokens", "params"] | None = None
    budget: float = 0.0
    derive: Callable[[Results], Results] | None = None  # adds metrics that take several cells of a seed
    derived: Mapping[str, str] = field(default_factory=dict)  # results that `derive` adds beside the cells: name -> label
    analyse: Callable[[Results, Path], str] | None = None  # draws into a folder, gives Markdown

    @property
    def labels(self) -> dict[str, str]:
        """Of everything that has results."""
        return {name: cell.label for name, cell in self.cells.items()} | dict(self.derived)


def mean_of(parts: tuple[str, ...], name: str = "downstream/average") -> Callable[[Results], Results]:
    """A `derive` that adds the mean of these metrics where a result has them all."""

    def derive(results: Results) -> Results:
        for seeds in results.values():
            for result in seeds.values():
                metrics = result["metrics"]
                if all(part in metrics for part in parts):
                    metrics[name] = sum(metrics[part] for part in parts) / len(parts)
        return results

    return derive
