"""Statistics of a comparison over seeds: intervals, paired tests, equivalence, Holm's correction, power, verdicts.

A pair is one seed in two cells. If both cells cut the text into the same windows, they see the same data in the same order,
and the seed's effect on both cancels in the difference; otherwise pairing only costs degrees of freedom.

With three to ten seeds, everything here relies on the differences being approximately normal. No test without that assumption
has enough power: the p of the exact sign test over n seeds is at least 2 * 0.5**n, which is 0.25 for three seeds and below
0.05 only from six on. It is reported next to the t test to show what can be concluded without the assumption.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

from experiments.study import Relation

ALPHA = 0.05
POWER = 0.8
CAP = 1000  # seeds, beyond which the number needed is not computed

Verdict = Literal["reproduced", "reversed", "unresolved"]


@dataclass(frozen=True)
class Interval:
    """A mean and the ends of its confidence interval, None for a single value."""

    n: int
    mean: float
    low: float | None = None
    high: float | None = None


def t_interval(values: Sequence[float], *, confidence: float = 1 - ALPHA) -> Interval:
    """Student's t interval of the mean, which all tables and pictures show.

    It has its nominal coverage from two seeds on if the values are normal, and it agrees with the paired t test: the interval
    of the differences excludes 0 exactly if p < 0.05. With so few values, neither holds for the bootstrap (see below).
    """
    x = np.asarray(values, float)
    mean = float(x.mean())
    if len(x) < 2:
        return Interval(len(x), mean)
    half = float(stats.t.ppf((1 + confidence) / 2, len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x)))
    return Interval(len(x), mean, mean - half, mean + half)


def bootstrap_interval(values: Sequence[float], *, confidence: float = 1 - ALPHA, resamples: int = 9999) -> Interval:
    """BCa bootstrap interval of the mean, or the percentile one if BCa is undefined. Deterministic: the resamples are seeded.

    It is too narrow with few seeds, because resampled means stay within [min, max]: three values are all on one side of the
    true mean a quarter of the time, so a 95 % interval covers at most 75 %. Measured on normal values (test_stats.py): 3 seeds
    72 %, 5 seeds 84 %, 10 seeds 89 %. Therefore tables show `t_interval`, and this one is among the checks.
    """
    x = np.asarray(values, float)
    mean = float(x.mean())
    if len(x) < 2:
        return Interval(len(x), mean)
    if np.ptp(x) == 0:  # BCa divides by the spread
        return Interval(len(x), mean, mean, mean)
    for method in ("BCa", "percentile"):
        ends = stats.bootstrap(
            (x,),
            np.mean,
            confidence_level=confidence,
            n_resamples=resamples,
            method=method,
            random_state=np.random.default_rng(0),
        ).confidence_interval
        if np.isfinite([ends.low, ends.high]).all():
            break
    return Interval(len(x), mean, float(ends.low), float(ends.high))


@dataclass(frozen=True)
class Paired:
    """n differences: mean, standard deviation, effect size dz = mean / sd, two-sided p of the t test and the exact sign test.

    Without variance (one seed, or equal differences for all seeds, as of identical runs or a saturated metric) dz and p are
    None.
    """

    n: int
    mean: float
    sd: float
    dz: float | None = None
    p: float | None = None
    sign_p: float | None = None

    @property
    def error(self) -> float:
        return self.sd / np.sqrt(self.n)


def paired(differences: Sequence[float], *, scale: float = 0.0) -> Paired:
    """Tests whether the mean difference is 0. `scale`: the magnitude of the subtracted values; a spread below 1e-12 of it is
    rounding (0.3 - 0.1 != 0.2) and counts as none."""
    d = np.asarray(differences, float)
    n, mean = len(d), float(d.mean())
    if n < 2:
        return Paired(n, mean, 0.0)
    sd = float(d.std(ddof=1))
    sign = _sign_test(d[np.abs(d) > 1e-12 * scale])
    if sd <= 1e-12 * max(scale, float(np.abs(d).max())):
        return Paired(n, mean, 0.0, sign_p=sign)
    return Paired(n, mean, sd, mean / sd, float(2 * stats.t.sf(abs(mean) / sd * np.sqrt(n), n - 1)), sign)


def _sign_test(nonzero: np.ndarray) -> float:
    """Exact two-sided p: the probability of at most as many of the rarer sign if both signs are equally likely."""
    n, fewer = len(nonzero), int(min((nonzero > 0).sum(), (nonzero < 0).sum()))
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(fewer + 1)) / 2**n)


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


def tost(test: Paired, margin: float) -> float | None:
    """p of two one-sided t tests (Schuirmann 1987): small if the mean difference is within (-margin, margin)."""
    if test.p is None:
        return None
    t = (margin - abs(test.mean)) / test.error
    return float(stats.t.sf(t, test.n - 1))


def beyond(test: Paired, margin: float) -> float | None:
    """p of the hypothesis that the mean difference is within the margin: below 0.05 exactly if its 95 % interval is entirely
    outside."""
    if test.p is None:
        return None
    return float(min(1.0, 2 * stats.t.sf((abs(test.mean) - margin) / test.error, test.n - 1)))


def gains(pairs: Sequence[tuple[float, float]], *, higher: bool = True) -> Paired:
    """The paired test of (better, than) pairs, with differences signed so that positive means better."""
    x = np.asarray(pairs, float).reshape(-1, 2)
    return paired((x[:, 0] - x[:, 1]) * (1 if higher else -1), scale=float(np.abs(x).max()))


def relation_p(relation: Relation, test: Paired) -> float | None:
    """The p that decides a relation, before Holm's correction.

    For an equivalence: of TOST if the observed difference is within the margin, otherwise of the test that it is beyond.
    Whatever the truth, only one of the two tests can be wrong, so no correction is needed for having two.
    """
    if relation.kind == "greater":
        return test.p
    return (tost if abs(test.mean) <= relation.margin else beyond)(test, relation.margin)


def verdict(
    relation: Relation, pairs: Sequence[tuple[float, float]], p_adjusted: float | None, *, higher: bool = True
) -> Verdict:
    """The verdict on a relation. `p_adjusted`: `relation_p`, after Holm's correction if the relation is primary."""
    if p_adjusted is None or p_adjusted >= ALPHA:
        return "unresolved"
    mean = gains(pairs, higher=higher).mean
    holds = mean > 0 if relation.kind == "greater" else abs(mean) <= relation.margin
    return "reproduced" if holds else "reversed"


def t_power(effect: float, n: int, *, alpha: float = ALPHA) -> float:
    """Power of the two-sided paired t test with n seeds for a true effect dz, by the noncentral t distribution."""
    critical, shift = stats.t.isf(alpha / 2, n - 1), abs(effect) * np.sqrt(n)
    wrong_side = stats.nct.cdf(-critical, n - 1, shift) if shift < 8 else 0.0  # scipy's far tail is sometimes NaN
    return float(stats.nct.sf(critical, n - 1, shift) + wrong_side)


def tost_power(mean: float, sd: float, margin: float, n: int, *, alpha: float = ALPHA) -> float:
    """Power of the equivalence test with n seeds for a true mean and sd: the average over sampled sds, given which the sampled
    mean is normal."""
    quantiles = (np.arange(2000) + 0.5) / 2000
    sampled = np.sqrt(stats.chi2.ppf(quantiles, n - 1) / (n - 1))  # in units of sd
    room = margin * np.sqrt(n) / sd - stats.t.isf(alpha, n - 1) * sampled  # accepted: |sampled mean| < room, in standard errors
    shift = mean * np.sqrt(n) / sd
    return float(np.mean(np.where(room > 0, stats.norm.cdf(room - shift) - stats.norm.cdf(-room - shift), 0.0)))


def seeds_needed(relation: Relation, test: Paired, *, alpha: float = ALPHA) -> int | None:
    """The fewest seeds with 80 % power to decide the relation if the observed effect is the true one; None beyond CAP.

    The observed effect of few seeds is itself uncertain, so this is an order of magnitude. For a relation under Holm's
    correction, give alpha / (size of the family), the strictest threshold, so that no unresolved relation appears to have
    enough seeds.
    """
    if test.dz is None:
        return None
    if relation.kind == "greater":
        power = lambda n: t_power(test.mean / test.sd, n, alpha=alpha)
    elif abs(test.mean) <= relation.margin:
        power = lambda n: tost_power(test.mean, test.sd, relation.margin, n, alpha=alpha)
    else:
        power = lambda n: t_power((abs(test.mean) - relation.margin) / test.sd, n, alpha=alpha)
    if power(CAP) < POWER:
        return None
    low, high = 1, CAP  # power(low) < POWER <= power(high), as power increases with n
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if power(middle) < POWER else (low, middle)
    return high
