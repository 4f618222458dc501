"""Tests a study's relations on the seeds that have results."""

import math
from dataclasses import dataclass, replace

import numpy as np

from experiments import stats, variance
from experiments.study import Gate, Metric, Relation, Results, Study
from lm.errors import UserError, nearest


@dataclass(frozen=True)
class Judged:
    """A tested relation. Gains are better - than, signed so that positive means better.

    In every field, None means that it cannot be computed: no run of a cell, or one seed.
    """

    relation: Relation
    metric: Metric
    test: stats.Test | None
    p: float | None = None
    p_holm: float | None = None  # also None for an exploratory relation
    seeds: int | None = None  # needed to decide it; also None above `stats.CAP`
    power: float | None = None  # of an equivalence: the chance to show it if the two cells are equal
    verdict: stats.Verdict = "unresolved"
    why: str = ""  # there is no verdict
    withdrawn: bool = False  # the study is withdrawn, so there is no verdict
    flags: tuple[str, ...] = ()  # what a reader must know of the metric in these cells

    @property
    def interval(self) -> stats.Interval | None:
        return None if self.test is None else self.test.interval

    @property
    def words(self) -> str:
        """The verdict, what kind of relation it is on, and why there is none."""
        return self.short + (f" ({self.why})" if self.why and not self.withdrawn else "")

    @property
    def short(self) -> str:
        """The verdict and what kind of relation it is on."""
        if self.withdrawn:
            return "withdrawn"
        kind = "" if in_family(self.relation) else ", exploratory"
        return self.verdict + kind + (f", planted {self.relation.planted}" if self.relation.planted else "")

    @property
    def as_planted(self) -> bool | None:
        """Does the verdict agree with what is known by construction? None for a relation that is not planted, and for an effect
        or an equivalence that is not decided. A planted null that is claimed to be a difference should be unresolved."""
        if not self.relation.planted or self.verdict == "not judged" or self.withdrawn:
            return None
        if self.relation.planted == "null" and self.relation.kind == "greater":
            return self.verdict == "unresolved"
        return None if self.verdict == "unresolved" else self.verdict == "reproduced"


def sign(metric: Metric) -> int:
    """Of a gain; where neither direction is better, more counts as a gain."""
    return -1 if metric.higher is False else 1


def in_family(relation: Relation) -> bool:
    """Is its p corrected with the study's primary relations?"""
    return relation.primary or bool(relation.planted)


def values(results: Results, cell: str, metric: str) -> dict[int, float]:
    """Seed -> value of the metric, for the runs that have a finite one."""
    found = {seed: r["metrics"].get(metric) for seed, r in sorted(results.get(cell, {}).items())}
    return {seed: float(v) for seed, v in found.items() if v is not None and math.isfinite(v)}


def items(results: Results, cell: str, metric: str) -> dict[int, np.ndarray]:
    """Seed -> values of the metric's test items, float64 [N], for the runs that have them. Hits are stored as "0110"."""
    found = {seed: r.get("items", {}).get(metric) for seed, r in results.get(cell, {}).items()}
    return {seed: np.array([float(v) for v in x]) for seed, x in found.items() if x is not None and len(x) > 1}


def contrast(
    study: Study, results: Results, metric: Metric, better: str, than: str, *, paired: bool = False
) -> stats.Test | None:
    """The gain of one cell over another, with the error from all cells of the study that have the metric, or if they are
    `paired` by design, from their differences."""
    table = {cell: v for cell in study.labels if (v := values(results, cell, metric.name))}
    asked = {cell: items(results, cell, metric.name) for cell in (better, than)}
    return variance.contrast(table, better, than, items=asked, higher=metric.higher is not False, paired=paired)


def judge(study: Study, results: Results) -> list[Judged]:
    """Tests all relations, in the study's order. Raises UserError if one names an unknown cell or metric."""
    metrics = {m.name: m for m in study.metrics}
    for r in study.relations:
        _check(study, r, metrics)
    family = sum(map(in_family, study.relations))
    tested = [_tested(study, results, r, metrics[r.metric], family) for r in study.relations]
    # Holm's family has all of its relations, also those that cannot be judged: missing runs must not lower the thresholds.
    members = [j for j in tested if in_family(j.relation)]
    corrected = stats.holm([1.0 if j.p is None else j.p for j in members])
    holm = {id(j): p for j, p in zip(members, corrected, strict=True) if j.p is not None}
    return [_decided(j, holm.get(id(j)), bool(study.withdrawn)) for j in tested]


def _check(study: Study, r: Relation, metrics: dict[str, Metric]) -> None:
    if r.metric not in metrics:
        raise UserError(f"relation '{r.name}' asks for metric '{r.metric}'{nearest(r.metric, metrics)}")
    for cell in (r.better, r.than):
        if cell not in study.labels:
            raise UserError(f"relation '{r.name}' asks for cell '{cell}'{nearest(cell, study.labels)}")
    if r.better == r.than:
        raise UserError(f"relation '{r.name}' compares cell '{r.than}' with itself; give two cells")
    if r.paired and not set(_starts(study, r.better)) & set(_starts(study, r.than)):
        raise UserError(f"relation '{r.name}' is paired, but '{r.better}' and '{r.than}' go on from no common cell")
    if r.kind == "equivalent" and r.margin <= 0:
        raise UserError(f"relation '{r.name}' is an equivalence without a margin; give margin > 0 in the metric's unit")


def _tested(study: Study, results: Results, relation: Relation, metric: Metric, family: int) -> Judged:
    test = contrast(study, results, metric, relation.better, relation.than, paired=relation.paired)
    if test is None:
        return Judged(relation, metric, None, why="a cell has no run yet")
    if test.df == 0:
        return Judged(relation, metric, test, why="one seed")
    runs = [r for cell in (relation.better, relation.than) for r in results[cell].values()]
    flags = tuple(sorted({str(text) for r in runs if (text := r["flags"].get(metric.name))}))
    found = Judged(relation, metric, test, flags=flags, why="equal in all runs" if test.error == test.mean == 0 else "")
    if not study.withdrawn and (why := _not_judged(study, results, relation, metric)):
        return replace(found, verdict="not judged", why=why)
    alpha = stats.ALPHA / max(1, family if in_family(relation) else 1)
    power = None
    if relation.kind == "equivalent" and test.error > 0:
        power = stats.tost_power(0.0, test.error, test.df, relation.margin, alpha=alpha)
    p, seeds = stats.relation_p(relation, test), stats.seeds_needed(relation, test, alpha=alpha)
    return replace(found, p=p, seeds=seeds, power=power)


def _decided(judged: Judged, p_holm: float | None, withdrawn: bool) -> Judged:
    if judged.test is None or judged.verdict == "not judged":
        return replace(judged, withdrawn=withdrawn)
    p = p_holm if in_family(judged.relation) else judged.p
    verdict = "unresolved" if withdrawn else stats.verdict(judged.relation, judged.test, p)
    return replace(judged, p_holm=p_holm, verdict=verdict, withdrawn=withdrawn)


@dataclass(frozen=True)
class Checked:
    """A gate's values in a cell: seed -> value, NaN for a run without the metric."""

    gate: Gate
    cell: str
    found: dict[int, float]

    @property
    def passed(self) -> bool:
        low = -math.inf if self.gate.at_least is None else self.gate.at_least
        high = math.inf if self.gate.at_most is None else self.gate.at_most
        return bool(self.found) and all(low <= value <= high for value in self.found.values())


def gates(study: Study, results: Results) -> list[Checked]:
    """All gates in all cells that have results and that they are asked of."""
    found = []
    for gate in study.gates:
        for cell in gate.cells or study.labels:
            runs = results.get(cell, {})
            measured = values(results, cell, gate.metric)
            if runs and (gate.cells or measured):
                found.append(Checked(gate, cell, {seed: measured.get(seed, math.nan) for seed in sorted(runs)}))
    return found


def _not_judged(study: Study, results: Results, relation: Relation, metric: Metric) -> str:
    """Why the relation is not judged: a gate that a cell of it, or one that such a cell goes on from, does not pass, or no cell
    above its floor or chance; else ""."""
    cells = (relation.better, relation.than)
    asked = {name for cell in cells for name in _chain(study, cell)}
    for checked in gates(study, results):
        if checked.cell in asked and not checked.passed:
            found = ", ".join(f"{value:.3g}" for value in checked.found.values())
            return f"{study.labels[checked.cell]} fails the check that {checked.gate.name}: {found}"
    if metric.floor and (why := _at_floor(study, results, cells, metric)):
        return why
    if metric.chance and not any(_above_chance(results, cell, metric) for cell in cells):
        return "neither shown to be above chance"
    return ""


def _chain(study: Study, cell: str) -> list[str]:
    """The cell and those that it rests on: those that it needs or is derived from, and so on."""
    if cell in study.cells:
        before = study.cells[cell].needs
    else:
        before = study.derived[cell].of if cell in study.derived else ()
    return [cell, *(name for other in before for name in _chain(study, other))]


def _starts(study: Study, cell: str | None) -> list[str]:
    """The cell, the one that it goes on from, and so on."""
    found = []
    while cell in study.cells:
        found.append(cell)
        cell = study.cells[cell].start
    return found


def _at_floor(study: Study, results: Results, cells: tuple[str, str], metric: Metric) -> str:
    """Why the better of two cells is not shown to be above its floor; "" if it is, or if one of the two is that floor."""
    mean = lambda cell: float(np.mean(list(values(results, cell, metric.name).values()))) * sign(metric)
    better = max(cells, key=mean)
    floor = study.cells[better].floor if better in study.cells else None
    if floor is None or floor in cells:
        return ""
    test = above_floor(results, better, floor, metric)
    if test is None or test.df == 0:
        return f"no two runs of the floor, {study.labels[floor]}"
    if above(test):
        return ""
    reached, without = (float(np.mean(list(values(results, cell, metric.name).values()))) for cell in (better, floor))
    return f"not above the floor: {study.labels[better]} {reached:.4g}, {study.labels[floor]} {without:.4g}"


def above_floor(results: Results, cell: str, floor: str, metric: Metric) -> stats.Test | None:
    """The gain of a cell over its floor, with the variance of these two alone."""
    asked = {name: items(results, name, metric.name) for name in (cell, floor)}
    table = {name: values(results, name, metric.name) for name in (cell, floor)}
    return variance.contrast(table, cell, floor, items=asked, higher=metric.higher is not False)


def _above_chance(results: Results, cell: str, metric: Metric) -> bool:
    reached, chance = values(results, cell, metric.name), values(results, cell, metric.chance)
    hits = items(results, cell, metric.name)
    asked = {"reached": hits, "chance": {seed: np.full(len(hits[seed]), v) for seed, v in chance.items() if seed in hits}}
    table = {"reached": reached, "chance": chance}
    test = variance.contrast(table, "reached", "chance", items=asked, higher=metric.higher is not False)
    return test is None or above(test)  # no chance level was measured


def above(test: stats.Test) -> bool:
    """Is the gain positive, by a two-sided test at 0.05?"""
    p = stats.different(test)
    return test.mean > 0 and p is not None and p < stats.ALPHA
