"""A study: cells, each a run that is measured, seeds, and the relations between cells that a paper claims.

`experiments/<name>/study.py` has `study(**settings) -> Study`; `python -m experiments.run <name>` executes it and
`python -m experiments.report` judges it.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lm import config
from lm.config import resolve
from lm.config.ranges import Count, NonNegative, Share
from lm.errors import UserError, nearest

if TYPE_CHECKING:
    from lm.saved import Saved  # imports jax

Results = dict[str, dict[int, dict[str, Any]]]  # cell -> seed -> what its result.json holds


def derived_result(metrics: dict[str, Any], items: dict[str, Any] | None = None) -> dict[str, Any]:
    """The result of what `Study.derive` adds beside the cells: it cost nothing of its own."""
    return {"metrics": metrics, "items": items or {}, "flags": {}, "ledger": {}, "curve": []}


@dataclass(frozen=True)
class Derived:
    """What `Study.derive` adds beside the cells."""

    label: str
    of: tuple[str, ...] = ()  # the cells that it is made from: it is judged only if they pass their gates


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
    labels: Count | None = None  # training records; None: all of the set
    seeds: Count = 1  # fine-tunings of each pretrained model
    grid: tuple[tuple[float, int], ...] = ()  # (learning_rate, steps) to choose from on a development split; (): as above
    compare: Literal["words", "symbols"] = "words"  # written answers: `config.Finetune.compare`


@dataclass(frozen=True)
class Task:
    """A fine-tuning that starts from a cell's parameters; gives the metrics `<name>/accuracy`, `<name>/nll`, ..."""

    name: str  # of a set in `lm.data.corpus.packages` or of questions in `lm.data.corpus.cloze`, or of `data`
    how: Literal["text", "head"]
    settings: Finetune = Finetune()
    data: config.Data | None = None  # records of one's own; None: the set `name`


@dataclass(frozen=True)
class Measured:
    """What a measurement found. `items[name]` are the values of metric `name` for each test item, in an order that is the same
    for all cells and seeds; their mean is the metric."""

    metrics: Mapping[str, float] = field(default_factory=dict)
    items: Mapping[str, np.ndarray] = field(default_factory=dict)  # float64 [N]
    flags: Mapping[str, str] = field(default_factory=dict)  # metric -> what a reader must know of it
    flops: float = 0.0  # that the measurement trained for, such as a fine-tuning's
    nested: Mapping[str, list[float]] = field(default_factory=dict)  # metric -> its values of which it is the mean


@dataclass(frozen=True)
class Cell:
    """One run of a study: everything but the seed, the steps (if the study matches a cost) and where it starts from.

    `share=0` trains nothing: the model at its first parameters, which is the floor of cells that are fine-tuned.
    """

    label: str
    run: config.Run
    facts: Mapping[str, str] = field(default_factory=dict)  # columns that describe it in the tables
    start: str | None = None  # the cell that it goes on from, at the same seed
    share: float = 1.0  # of the study's budget
    scores: tuple[str, ...] = ()  # kinds of `lm.evaluation.spans`
    tasks: tuple[Task, ...] = ()
    items: Mapping[str, str] = field(default_factory=dict)  # name -> JSON lines of {"left", "target", "right"}; gives
    # `<name>/exact`, `<name>/accuracy` of tokens and `<name>/nats` of an item (`lm.evaluation.items`)
    measure: "Callable[[Saved], Measured] | None" = None  # of its own, beside all of these
    floor: str | None = None  # the cell of the same model without pretraining
    init_map: Mapping[Any, Any] = field(default_factory=dict)  # which of its stacks begins with which (`config.Train.init_map`)
    # Settings of the run that name the finished run of another cell at the same seed, such as {"recipe.teacher": "large"}.
    reads: Mapping[str, str] = field(default_factory=dict)

    @property
    def needs(self) -> tuple[str, ...]:
        """The cells that are finished before it begins."""
        return (*((self.start,) if self.start else ()), *self.reads.values())


@dataclass(frozen=True)
class Metric:
    name: str  # in a result's "metrics", such as "suffix/bits_per_byte"
    label: str
    higher: bool | None = True  # is more better? None: neither direction is
    flag: str = ""  # such as "not normalised"
    chance: str = ""  # the metric that says what is had for nothing; a relation between cells that have no more is undecided
    comparable: bool = True  # between cells of different objectives
    floor: bool = False  # a relation is undecided unless the better of its cells is above its `Cell.floor`
    lines: Mapping[str, float] = field(default_factory=dict)  # to be drawn: {"chance": 0.25, "entropy": 1.386}
    unit: str = ""  # "nats a token"; "" for a share


@dataclass(frozen=True)
class Gate:
    """A check that the manipulation worked: a relation between cells is judged only if each of them passes, in every seed.

    `at_least` and `at_most` are values of `metric`.
    """

    name: str  # as a sentence's subject: "the discriminator finds replaced tokens"
    metric: str
    at_least: float | None = None
    at_most: float | None = None
    cells: tuple[str, ...] = ()  # that it is asked of; (): all that have the metric


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
    planted: Literal["", "effect", "null"] = ""  # known by construction: a check of the method, not a finding
    # One cell goes on from the other, or both from a third, at the same seed: compared as pairs, by the variance of the
    # differences alone. Decided with the design, since it sets the test.
    paired: bool = False


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
    derived: Mapping[str, Derived] = field(default_factory=dict)  # by name
    analyse: Callable[[Results, Path], str] | None = None  # draws into a folder, gives Markdown
    gates: tuple[Gate, ...] = ()
    withdrawn: str = ""  # why its results decide nothing, as sentences; its relations then get no verdict

    def __post_init__(self) -> None:
        if self.match not in (None, "flops", "seen", "loss_tokens", "params"):
            raise UserError(f"match={self.match!r}; it must be 'flops', 'seen', 'loss_tokens', 'params' or None")
        if self.seeds < 1 or (self.match and self.budget <= 0):
            raise UserError(f"seeds={self.seeds} and budget={self.budget:g} must be positive")
        for name, cell in self.cells.items():
            for kind, other in (("start", cell.start), ("floor", cell.floor), *cell.reads.items()):
                if other is not None and other not in self.cells:
                    raise UserError(f"cell '{name}' has {kind}='{other}'{nearest(other, self.cells)}")
        for name, made in self.derived.items():
            for other in made.of:
                if other not in self.cells:
                    raise UserError(f"'{name}' is derived from '{other}'{nearest(other, self.cells)}")

    @property
    def labels(self) -> dict[str, str]:
        """Of everything that has results."""
        return {name: of.label for name, of in (*self.cells.items(), *self.derived.items())}

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
        if cell.init_map:
            parts += (dict(cell.init_map),)
        if cell.reads:
            parts += ({key: self.mark(other) for key, other in cell.reads.items()},)
        if cell.items or cell.measure:
            parts += (dict(cell.items), cell.measure and f"{cell.measure.__module__}.{cell.measure.__qualname__}")
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def root(self, name: str) -> str:
        """A cell that is the same for all that need each other: the first of them."""
        group, before = {name}, set[str]()
        while group != before:
            before = set(group)
            group |= {other for one in group for other in self.cells[one].needs}
            group |= {one for one, cell in self.cells.items() if group & set(cell.needs)}
        return next(one for one in self.cells if one in group)
