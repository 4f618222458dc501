"""Tests a study's relations on the seeds that have results."""

import dataclasses
import math

from experiments import stats
from experiments.study import Metric, Relation, Results, Study
from lm.errors import UserError, nearest


@dataclasses.dataclass(frozen=True)
class Judged:
    """A tested relation. Differences are gains: better - than, signed so that positive means better.

    In every field, None means that it cannot be computed: no seed in common, one seed, or no variance.
    """

    relation: Relation
    metric: Metric
    test: stats.Paired | None
    interval: stats.Interval | None
    bootstrap: stats.Interval | None
    p: float | None
    p_holm: float | None  # also None for an exploratory relation
    seeds: int | None  # needed to decide it; also None above `stats.CAP`
    verdict: stats.Verdict
    at_chance: bool = False  # neither cell is shown to be above the metric's chance level
    withdrawn: bool = False  # the study is withdrawn, so there is no verdict

    @property
    def words(self) -> str:
        """The verdict, whether the relation is exploratory, and why it is unresolved."""
        if self.withdrawn:
            return "withdrawn"
        if self.test is None:
            why = " (no pair of runs yet)"
        elif self.test.n == 1:
            why = " (one seed)"
        else:
            why = " (differences without variance)" if self.test.p is None else ""
        if self.at_chance:
            why = " (neither shown to be above chance)"
        return self.verdict + ("" if self.relation.primary else ", exploratory") + why

    @property
    def published(self) -> float | None:
        """The published gain, in the paper's unit."""
        if self.relation.published is None:
            return None
        better, than = self.relation.published
        return (better - than) * (1 if self.metric.higher else -1)


def values(results: Results, cell: str, metric: str) -> dict[int, float]:
    """Seed -> value of the metric, for the runs that have a finite one."""
    found = {seed: r["metrics"].get(metric) for seed, r in sorted(results.get(cell, {}).items())}
    return {seed: float(v) for seed, v in found.items() if v is not None and math.isfinite(v)}


def pairs(results: Results, better: str, than: str, metric: str) -> list[tuple[float, float]]:
    """(better, than) values for each seed that both cells have."""
    a, b = values(results, better, metric), values(results, than, metric)
    return [(a[seed], b[seed]) for seed in a if seed in b]


def judge(study: Study, results: Results) -> list[Judged]:
    """Tests all relations, in the study's order. Raises UserError if one names an unknown cell or metric."""
    metrics = {m.name: m for m in study.metrics}
    for r in study.relations:
        if r.metric not in metrics:
            raise UserError(f"relation '{r.name}' asks for metric '{r.metric}'{nearest(r.metric, metrics)}")
        for cell in (r.better, r.than):
            if cell not in study.labels:
                raise UserError(f"relation '{r.name}' asks for cell '{cell}'{nearest(cell, study.labels)}")
        if r.kind == "equivalent" and r.margin <= 0:
            raise UserError(f"relation '{r.name}' is an equivalence without a margin; give margin > 0 in the metric's unit")
    found = [_tested(r, metrics[r.metric], pairs(results, r.better, r.than, r.metric)) for r in study.relations]
    # Holm's family has all primary relations, also those that cannot be tested yet: missing runs must not lower the thresholds.
    primary = [j for j in found if j.relation.primary]
    holm = dict(zip(map(id, primary), stats.holm([1.0 if j.p is None else j.p for j in primary]), strict=True))
    decided = [_decided(j, holm.get(id(j)) if j.p is not None else None, len(primary), results) for j in found]
    if study.withdrawn:
        return [dataclasses.replace(j, verdict="unresolved", withdrawn=True) for j in decided]
    return [_unless_at_chance(j, results) for j in decided]


def _unless_at_chance(judged: Judged, results: Results) -> Judged:
    """Removes the verdict if neither cell is above chance: two models that learned nothing would count as equivalent."""
    relation, chance = judged.relation, judged.metric.chance
    if not chance or judged.verdict == "unresolved":
        return judged
    for cell in (relation.better, relation.than):
        reached, by_chance = (values(results, cell, name) for name in (relation.metric, chance))
        both = [(v, by_chance[seed]) for seed, v in reached.items() if seed in by_chance]
        test = stats.gains(both, higher=judged.metric.higher) if both else None
        if test is None or test.mean > 0 and (test.p is None or test.p < stats.ALPHA):
            return judged
    return dataclasses.replace(judged, verdict="unresolved", at_chance=True)


def _tested(relation: Relation, metric: Metric, found: list[tuple[float, float]]) -> Judged:
    if not found:
        return Judged(relation, metric, None, None, None, None, None, None, "unresolved")
    sign = 1 if metric.higher else -1
    differences = [sign * (a - b) for a, b in found]
    test = stats.gains(found, higher=metric.higher)
    bootstrap = stats.bootstrap_interval(differences)
    p = stats.relation_p(relation, test)
    return Judged(relation, metric, test, stats.t_interval(differences), bootstrap, p, None, None, "unresolved")


def _decided(judged: Judged, p_holm: float | None, family: int, results: Results) -> Judged:
    relation, test = judged.relation, judged.test
    if test is None:
        return judged
    p, alpha = (p_holm, stats.ALPHA / max(1, family)) if relation.primary else (judged.p, stats.ALPHA)
    found = pairs(results, relation.better, relation.than, relation.metric)
    return dataclasses.replace(
        judged,
        p_holm=p_holm,
        seeds=stats.seeds_needed(relation, test, alpha=alpha),
        verdict=stats.verdict(relation, found, p, higher=judged.metric.higher),
    )
