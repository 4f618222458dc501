"""experiments/stats.py compared with scipy and statsmodels, and on simulated studies with known effects."""

import numpy as np
import pytest
from scipy import stats as scipy_stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower
from statsmodels.stats.weightstats import ttost_paired

from experiments import stats
from experiments.study import Relation

GREATER = Relation("a is above b", "m", "a", "b")
EQUAL = Relation("a is about b", "m", "a", "b", kind="equivalent", margin=1.0)


def pairs_of(seed: int, n: int, difference: float, sd: float = 1.0) -> np.ndarray:
    """[n, 2]: a large component shared by both runs of a seed, and differences of the given mean and sd."""
    rng = np.random.default_rng(seed)
    shared = rng.normal(50, 5, n)
    return np.stack([shared + rng.normal(difference, sd, n), shared], 1)


def decided(relation: Relation, pairs: np.ndarray) -> str:
    return stats.verdict(relation, pairs, stats.relation_p(relation, stats.gains(pairs)))


def rate_bounds(rate: float, trials: int) -> tuple[float, float]:
    """The range of a simulated rate in all but one of 10,000 simulations."""
    return tuple(scipy_stats.binom.interval(0.9999, trials, rate) / np.asarray(trials))


@pytest.mark.parametrize("n", [2, 3, 5, 20])
def test_the_paired_test_is_scipys(n):
    pairs = pairs_of(n, n, 0.7)
    ours, theirs = stats.gains(pairs), scipy_stats.ttest_rel(pairs[:, 0], pairs[:, 1])
    assert ours.p == pytest.approx(theirs.pvalue, rel=1e-9)
    assert ours.dz == pytest.approx(theirs.statistic / np.sqrt(n))
    interval = stats.t_interval(pairs[:, 0] - pairs[:, 1])
    assert (interval.low, interval.high) == pytest.approx(tuple(theirs.confidence_interval()))
    assert ((interval.low > 0) or (interval.high < 0)) == (ours.p < 0.05)


def test_less_is_better_turns_the_difference():
    pairs = pairs_of(0, 5, -2.0, 0.1)
    assert stats.gains(pairs, higher=False).mean == -stats.gains(pairs).mean > 0
    p = stats.gains(pairs).p
    assert stats.verdict(GREATER, pairs, p) == "reversed"
    assert stats.verdict(GREATER, pairs, p, higher=False) == "reproduced"


def test_the_sign_test_needs_six_seeds():
    least = [stats.paired([1.0, 2.0, 3.0, 4.0, 5.0, 6.0][:n]).sign_p for n in range(2, 7)]
    assert least == pytest.approx([0.5, 0.25, 0.125, 0.0625, 0.03125])
    mixed = np.array([3.0, -1.0, 2.0, 5.0, 4.0, -2.0, 1.0, 1.5])
    assert stats.paired(mixed).sign_p == pytest.approx(scipy_stats.binomtest(6, 8).pvalue)
    assert stats.paired([1.0, -1.0, 2.0, 0.0]).sign_p == 1.0  # ties are left out


@pytest.mark.parametrize("values", [[1.0, 2.0, 4.0], [1.0, 1.0, 3.0, 0.0, 2.5, 7.0]])
def test_the_bootstrap_is_a_percentile_of_resampled_means(values):
    """BCa of a skewed sample is the percentile interval moved to the side of the skew, by a little."""
    rng = np.random.default_rng(1)
    means = rng.choice(values, (20000, len(values))).mean(1)
    low, high = np.percentile(means, [2.5, 97.5])
    ours = stats.bootstrap_interval(values)
    width = high - low
    assert low - 0.02 * width <= ours.low <= low + 0.25 * width and high - 0.02 * width <= ours.high <= high + 0.25 * width
    assert ours == stats.bootstrap_interval(values)


def test_intervals_where_there_is_no_spread():
    assert stats.t_interval([3.0]) == stats.bootstrap_interval([3.0]) == stats.Interval(1, 3.0)
    assert stats.bootstrap_interval([3.0, 3.0, 3.0]) == stats.Interval(3, 3.0, 3.0, 3.0)


@pytest.mark.parametrize(("n", "bootstrap"), [(3, 0.72), (5, 0.84), (10, 0.89)])
def test_the_t_interval_holds_its_level_and_the_bootstrap_does_not(n, bootstrap):
    """The figures in bootstrap_interval's docstring, which are the reason that tables show the t interval."""
    rng, trials = np.random.default_rng(n), 400
    samples = rng.normal(0, 1, (trials, n))
    hit = lambda interval: interval.low <= 0 <= interval.high
    low, high = rate_bounds(0.95, trials)
    assert low <= np.mean([hit(stats.t_interval(s)) for s in samples]) <= high
    low, high = rate_bounds(bootstrap, trials)
    assert low <= np.mean([hit(stats.bootstrap_interval(s, resamples=999)) for s in samples]) <= high


def test_holm_is_statsmodels():
    rng = np.random.default_rng(0)
    for size in (1, 2, 7):
        ps = [float(p) for p in rng.uniform(0, 0.2, size)]
        assert stats.holm(ps) == pytest.approx(list(multipletests(ps, method="holm")[1]))
    assert stats.holm([0.01, None, 0.04, 0.03]) == pytest.approx([0.03, None, 0.06, 0.06])
    assert stats.holm([]) == [] and stats.holm([None]) == [None]


@pytest.mark.parametrize("difference", [0.0, 0.3, 0.9, 2.5])
def test_equivalence_is_statsmodels(difference):
    pairs = pairs_of(3, 8, difference, 0.4)
    test = stats.gains(pairs)
    assert stats.tost(test, 1.0) == pytest.approx(ttost_paired(pairs[:, 0], pairs[:, 1], -1.0, 1.0)[0], rel=1e-9)
    interval = stats.t_interval(pairs[:, 0] - pairs[:, 1])
    assert (stats.beyond(test, 1.0) < 0.05) == (interval.low > 1 or interval.high < -1)


@pytest.mark.parametrize("effect", [0.2, 0.5, 1.0, 2.0, 5.0, 100.0])
@pytest.mark.parametrize("alpha", [0.05, 0.05 / 8])
def test_seeds_needed_are_statsmodels(effect, alpha):
    n = stats.seeds_needed(GREATER, stats.Paired(3, effect, 1.0, effect, 0.5), alpha=alpha)
    # One-sided at half the level: of the other side scipy's noncentral t has NaN, and its power is below 1e-6 here.
    power = lambda n: TTestPower().power(effect, n, alpha / 2, alternative="larger") if n > 1 else 0.0
    assert power(n) >= 0.8 > power(n - 1)
    if effect <= 2:
        assert n == int(np.ceil(TTestPower().solve_power(effect, alpha=alpha / 2, power=0.8, alternative="larger")))


@pytest.mark.parametrize(("effect", "n"), [(0.0, 3), (-0.1, 5), (0.3, 20)])
def test_power_counts_both_sides(effect, n):
    assert stats.t_power(effect, n) == pytest.approx(TTestPower().power(effect, n, 0.05), rel=1e-6)


def test_seeds_needed_are_capped():
    assert stats.seeds_needed(GREATER, stats.Paired(3, 0.01, 1.0, 0.01, 0.9)) is None
    assert stats.seeds_needed(GREATER, stats.Paired(1, 0.5, 0.0)) is None


@pytest.mark.parametrize(
    ("relation", "difference", "expected"),
    [(GREATER, 1.5, "reproduced"), (GREATER, -1.5, "reversed"), (EQUAL, 0.2, "reproduced"), (EQUAL, 3.0, "reversed")],
)
def test_what_was_planted_is_found_at_the_stated_number_of_seeds(relation, difference, expected):
    n = stats.seeds_needed(relation, stats.Paired(3, difference, 1.0, difference, 0.5))
    trials = 1000
    found = np.mean([decided(relation, pairs_of(i, n, difference)) == expected for i in range(trials)])
    assert found >= rate_bounds(0.8, trials)[0]
    fewer = np.mean([decided(relation, pairs_of(i, n - 1, difference)) == expected for i in range(trials)])
    assert fewer <= rate_bounds(0.8, trials)[1]  # one less does not suffice: the number is not just an upper bound


@pytest.mark.parametrize("n", [3, 5])
def test_a_planted_null_is_decided_five_times_in_a_hundred(n):
    trials = 2000
    verdicts = [decided(GREATER, pairs_of(i, n, 0.0)) for i in range(trials)]
    low, high = rate_bounds(0.05, trials)
    assert low <= np.mean([v != "unresolved" for v in verdicts]) <= high
    low, high = rate_bounds(0.025, trials)
    assert low <= np.mean([v == "reversed" for v in verdicts]) <= high


def test_a_difference_just_outside_the_margin_passes_for_equivalence_five_times_in_a_hundred():
    trials = 2000
    verdicts = [decided(EQUAL, pairs_of(i, 8, 1.0, 0.3)) for i in range(trials)]
    low, high = rate_bounds(0.05, trials)
    assert low <= np.mean([v == "reproduced" for v in verdicts]) <= high


def test_holm_holds_the_rate_of_a_whole_family():
    """Of eight relations, six have no effect: at most 5 % of the studies have a false verdict, and the two effects are
    found."""
    trials, truth = 600, [0.0] * 6 + [4.0] * 2
    uncorrected = wrong = found = 0
    for trial in range(trials):
        families = [pairs_of(1000 * trial + k, 5, d) for k, d in enumerate(truth)]
        ps = [stats.relation_p(GREATER, stats.gains(x)) for x in families]
        verdicts = [stats.verdict(GREATER, x, p) for x, p in zip(families, stats.holm(ps), strict=True)]
        uncorrected += any(p < 0.05 for p in ps[:6])
        wrong += any(v != "unresolved" for v in verdicts[:6])
        found += verdicts[6:] == ["reproduced"] * 2
    assert wrong / trials <= rate_bounds(0.05, trials)[1]
    assert uncorrected / trials > 0.2  # so the correction matters
    assert found / trials > 0.5


@pytest.mark.parametrize(
    "pairs",
    [
        [(0.5, 0.5)] * 3,  # the same run twice
        [(0.3, 0.1), (0.2, 0.0), (0.9, 0.7)],  # 0.2 up to rounding; scipy gives p = 1e-32
        [(0.7, 0.1)],
    ],
)
def test_without_variance_there_is_no_verdict(pairs):
    test = stats.gains(pairs)
    assert test.p is None and test.dz is None
    for relation in (GREATER, EQUAL):
        p = stats.relation_p(relation, test)
        assert p is None and stats.verdict(relation, pairs, p) == "unresolved"
        assert stats.seeds_needed(relation, test) is None
