"""What a comparison study is: cells, seeds, metrics, and the relations between cells that a paper published."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Results = dict[str, dict[int, dict[str, Any]]]  # cell -> seed -> result


@dataclass(frozen=True)
class Cell:
    label: str
    facts: Mapping[str, str]  # columns that describe it


@dataclass(frozen=True)
class Metric:
    name: str  # key in result["metrics"], such as "suffix/bits_per_byte" or "sentiment/accuracy"
    label: str
    higher: bool = True  # is more better?
    flag: str = ""  # such as "not normalised"


@dataclass(frozen=True)
class Relation:
    """`better` is above `than` by this metric (in its good direction), or within `margin` of it."""

    name: str
    metric: str
    better: str  # a cell
    than: str
    kind: Literal["greater", "equivalent"] = "greater"
    margin: float = 0.0  # of an equivalence, in the metric's unit
    source: str = ""  # paper and table
    published: tuple[float, float] | None = None  # their figures for (better, than)
    primary: bool = True  # counts in the Holm family of the study; others are shown as exploratory, uncorrected


@dataclass(frozen=True)
class Study:
    name: str
    title: str
    cells: Mapping[str, Cell]
    seeds: int
    metrics: tuple[Metric, ...]
    relations: tuple[Relation, ...]
    match: Literal["flops", "seen", "loss_tokens", "params"] | None = None
    budget: float = 0.0
    derive: Callable[[Results], Results] | None = None  # adds metrics computed from several cells of a seed
    analyse: Callable[[Results, Path], str] | None = None  # draws into a folder, gives Markdown (relative links to pictures)
