"""Intervals, beside those of statsmodels and counted pairs; how a row is shown."""

import numpy as np
import pytest

from lm.evaluation.findings import Interval, Row, auroc, bootstrap, interval_ends, mean, share


@pytest.mark.parametrize(("hits", "of"), [(0, 10), (1, 10), (7, 10), (10, 10), (123, 1000), (0.5, 4)])
def test_the_interval_of_a_share_is_wilsons(hits, of):
    proportion = pytest.importorskip("statsmodels.stats.proportion")
    found = share(hits, of)
    assert (found.low, found.high) == pytest.approx(proportion.proportion_confint(hits, of, method="wilson"), abs=1e-12)
    assert found.value == hits / of and 0 <= found.low <= found.value <= found.high <= 1


def test_the_interval_of_a_mean_is_students():
    weights = pytest.importorskip("statsmodels.stats.weightstats")
    values = np.random.default_rng(0).gamma(2.0, size=15)
    found = mean(values)
    assert (found.low, found.high) == pytest.approx(weights.DescrStatsW(values).tconfint_mean(), rel=1e-9)
    assert mean(np.ones(1)) == Interval(1.0, -np.inf, np.inf)


def test_figures_over_items_have_the_interval_of_their_kind():
    right, nats = np.array([1.0, 0.0, 1.0, 1.0, 1.0]), np.array([2.0, 0.5, 1.0, 3.0, 2.5])
    f1, wide = np.array([1.0, 0.9, 1.0, 1.0, 0.95]), np.array([0.1, 9.0, 0.2, 0.1, 0.1])
    found = interval_ends({"exact": right, "nll": nats, "few": np.ones(4), "f1": f1, "wide": wide})
    assert found == {
        "exact": [share(4, 5).low, share(4, 5).high],
        "nll": [mean(nats).low, mean(nats).high],
        "f1": [mean(f1).low, 1.0],  # no share is more
        "wide": [0.0, mean(wide).high],
    }
    assert interval_ends({"exact": np.ones(9)})["exact"][0] < 0.75  # all right, and no certainty


def test_a_bootstrap_of_a_mean_is_near_students():
    values = np.random.default_rng(1).normal(3.0, 1.0, 400)
    found, wanted = bootstrap(lambda chosen: float(values[chosen].mean()), 400), mean(values)
    assert found.value == pytest.approx(wanted.value)
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high), abs=0.02)


def test_auroc_counts_pairs():
    rng = np.random.default_rng(2)
    a, b = rng.integers(0, 6, 30), rng.integers(0, 5, 40)  # with ties
    wanted = np.mean([(x > y) + (x == y) / 2 for x in a for y in b])
    assert auroc(a, b) == pytest.approx(wanted) and auroc(b, a) == pytest.approx(1 - wanted)
    assert auroc(np.array([2.0, 3.0]), np.array([0.0, 1.0])) == 1.0 and auroc(np.ones(3), np.ones(5)) == 0.5


def test_a_row_is_shown_with_its_interval_and_floor():
    row = Row("a", Interval(0.125, 0.1, 0.15), Interval(0.5, 0.4, 0.6))
    assert row.shown() == ("a", "12.5%", "10.0% to 15.0%", "50.0% (40.0% to 60.0%)")
    assert Row("b", 1234.0, 0.0, share=False).shown() == ("b", "1,234", "", "0")
    assert Row("c", 2.34567, share=False).shown() == ("c", "2.35", "", "")
