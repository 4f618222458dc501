"""Calibration beside scikit-learn and by hand; a calibrated and an over-confident set are told apart."""

import numpy as np
import pytest

from lm.evaluation.calibration import BINS, bins, brier, of_scores, probabilities, temperature


def drawn(count, *, choices=4, spread=2.0, seed=0):
    """Log-probabilities, and answers that are drawn from them: a perfectly calibrated set."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(count, choices)) * spread
    p = probabilities(scores)
    answers = (rng.random((count, 1)) > p.cumsum(axis=1)).sum(axis=1).clip(max=choices - 1)
    return scores, answers


@pytest.mark.parametrize("strategy", ["uniform", "quantile"])
def test_bins_are_those_of_scikit_learn(strategy):
    calibration = pytest.importorskip("sklearn.calibration")
    rng = np.random.default_rng(1)
    confidence = rng.beta(3, 2, 500)
    right = rng.random(500) < confidence**2
    found = bins(confidence, right, mass=strategy == "quantile")
    true, predicted = calibration.calibration_curve(right, confidence, n_bins=BINS, strategy=strategy)
    np.testing.assert_allclose(found.accuracy, true)
    np.testing.assert_allclose(found.confidence, predicted)
    assert found.size.sum() == 500 and (strategy == "uniform" or set(found.size) == {50})


def test_the_error_by_hand():
    confidence, right = np.array([0.15, 0.12, 0.95, 0.95]), np.array([0, 1, 1, 0])
    assert bins(confidence, right).error == pytest.approx((2 * abs(0.5 - 0.135) + 2 * abs(0.5 - 0.95)) / 4)
    assert bins(np.full(8, 0.75), np.arange(8) < 6).error == 0


def test_brier_by_hand():
    p = np.array([[0.7, 0.3], [0.2, 0.8]])
    assert brier(p, np.array([0, 0])) == pytest.approx((0.09 + 0.09 + 0.64 + 0.64) / 2)
    uniform = np.full((5, 4), 0.25)
    assert brier(uniform, np.zeros(5, int)) == pytest.approx(0.75)


def rows(finding):
    return {row.measure: row for row in finding.rows}


def test_a_calibrated_set_has_no_error_and_an_overconfident_one_has():
    scores, answers = drawn(2000)
    calm, sure = rows(of_scores(scores, answers)), rows(of_scores(3 * scores, answers))
    for name in ("ECE, bins of equal width", "ECE, bins of equal size"):
        assert calm[name].found.value < 0.04 and sure[name].found.value > 0.1
    width = "ECE, bins of equal width"
    assert calm[width].found.value < calm[width].floor.high and sure[width].found.value > sure[width].floor.high
    gap = "confidence - accuracy"
    assert calm[gap].found.low < 0 < calm[gap].found.high and sure[gap].found.low > 0.1
    assert calm["accuracy"].found == sure["accuracy"].found and calm["accuracy"].floor == 0.25
    assert calm["temperature, from one half"].found == pytest.approx(1.0, abs=0.1)
    assert sure["temperature, from one half"].found == pytest.approx(3.0, rel=0.1)
    assert sure["ECE, other half, with it"].found < 0.05 < sure["ECE, other half"].found
    assert sure["nats, other half, with it"].found == pytest.approx(calm["nats, other half"].found, abs=0.01)


def test_the_temperature_makes_the_answers_likeliest():
    scores, answers = drawn(400, seed=5)
    best = temperature(2 * scores, answers)
    nats = lambda t: -np.log(probabilities(2 * scores / t)[np.arange(400), answers]).mean()
    assert nats(best) <= min(nats(best * 1.05), nats(best / 1.05))


def test_items_of_different_numbers_of_choices():
    scores, answers = drawn(60)
    scores[::2, 3], answers[::2] = -np.inf, answers[::2] % 3
    p = probabilities(scores)
    assert (p[::2, 3] == 0).all() and p.sum(axis=1) == pytest.approx(np.ones(60))
    found = rows(of_scores(scores, answers))
    assert found["accuracy"].floor == pytest.approx((1 / 3 + 1 / 4) / 2)
    assert all(np.isfinite(row.found.value if hasattr(row.found, "value") else row.found) for row in found.values())
