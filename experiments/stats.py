"""Tests of a gain with a known standard error: intervals, equivalence, Holm's correction, power.

`experiments.variance` estimates the standard error from cells, seeds and items. With three to ten seeds everything here relies
on normal variation between seeds: an exact test without that assumption cannot reach p < 0.05 with fewer than four seeds in
each of two cells (or six pairs). Its p is reported beside the t test.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import optimize, stats

from experiments.study import Relation

ALPHA = 0.05
POWER = 0.8
CAP = 1000  # seeds, beyond which the number needed is not computed

Verdict = Literal["reproduced", "reversed", "unresolved", "not judged"]


@dataclass(frozen=True)
class Interval:
    """A mean and the ends of its confidence interval, None where no variance can be estimated."""

    n: int
    mean: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Test:
    """A gain, its standard error and the error's degrees of freedom.

    df = 0: one seed, so nothing can be tested. error = 0: no run differs from its cell's mean, and `exact` decides.
    """

    __test__ = False  # not a pytest class

    n: int  # seeds: pairs if paired, otherwise of the cell with fewer
    mean: float
    error: float
    df: float
    exact: float = 1.0  # two-sided p of the exact permutation test over seeds
    least: float = 1.0  # the smallest such p that these numbers of seeds can give
    item_error: float = 0.0  # the part of `error` that comes from the choice of test items, which more seeds do not reduce
    how: str = ""  # how the error was estimated, for the report

    @property
    def interval(self) -> Interval:
        if self.df == 0 or self.error == 0:
            return Interval(self.n, self.mean)
        half = float(stats.t.isf(ALPHA / 2, self.df)) * self.error
        return Interval(self.n, self.mean, self.mean - half, self.mean + half)


def t_interval(values: Sequence[float]) -> Interval:
    """Student's t interval of the mean of a cell's seeds, which tables and pictures show for single cells."""
    x = np.asarray(values, float)
    n, mean = len(x), float(x.mean())
    return Test(n, mean, float(x.std(ddof=1) / np.sqrt(n)) if n > 1 else 0.0, n - 1).interval


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down p-values. None is not a member of the family.

    [0.01, None, 0.04, 0.03] -> [0.03, None, 0.06, 0.06]
    """
    known = sorted((p, i) for i, p in enumerate(ps) if p is not None)
    adjusted, least = list(ps), 0.0
    for rank, (p, i) in enumerate(known):
        least = max(least, min(1.0, (len(known) - rank) * p))
        adjusted[i] = least
    return adjusted


def different(test: Test) -> float | None:
    """Two-sided p of "the gain is 0"; None for one seed.

    Without any variance, the exact permutation test decides: 1.0 in five seeds against 0.0 in five others is the most extreme
    of 252 divisions, p = 2/252. That is a result; with three seeds against three it is 2/20, which is none. A t test would
    have to divide by 0, and reporting "p = 0" would claim more than any number of seeds can show.
    """
    return beyond(test, 0.0)


def beyond(test: Test, margin: float) -> float | None:
    """p of "the gain is within the margin": below 0.05 exactly if its 95 % interval is entirely outside."""
    if test.df == 0:
        return None
    outside = abs(test.mean) - margin
    if test.error == 0:
        return test.least if outside > 0 else 1.0
    return float(min(1.0, 2 * stats.t.sf(outside / test.error, test.df)))


def tost(test: Test, margin: float) -> float | None:
    """p of two one-sided t tests (Schuirmann 1987): small if the gain is within (-margin, margin).

    Two cells with the same value in all runs are equivalent within any margin (p = 0): such runs are the same computation, or
    the metric is at its bound, and no further seed would show more. Where the hits of test items are stored, this does not
    apply: the error is then that of drawing the items (`experiments.variance.item_variance`).
    """
    if test.df == 0:
        return None
    room = margin - abs(test.mean)
    if test.error == 0:
        return 0.0 if test.mean == 0 else test.least / 2 if room > 0 else 1.0
    return float(stats.t.sf(room / test.error, test.df))


def relation_p(relation: Relation, test: Test) -> float | None:
    """The p that decides a relation, before Holm's correction.

    For an equivalence: of TOST if the observed gain is within the margin, otherwise of the test that it is beyond. Whatever the
    truth, only one of the two tests can be wrong, so no correction is needed for having two.
    """
    if relation.kind == "greater":
        return different(test)
    return (tost if abs(test.mean) <= relation.margin else beyond)(test, relation.margin)


def verdict(relation: Relation, test: Test, p_adjusted: float | None) -> Verdict:
    """The verdict on a relation. `p_adjusted`: `relation_p`, after Holm's correction if the relation is in a family."""
    if p_adjusted is None or p_adjusted >= ALPHA:
        return "unresolved"
    holds = test.mean > 0 if relation.kind == "greater" else abs(test.mean) <= relation.margin
    return "reproduced" if holds else "reversed"


@functools.cache
def _nodes() -> tuple[np.ndarray, np.ndarray]:
    return np.polynomial.legendre.leggauss(400)


def _over_errors(accepted: Callable[[np.ndarray], np.ndarray], df: float) -> float:
    """The mean of `accepted(s)` over the distribution of s, the estimated error divided by the true one, by Gauss-Legendre
    quadrature over its quantiles. Given s, the estimated gain is normal. scipy's noncentral t has NaN in its far tail."""
    nodes, weights = _nodes()
    s = np.sqrt(stats.chi2.ppf((nodes + 1) / 2, df) / df)
    return float(weights / 2 @ accepted(s))


def power(gain: float, error: float, df: float, *, alpha: float = ALPHA) -> float:
    """Power of the two-sided t test for a true gain with this standard error."""
    critical, shift = float(stats.t.isf(alpha / 2, df)), abs(gain) / error
    return _over_errors(lambda s: stats.norm.cdf(shift - critical * s) + stats.norm.cdf(-shift - critical * s), df)


def tost_power(gain: float, error: float, df: float, margin: float, *, alpha: float = ALPHA) -> float:
    """Power of the equivalence test for a true gain with this standard error."""
    critical, shift = float(stats.t.isf(alpha, df)), abs(gain) / error

    def accepted(s: np.ndarray) -> np.ndarray:
        room = margin / error - critical * s  # accepted: |estimated gain| < room, in standard errors
        return np.where(room > 0, stats.norm.cdf(room - shift) - stats.norm.cdf(-room - shift), 0.0)

    return _over_errors(accepted, df)


def mde(error: float, df: float, *, alpha: float = ALPHA) -> float:
    """The minimum detectable gain: the true gain that the two-sided t test finds with 80 % power.

    `error` is the standard error of the gain (residual sd * sqrt(2 / seeds)), `alpha` that of the Holm family's strictest
    comparison, 0.05 / size. Infinite without degrees of freedom.
    """
    if df <= 0:
        return math.inf
    if error == 0:
        return 0.0
    high = 1.0
    while power(high, 1.0, df, alpha=alpha) < POWER:
        high *= 2
    return error * float(optimize.brentq(lambda gain: power(gain, 1.0, df, alpha=alpha) - POWER, 0.0, high, xtol=1e-6))


def with_seeds(test: Test, n: int) -> tuple[float, float]:
    """(standard error, df) that the comparison would have with n seeds."""
    of_seeds = max(0.0, test.error**2 - test.item_error**2)
    return math.sqrt(of_seeds * test.n / n + test.item_error**2), test.df * (n - 1) / (test.n - 1)


def seeds_needed(relation: Relation, test: Test, *, alpha: float = ALPHA) -> int | None:
    """The fewest seeds with 80 % power to decide the relation if the observed gain and error are the true ones; None beyond
    CAP, where nothing can be estimated, or where the test items alone leave too much error.

    The observed gain of few seeds is itself uncertain, so this is an order of magnitude. For a relation under Holm's
    correction, give alpha / (size of the family), the strictest threshold, so that no unresolved relation appears to have
    enough seeds.
    """
    if test.df == 0 or test.error == 0:
        return None

    def reached(n: int) -> bool:
        error, df = with_seeds(test, n)
        if relation.kind == "greater":
            return power(test.mean, error, df, alpha=alpha) >= POWER
        if abs(test.mean) <= relation.margin:
            return tost_power(test.mean, error, df, relation.margin, alpha=alpha) >= POWER
        return power(abs(test.mean) - relation.margin, error, df, alpha=alpha) >= POWER

    if not reached(CAP):
        return None
    low, high = 1, CAP  # not reached(low), reached(high), as power increases with n
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if reached(middle) else (middle, high)
    return high
