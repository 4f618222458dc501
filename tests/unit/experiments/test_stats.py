"""experiments/stats.py compared with scipy and statsmodels, and where there is no variance."""

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower
from statsmodels.stats.weightstats import ttost_paired

from experiments import stats
from experiments.stats import Test
from experiments.study import Relation

GREATER = Relation("a is above b", "m", "a", "b")
EQUAL = Relation("a is about b", "m", "a", "b", kind="equivalent", margin=1.0)


def of(differences) -> Test:
    """The paired t test's gain and error."""
    d = np.asarray(differences)
    return Test(len(d), float(d.mean()), float(d.std(ddof=1) / np.sqrt(len(d))), len(d) - 1)


def drawn(seed: int, n: int, mean: float, sd: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(mean, sd, n)


@pytest.mark.parametrize("n", [2, 3, 5, 20])
def test_the_t_test_is_scipys(n):
    d = drawn(n, n, 0.7)
    test, theirs = of(d), scipy_stats.ttest_1samp(d, 0)
    assert stats.different(test) == pytest.approx(theirs.pvalue, rel=1e-9)
    assert (test.interval.low, test.interval.high) == pytest.approx(tuple(theirs.confidence_interval()))
    assert test.interval == stats.t_interval(d)


def test_a_single_value_has_no_interval():
    assert stats.t_interval([3.0]) == stats.Interval(1, 3.0)
    assert stats.different(Test(1, 3.0, 0.0, 0)) is None and stats.tost(Test(1, 0.0, 0.0, 0), 1.0) is None


def test_holm_is_statsmodels():
    rng = np.random.default_rng(0)
    for size in (1, 2, 7):
        ps = [float(p) for p in rng.uniform(0, 0.2, size)]
        assert stats.holm(ps) == pytest.approx(list(multipletests(ps, method="holm")[1]))
    assert stats.holm([0.01, None, 0.04, 0.03]) == pytest.approx([0.03, None, 0.06, 0.06])
    assert stats.holm([]) == [] and stats.holm([None]) == [None]


@pytest.mark.parametrize("difference", [0.0, 0.3, 0.9, 2.5])
def test_equivalence_is_statsmodels(difference):
    d = drawn(3, 8, difference, 0.4)
    test = of(d)
    assert stats.tost(test, 1.0) == pytest.approx(ttost_paired(d, np.zeros(8), -1.0, 1.0)[0], rel=1e-9)
    assert (stats.beyond(test, 1.0) < 0.05) == (test.interval.low > 1 or test.interval.high < -1)


@pytest.mark.parametrize(("gain", "expected"), [(2.0, "reproduced"), (-2.0, "reversed"), (0.1, "unresolved")])
def test_a_verdict_has_the_gains_sign(gain, expected):
    test = Test(5, gain, 0.3, 8)
    assert stats.verdict(GREATER, test, stats.relation_p(GREATER, test)) == expected


@pytest.mark.parametrize(("gain", "expected"), [(0.2, "reproduced"), (-3.0, "reversed"), (0.9, "unresolved")])
def test_an_equivalence_is_judged_at_its_margin(gain, expected):
    test = Test(5, gain, 0.3, 8)
    assert stats.verdict(EQUAL, test, stats.relation_p(EQUAL, test)) == expected


@pytest.mark.parametrize(("seeds", "verdict"), [(3, "unresolved"), (4, "reproduced"), (5, "reproduced")])
def test_without_variance_the_exact_test_decides(seeds, verdict):
    """1.0 against 0.0 in all seeds: one of the two most extreme divisions of the runs."""
    least = 2 / math.comb(2 * seeds, seeds)
    test = Test(seeds, 1.0, 0.0, 2 * seeds - 2, least, least)
    assert stats.different(test) == least and stats.verdict(GREATER, test, least) == verdict
    assert stats.tost(test, 2.0) == least / 2 and stats.tost(test, 0.5) == 1.0 and stats.beyond(test, 0.5) == least


def test_equal_in_all_seeds_is_equivalent_and_not_different():
    test = Test(3, 0.0, 0.0, 4, 1.0, 0.1)
    assert stats.different(test) == 1.0 and stats.tost(test, 1e-9) == 0.0
    assert stats.verdict(EQUAL, test, stats.relation_p(EQUAL, test)) == "reproduced"
    assert stats.seeds_needed(EQUAL, test) is None


@pytest.mark.parametrize(("effect", "n"), [(0.0, 3), (-0.1, 5), (0.3, 20), (2.0, 4)])
@pytest.mark.parametrize("alpha", [0.05, 0.05 / 8])
def test_power_is_statsmodels_and_counts_both_sides(effect, n, alpha):
    theirs = TTestPower().power(effect, n, alpha)
    assert stats.power(effect, n**-0.5, n - 1, alpha=alpha) == pytest.approx(theirs, rel=2e-5)


def test_power_is_never_nan():
    """scipy's noncentral t is NaN in its far tail, and NaN < 0.8 is false: two seeds seemed enough for dz 5.35."""
    assert all(0 <= stats.power(gain, 1.0, df) <= 1 for gain in (0, 1, 7.57, 40, 1e3) for df in (1, 2.5, 30))
    assert stats.seeds_needed(GREATER, Test(3, 5.35, 3**-0.5, 2)) == 3


@pytest.mark.parametrize("effect", [0.2, 0.5, 1.0, 2.0, 5.0, 100.0])
@pytest.mark.parametrize("alpha", [0.05, 0.05 / 8])
def test_seeds_needed_are_statsmodels(effect, alpha):
    n = stats.seeds_needed(GREATER, Test(3, effect, 3**-0.5, 2), alpha=alpha)
    # One-sided at half the level: of the other side scipy's noncentral t has NaN, and its power is below 1e-6 here.
    power = lambda n: TTestPower().power(effect, n, alpha / 2, alternative="larger") if n > 1 else 0.0
    assert power(n) >= 0.8 > power(n - 1)


def test_seeds_needed_are_capped_by_what_seeds_can_do():
    assert stats.seeds_needed(GREATER, Test(3, 0.01, 1.0, 2)) is None
    assert stats.seeds_needed(GREATER, Test(1, 0.5, 0.0, 0)) is None
    few = Test(3, 1.0, 0.6, 4, item_error=0.1)
    assert stats.seeds_needed(GREATER, few) > 3
    assert stats.seeds_needed(GREATER, Test(3, 1.0, 0.6, 4, item_error=0.55)) is None  # the items' part alone is too much


@pytest.mark.parametrize(("df", "alpha"), [(2, 0.05), (4, 0.05 / 3), (40, 0.05)])
def test_the_detectable_gain_has_80_percent_power(df, alpha):
    gain = stats.mde(0.3, df, alpha=alpha)
    assert stats.power(gain, 0.3, df, alpha=alpha) == pytest.approx(0.8, abs=1e-4)
    assert stats.mde(0.3, 0) == math.inf and stats.mde(0.0, 4) == 0.0


def test_power_of_an_equivalence_is_what_a_simulation_finds():
    rng, trials, n, margin = np.random.default_rng(0), 4000, 5, 1.0
    d = rng.normal(0.2, 0.6, (trials, n))
    mean, error = d.mean(1), d.std(1, ddof=1) / np.sqrt(n)
    found = np.mean((margin - np.abs(mean)) / error > scipy_stats.t.isf(0.05, n - 1))
    assert stats.tost_power(0.2, 0.6 / np.sqrt(n), n - 1, margin) == pytest.approx(found, abs=0.03)
    assert stats.tost_power(0.0, 1.0, 4, 0.1) < 0.01
