"""The standard error of a difference between two cells, from all cells, seeds and test items of a study.

A value is  y = cell + seed + residual,  and over test items  y = cell + seed + item + cell x seed + cell x item + rest.

Seeds: the residual is estimated over all cells of the study, which gives more degrees of freedom than two cells have. A part
that all cells of a seed share (the same data in the same order) cancels in a difference and is taken out if an F test shows
that it is there; comparisons are then paired by seed. Otherwise pairing would only cost degrees of freedom.
Where two cells of a seed go on from the same run, they share it by design, and other cells do not: such a comparison is always
paired, and its error is that of the differences alone.
Items: another draw of test items would give another difference, so the variance of cell x item, divided by the number of items,
is part of its error (Clark 1973; Barr et al. 2013). More seeds do not reduce that part.
"""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from scipy import stats

from experiments.stats import ALPHA, Test

Values = Mapping[int, float]  # seed -> value of a metric
Items = Mapping[int, np.ndarray]  # seed -> values of the test items, [N]
# The variance of two cells is not pooled with that of the others if an F test finds it larger or smaller at these levels. Such
# preliminary tests need high levels, because they have little power with few seeds (Bancroft 1964 recommends 0.25).
NOISIER, CALMER = 0.35, 0.1
PERMUTATIONS = 20_000  # divisions of the seeds, beyond which the exact test is not computed


@dataclass(frozen=True)
class Fit:
    """Variance of a run about its cell's mean, or about cell + seed, over several cells."""

    variance: float
    df: float
    between: float = 0.0  # mean square of the seeds; 0 unless they were taken out
    df_between: float = 0.0


def fit(table: Mapping[str, Values], *, seeds: bool = False) -> Fit:
    """Least squares of cells, or of cells + seeds, on all runs of `table`; seeds may be missing in some cells."""
    y = np.array([value for values in table.values() for value in values.values()])
    y = y - y.mean() if len(y) else y
    cell = np.array([i for i, values in enumerate(table.values()) for _ in values])
    by_cell = (cell[:, None] == np.arange(len(table))).astype(float)
    within, df_within = _squares(by_cell, y)
    if not seeds or df_within <= 0:
        return Fit(within / df_within if df_within > 0 else 0.0, df_within)
    seed = np.array([seed for values in table.values() for seed in values])
    squares, df = _squares(np.concatenate([by_cell, (seed[:, None] == np.unique(seed)[1:]).astype(float)], 1), y)
    between = (within - squares) / (df_within - df) if df_within > df else 0.0
    return Fit(squares / df if df > 0 else 0.0, df, between, df_within - df)


def _squares(design: np.ndarray, y: np.ndarray) -> tuple[float, int]:
    """Sum of squared residuals and its degrees of freedom."""
    solution, _, rank, _ = np.linalg.lstsq(design, y, rcond=None)
    return float(((y - design @ solution) ** 2).sum()), len(y) - int(rank)


def seed_effect(table: Mapping[str, Values]) -> float:
    """p of the F test of cells + seeds that the runs of a seed share something; 1 where it cannot be tested.

    A seed effect that a noisy cell hides only costs power: comparisons are then unpaired, and their error is too large.
    """
    f = fit(varying(table), seeds=True)
    if f.df <= 0 or f.df_between <= 0:
        return 1.0
    return float(stats.f.sf(f.between / f.variance, f.df_between, f.df)) if f.variance > 1e-20 * f.between else 0.0


@dataclass(frozen=True)
class Components:
    """Variances of a metric over the runs of a study."""

    residual: float  # of a run about its cell's mean, without what all runs of a seed share
    df: float
    seed: float  # of what all runs of a seed share; 0 if none is shown
    p_seed: float


def components(table: Mapping[str, Values]) -> Components | None:
    """None if no cell has two runs that differ."""
    cells, p = varying(table), seed_effect(table)
    found = fit(cells, seeds=p < ALPHA)
    if found.df <= 0:
        return None
    runs, seeds = sum(map(len, cells.values())), len({seed for values in cells.values() for seed in values})
    return Components(
        found.variance, found.df, max(0.0, found.between - found.variance) * seeds / runs if p < ALPHA else 0.0, p
    )


def varying(table: Mapping[str, Values]) -> dict[str, Values]:
    """The cells whose runs differ by more than rounding. One without a spread, such as a cell at the metric's bound, says
    nothing of the variance of others."""
    return {cell: values for cell, values in table.items() if spread(values)}


def spread(values: Values) -> bool:
    x = np.array(list(values.values()))
    return len(x) > 1 and bool(np.ptp(x) > 1e-12 * np.abs(x).max())


def contrast(
    table: Mapping[str, Values],
    better: str,
    than: str,
    *,
    items: Mapping[str, Items] | None = None,
    higher: bool = True,
    paired: bool = False,
) -> Test | None:
    """The gain of `better` over `than`, signed so that positive is better, with its standard error. None if a cell has no run.

    `table`: all cells of the study that have the metric. `items`: cell -> seed -> values of the test items, for cells that have
    them. `paired`: the two cells share a run of each seed by design; if they do not, an F test over all cells decides.
    """
    a, b = table.get(better, {}), table.get(than, {})
    if not a or not b:
        return None
    sign, n = 1 if higher else -1, min(len(a), len(b))
    if n < 2:
        return Test(n, sign * (_mean(a) - _mean(b)), 0.0, 0)
    common = sorted(a.keys() & b.keys())
    two = {better: a, than: b}
    asked = [(items or {}).get(cell, {}) for cell in two]
    by_design = paired and len(common) > 1
    paired = by_design or (len(common) > 1 and spread(a) and spread(b) and seed_effect(table) < ALPHA)
    if paired:
        differences = np.array([a[s] - b[s] for s in common])
        n, mean, share = len(common), float(differences.mean()), 2 / len(common)
        exact, least = sign_flips(differences), 2.0 ** (1 - n)
        of_a, of_b = (_stack(x, common) for x in asked)
        tables = [of_a - of_b] if _alike(of_a, of_b) else []
        variance, df = share * float(differences.var(ddof=1)) / 2, float(n - 1)
    else:
        mean, share = _mean(a) - _mean(b), 1 / len(a) + 1 / len(b)
        exact, least = permutations(list(a.values()), list(b.values())), 2 / math.comb(len(a) + len(b), len(a))
        of_a, of_b = _stack(asked[0], a), _stack(asked[1], b)
        tables = [of_a, of_b] if _alike(of_a, of_b) else []
        variance, df = _welch([_of_mean(a), _of_mean(b)], [len(a) - 1, len(b) - 1])
    how = "paired by design" if by_design else "paired by seed" if paired else "unpaired"
    if not by_design and (pooled := _pooled(table, two, paired)):
        variance, df = share * pooled.variance, pooled.df
        how += f", variance of {len(varying(table))} cells"
    of_items = item_variance(tables, hits=_hits(of_a) or _hits(of_b)) if tables else 0.0
    if of_items:
        count = tables[0].shape[1]
        how += f", {count} items"
        df = _welch([variance, of_items], [df, count - 1])[1] if variance > 0 else df
    return Test(n, sign * mean, math.sqrt(variance + of_items), df, exact, least, math.sqrt(of_items), how)


def _pooled(table: Mapping[str, Values], two: dict[str, Values], paired: bool) -> Fit | None:
    """The variance of a run over all cells, if that of these two is like that of the others; otherwise None.

    Simulated with six cells and three seeds, where two cells are three times as noisy as the others: pooled blindly, these two
    differ falsely in 21 % of studies, and after Bartlett's test at 5 % still in 16 %, as it has no power there; by this rule in
    4 to 6 % (in 7 % if only one of the two is noisy, in 5 to 6 % if all cells are alike). A gain of 2.5 standard deviations is
    found in 63 % of studies by this rule and in 53 % without pooling; if paired, in 56 and 40 %.
    """
    cells = varying(table)
    others = fit({cell: values for cell, values in cells.items() if cell not in two}, seeds=paired)
    own = fit(two, seeds=paired)
    if not two.keys() <= cells.keys() or min(others.df, others.variance, own.df) <= 0:
        return None
    above = float(stats.f.sf(own.variance / others.variance, own.df, others.df))
    return fit(cells, seeds=paired) if NOISIER <= above <= 1 - CALMER else None


def _welch(variances: list[float], df: list[float]) -> tuple[float, float]:
    """The sum of independent variances and its degrees of freedom (Welch 1947, Satterthwaite 1946)."""
    total = sum(variances)
    if total <= 0:
        return 0.0, float(sum(df))
    return total, total**2 / sum(v**2 / d for v, d in zip(variances, df, strict=True))


def _mean(values: Values) -> float:
    return fmean(values.values())


def _stack(items: Items, seeds: Mapping[int, float] | list[int]) -> np.ndarray | None:
    """The values of the test items, [seeds, N]; None unless all of these seeds have the same number."""
    found = [items[s] for s in seeds if s in items]
    return np.stack(found) if len(found) == len(seeds) and len({len(x) for x in found}) == 1 else None


def _alike(one: np.ndarray | None, other: np.ndarray | None) -> bool:
    return one is not None and other is not None and one.shape[1] == other.shape[1] > 1


def _hits(items: np.ndarray | None) -> bool:
    return items is not None and bool(np.isin(items, (0.0, 1.0)).all())


def _of_mean(values: Values) -> float:
    return float(np.var(list(values.values()), ddof=1) / len(values)) if spread(values) else 0.0


def item_variance(tables: list[np.ndarray], *, hits: bool = False) -> float:
    """The part of a difference's variance that comes from the choice of test items: the variance of cell x item / N.

    `tables` are one table of differences, or two to be subtracted, each [seeds, N]. By mean squares: the items' means vary by
    cell x item plus the rest / seeds. The rest, measured within each table, is in the variance between seeds already and is
    subtracted, as in a quasi F ratio; with one seed it stays, as in min F' (Clark 1973). At least 0.

    `hits`: items are hit or missed. Two items are then added, one hit by the first cell alone and one by the second, because
    100 of 100 hits do not show that the share is 1; with one seed this is the interval for paired proportions of Bonett and
    Price (2012). Two cells that hit all N items in all seeds so have an error of about 1.4 / N, which more seeds do not reduce.
    """
    means = tables[0].mean(0) - (tables[1].mean(0) if len(tables) == 2 else 0.0)
    count = len(means)
    if hits:
        means = np.append(means, [1.0, -1.0])
    total = means.var(ddof=1) / len(means)
    for x in tables:
        seeds = len(x)
        if seeds > 1:
            rest = x - x.mean(0) - x.mean(1, keepdims=True) + x.mean()
            total -= (rest**2).sum() / ((seeds - 1) * (count - 1)) / (seeds * count)
    return float(total) if total > 1e-15 * np.abs(np.concatenate(tables)).max() ** 2 else 0.0


def sign_flips(differences: np.ndarray) -> float:
    """Exact two-sided p of a mean difference: the share of all choices of signs that give one as large."""
    n = len(differences)
    if 2**n > PERMUTATIONS:
        return math.nan
    signs = np.array(list(itertools.product((1, -1), repeat=n)))
    return _extreme(signs @ differences / n, differences.mean())


def permutations(one: list[float], other: list[float]) -> float:
    """Exact two-sided p of the difference of two means: the share of all divisions of the runs that give one as large."""
    both, n = np.array([*one, *other]), len(one)
    if math.comb(len(both), n) > PERMUTATIONS:
        return math.nan
    chosen = np.array(list(itertools.combinations(range(len(both)), n)))
    sums = both[chosen].sum(1)
    return _extreme(sums / n - (both.sum() - sums) / (len(both) - n), both[:n].mean() - both[n:].mean())


def _extreme(possible: np.ndarray, observed: float) -> float:
    return float(np.mean(np.abs(possible) >= abs(observed) - 1e-9 * np.abs(possible).max()))
