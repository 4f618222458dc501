"""Fits of losses over model size and data: isoFLOP parabolas and the parametric form of Chinchilla (arXiv 2203.15556)."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import logsumexp


@dataclass(frozen=True)
class Point:
    flops: float
    parameters: float
    tokens: float
    loss: float


def optimum(points: Sequence[Point]) -> float | None:
    """The parameters at the minimum of a parabola in log N through the points of one budget (approach 2, section 3.2).

    None if the parabola has no minimum, or has it outside of the sizes that were tried, so that they do not bracket it.
    """
    x = np.log([p.parameters for p in points])
    a, b, _ = np.polyfit(x, [p.loss for p in points], 2)
    lowest = -b / (2 * a)
    return float(np.exp(lowest)) if a > 0 and x.min() <= lowest <= x.max() else None


def optima(points: Sequence[Point]) -> dict[float, float]:
    """Budget -> optimum, for the budgets that have one."""
    found = {c: optimum([p for p in points if p.flops == c]) for c in sorted({p.flops for p in points})}
    return {c: n for c, n in found.items() if n is not None}


def exponent(points: Sequence[Point], over: Collection[float] | None = None) -> tuple[float, float] | None:
    """(a, k) of N_opt = k C^a over the budgets that have an optimum, or over the budgets `over`. None with fewer than two, or
    if one of `over` has no optimum: slopes over different budgets are not comparable."""
    found = optima(points)
    if over is not None:
        found = {c: n for c, n in found.items() if c in over} if set(over) <= found.keys() else {}
    if len(found) < 2:
        return None
    a, log_k = np.polyfit(np.log(list(found)), np.log(list(found.values())), 1)
    return float(a), float(np.exp(log_k))


@dataclass(frozen=True)
class Law:
    """L(N, D) = E + A / N^alpha + B / D^beta (equation 2)."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float
    residual: float = 0.0  # root mean square of log L minus its prediction
    bounded: bool = False  # a parameter is at the end of its range: the runs do not have this form

    def loss(self, parameters: float, tokens: float) -> float:
        return self.E + self.A / parameters**self.alpha + self.B / tokens**self.beta

    @property
    def exponent(self) -> float:
        """a of N_opt ~ C^a, beta / (alpha + beta) (equation 4), for C = 6 N D."""
        return self.beta / (self.alpha + self.beta)


STARTS = [(a, b, e, s, s) for a in (2.0, 8.0) for b in (2.0, 8.0) for e in (-1.0, 0.5) for s in (0.3, 0.7)]


def law(points: Sequence[Point], *, start: Law | None = None, delta: float = 1e-3) -> Law:
    """Minimises the Huber loss of log L by L-BFGS, from `start` or a grid of starts (approach 3, section 3.3, equation 3)."""
    n, d, loss = (np.log([getattr(p, name) for p in points]) for name in ("parameters", "tokens", "loss"))

    def predicted(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The predicted log L of the runs, and the logarithms of its three terms."""
        a, b, e, alpha, beta = x
        terms = np.stack([a - alpha * n, b - beta * d, np.full_like(n, e)])
        return logsumexp(terms, axis=0), terms

    def objective(x: np.ndarray) -> tuple[float, np.ndarray]:
        """The loss at x = (log A, log B, log E, alpha, beta), and its gradient."""
        prediction, terms = predicted(x)
        gap = prediction - loss
        size = np.abs(gap)
        value = np.where(size <= delta, 0.5 * gap**2, delta * (size - 0.5 * delta)).sum()
        share = np.exp(terms - prediction) * np.clip(gap, -delta, delta)
        of_a, of_b, of_e = share.sum(axis=1)
        # Scaled, because with losses this small L-BFGS would stop at the start.
        return value / delta**2, np.array([of_a, of_b, of_e, -(share[0] * n).sum(), -(share[1] * d).sum()]) / delta**2

    starts = STARTS
    if start is not None:
        starts = [(np.log(start.A), np.log(start.B), np.log(start.E), start.alpha, start.beta)]
    bounds = [(-5, 30), (-5, 30), (-10, 3), (0.01, 2.5), (0.01, 2.5)]
    found = [minimize(objective, x, jac=True, method="L-BFGS-B", bounds=bounds) for x in starts]
    best = min(found, key=lambda f: f.fun).x
    a, b, e, alpha, beta = map(float, best)
    bounded = any(min(x - low, high - x) < 0.02 * (high - low) for x, (low, high) in zip(best, bounds, strict=True))
    residual = float(np.sqrt(np.mean((predicted(best)[0] - loss) ** 2)))
    return Law(float(np.exp(e)), float(np.exp(a)), float(np.exp(b)), alpha, beta, residual, bounded)


def bootstrap(by_seed: Sequence[Sequence[Point]], fit, *, resamples: int = 200, seed: int = 0) -> list:
    """`fit(points)` of resampled runs: for each cell (an index into the lists), as many seeds as it has, drawn with
    replacement."""
    rng = np.random.default_rng(seed)
    cells = list(zip(*by_seed, strict=True))
    out = []
    for _ in range(resamples):
        drawn = [cell[i] for cell in cells for i in rng.integers(len(cell), size=len(cell))]
        out.append(fit(drawn))
    return out


def interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """The central `level` interval of resampled values."""
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
