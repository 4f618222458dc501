"""Fits of scaling laws recover known constants, and Chinchilla's published constants give its published optimum."""

import numpy as np
import pytest
from scipy.optimize import check_grad

from experiments.scaling import fit
from experiments.scaling.fit import Law, Point

CHINCHILLA = Law(1.69, 406.4, 410.7, 0.34, 0.28)  # arXiv 2203.15556, equation 10


def points(law: Law, noise: float = 0.0, seed: int = 0) -> list[Point]:
    rng = np.random.default_rng(seed)
    out = []
    for flops in (1e18, 1e19, 1e20, 1e21):
        best = (law.alpha * law.A / (law.beta * law.B)) ** (1 / (law.alpha + law.beta)) * (flops / 6) ** law.exponent
        for n in best * np.geomspace(0.25, 4, 7):
            d = flops / 6 / n
            out.append(Point(flops, n, d, law.loss(n, d) * np.exp(noise * rng.normal())))
    return out


def test_the_published_exponent():
    """Table 2 of the paper: 0.46 by approach 3."""
    assert CHINCHILLA.exponent == pytest.approx(0.46, abs=0.01)


def test_the_parametric_form_is_found_again():
    found = fit.law(points(CHINCHILLA))
    for name in ("E", "alpha", "beta"):
        assert getattr(found, name) == pytest.approx(getattr(CHINCHILLA, name), rel=0.02), name


def test_isoflop_exponent_and_its_interval():
    by_seed = [points(CHINCHILLA, 0.003, seed) for seed in range(4)]
    whole = [p for part in by_seed for p in part]
    exponent, scale = fit.exponent(whole)
    assert exponent == pytest.approx(CHINCHILLA.exponent, abs=0.03)
    assert scale * 1e20**exponent == pytest.approx(fit.optimum([p for p in whole if p.flops == 1e20]), rel=0.2)
    low, high = fit.interval([e[0] for e in fit.bootstrap(by_seed, fit.exponent)])
    assert low < CHINCHILLA.exponent < high and high - low < 0.2


def test_what_is_not_bracketed_is_not_an_optimum():
    larger_is_better = [Point(1.0, n, 1.0, -0.1 * np.log(n)) for n in (1e3, 1e4, 1e5)]
    downwards = [Point(1.0, n, 1.0, -((np.log(n) - 9) ** 2)) for n in (1e3, 1e4, 1e5)]
    assert fit.optimum(larger_is_better) is None and fit.optimum(downwards) is None
    assert fit.exponent(larger_is_better) is None


def test_a_slope_is_over_the_budgets_that_it_is_said_to_be_over():
    flat = [Point(2.0, n, 1.0, -0.1 * np.log(n)) for n in (1e3, 1e4, 1e5)]
    bowl = lambda c, best: [Point(c, n, 1.0, (np.log(n) - np.log(best)) ** 2) for n in (1e3, 1e4, 1e5)]
    found = [*bowl(1.0, 5e3), *flat, *bowl(4.0, 2e4)]
    assert list(fit.optima(found)) == [1.0, 4.0]
    assert fit.exponent(found)[0] == fit.exponent(found, [1.0, 4.0])[0] == pytest.approx(1.0)
    assert fit.exponent(found, [1.0, 2.0]) is None and fit.exponent(found, [1.0]) is None


def test_runs_of_another_shape_are_no_fit():
    """A cliff, as of large models that have not begun to learn, is detected; Chinchilla's form with noise is not."""
    assert not fit.law(points(CHINCHILLA, 0.01)).bounded
    cliff = [Point(c, n, c / n, 3.0 if n < 3e4 else 9.0) for c in (1e9, 3e9, 9e9) for n in (1e3, 3e3, 1e4, 3e4, 1e5)]
    found = fit.law(cliff)
    assert found.bounded and found.residual > 0.05


def test_resamples_take_each_cell_as_often_as_it_has_seeds():
    by_seed = [[Point(1.0, n, 1.0, seed) for n in (1.0, 2.0)] for seed in range(3)]
    for drawn in fit.bootstrap(by_seed, list, resamples=20):
        assert [p.parameters for p in drawn] == [1.0] * 3 + [2.0] * 3


def test_the_gradient(monkeypatch):
    kept = {}
    monkeypatch.setattr(fit, "minimize", lambda fun, x, **_: kept.update(fun=fun) or type("R", (), {"fun": 0.0, "x": x})())
    fit.law(points(CHINCHILLA, 0.01))
    value, gradient = (lambda x: kept["fun"](x)[0]), (lambda x: kept["fun"](x)[1])
    x = np.array([6.0, 6.0, 0.5, 0.35, 0.3])
    assert check_grad(value, gradient, x) < 1e-3 * np.abs(gradient(x)).max()
