"""What a study can detect, before it runs, from the variance of earlier results or a pilot."""

import copy
import math
from dataclasses import dataclass

from experiments import judge, stats, variance
from experiments.study import Relation, Results, Study


@dataclass(frozen=True)
class PowerRow:
    """What a relation's test can find with the study's number of seeds.

    The variance is an estimate with `df` degrees of freedom, so the figures are rough if these are few.
    """

    relation: str
    metric: str
    sd: float | None  # standard deviation of a run between seeds, in the metric's unit; None without earlier results
    df: float  # of the test
    mde: float | None  # the gain that is found with 80 % power, at the Holm family's strictest level
    power_at_margin: float | None  # of an equivalence: the chance to show it if the cells are equal
    source: str  # of the variance


def power_rows(study: Study, results: Results) -> list[PowerRow]:
    """A row for each relation of the Holm family, in the study's order. `results` are those of earlier runs or of a pilot,
    which may have fewer cells and seeds, or none."""
    if study.derive is not None:
        results = study.derive(copy.deepcopy(results))
    family = [r for r in study.relations if judge.in_family(r)]
    return [_row(study, results, r, stats.ALPHA / len(family)) for r in family]


def _row(study: Study, results: Results, relation: Relation, alpha: float) -> PowerRow:
    metric = next(m for m in study.metrics if m.name == relation.metric)
    better, than, source = relation.better, relation.than, "earlier runs of the two cells"
    test = judge.contrast(study, results, metric, better, than, paired=relation.paired)
    if test is None or test.df == 0:
        test, source = _of_others(study, results, relation), "earlier runs of other cells"
    if test is None or study.seeds < 2:
        return PowerRow(relation.name, metric.label, None, 0, None, None, "none: no cell has two runs yet")
    if test.error == 0:
        return PowerRow(relation.name, metric.label, 0.0, test.df, 0.0, None, f"{source}, which are all equal")
    error, df = stats.with_seeds(test, study.seeds)
    sd = math.sqrt(max(0.0, test.error**2 - test.item_error**2) * test.n / 2)
    equivalence = relation.kind == "equivalent"
    return PowerRow(
        relation.name,
        metric.label,
        sd,
        df,
        stats.mde(error, df, alpha=alpha),
        stats.tost_power(0.0, error, df, relation.margin, alpha=alpha) if equivalence else None,
        f"{source}: {test.n} seeds, {test.how}",
    )


def _of_others(study: Study, results: Results, relation: Relation) -> stats.Test | None:
    """A comparison of two cells with the variance within all cells that have two runs, for cells that have none."""
    table = {cell: v for cell in study.labels if len(v := judge.values(results, cell, relation.metric)) > 1}
    found = variance.fit(table)
    if found.df <= 0:
        return None
    n = max(len(v) for v in table.values())
    return stats.Test(
        n, 0.0, math.sqrt(2 * found.variance / n), found.df, how=f"variance of {len(table)} cell{'s' * (len(table) > 1)}"
    )
