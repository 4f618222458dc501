"""A study: cells, each a run that is measured, seeds, and the relations between cells that a paper claims.

`experiments/<name>/study.py` has `study(**settings) -> Study`; `python -m experiments.run <name>` executes it and
`python -m experiments.report` judges it.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lm import config
from lm.config import resolve
from lm.config.ranges import Count, NonNegative, Share
from lm.errors import UserError

Results = dict[str, dict[int, dict[str, Any]]]  # cell -> seed -> what its result.json holds


@dataclass(frozen=True)
class Finetune:
    """The budget of a fine-tuning; the learning rate rises over the warm-up and falls to 0. Its names are part of the digests
    of results (`Study.mark`)."""

    steps: Count = 200
    batch_size: Count = 32
    learning_rate: NonNegative = 1e-3
    warmup: Share = 0.1  # of the steps (BERT, arXiv 1810.04805, appendix A.2)
    weight_decay: NonNegative = 0.01  # the same
    length: Count = config.Finetune.length
    answer: Count = config.Finetune.answer
    rows: Count = 1000  # of the held-out records that are tested, at most


@dataclass(frozen=True)
class Task:
    """A fine-tuning that starts from a cell's parameters; gives the metrics `<name>/accuracy`, `<name>/nll`, ..."""

    name: str  # of a set in `lm.data.corpus.packages`, or of questions in `lm.data.corpus.cloze`
    how: Literal["text", "head"]
    settings: Finetune = Finetune()


@dataclass(frozen=True)
class Cell:
    """One run of a study: everything but the seed, the steps (if the study matches a cost) and where it starts from."""

    label: str
    run: config.Run
    facts: Mapping[str, str] = field(default_factory=dict)  # columns that describe it in the tables
    start: str | None = None  # the cell that it goes on from, at the same seed
    share: float = 1.0  # of the study's budget
    scores: tuple[str, ...] = ()  # kinds of `lm.evaluation.spans`
    tasks: tuple[Task, ...] = ()


@dataclass(frozen=True)
class Metric:
    name: str  # in a result's "metrics", such as "suffix/bits_per_byte"
    label: str
    higher: bool = True  # is more better?
    flag: str = ""  # such as "not normalised"
    chance: str = ""  # the metric that says what is had for nothing; a relation between cells that have no more is undecided
    comparable: bool = True  # between cells of different objectives


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
    steps are those of the cell's run. Primary relations are few: with three seeds a family of three needs a difference of
    more than four of its standard deviations.
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
    withdrawn: str = ""  # why its results decide nothing, as sentences; its relations then get no verdict

    def __post_init__(self) -> None:
        if self.match not in (None, "flops", "seen", "loss_tokens", "params"):
            raise UserError(f"match={self.match!r}; it must be 'flops', 'seen', 'loss_tokens', 'params' or None")
        if self.seeds < 1 or (self.match and self.budget <= 0):
            raise UserError(f"seeds={self.seeds} and budget={self.budget:g} must be positive")

    @property
    def labels(self) -> dict[str, str]:
        """Of everything that has results."""
        return {name: cell.label for name, cell in self.cells.items()} | dict(self.derived)

    def mark(self, name: str) -> str:
        """A digest of all that decides a cell's result but the seed and the code, defaults included: of a setting that is at
        its default nothing is noted, so that fields may be added. What a cell starts from is part of it."""
        cell = self.cells[name]
        before = None if cell.start is None else self.mark(cell.start)
        parts = (
            resolve.non_defaults(cell.run),
            cell.share,
            cell.scores,
            resolve.non_defaults(cell.tasks),
            self.match,
            self.budget,
            before,
        )
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def root(self, name: str) -> str:
        """The first cell of the chain that a cell goes on from."""
        start = self.cells[name].start
        return name if start is None else self.root(start)
