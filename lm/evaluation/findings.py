"""What an examination found: rows of a table with 95 % intervals, what it cannot show, and a picture."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import special  # comes with jax; scipy.stats, which has this too, takes a second to import

Z = 1.959963984540054  # of a normal distribution, 95 % lie within so many standard deviations
DRAWS = 1000  # of a bootstrap


@dataclass(frozen=True)
class Interval:
    """A figure and the ends of its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Row:
    """One figure of a finding. `floor` is what the same measure gives where there is nothing to find. `share`: from 0 to 1,
    shown in percent."""

    measure: str
    found: Interval | float
    floor: Interval | float | None = None
    share: bool = True

    def shown(self) -> tuple[str, str, str, str]:
        """The measure, its value, its interval and its floor as text."""
        number = (lambda x: f"{x:.1%}") if self.share else (lambda x: f"{x:,.3g}" if abs(x) < 1000 else f"{x:,.0f}")
        value = self.found.value if isinstance(self.found, Interval) else self.found
        ends = f"{number(self.found.low)} to {number(self.found.high)}" if isinstance(self.found, Interval) else ""
        if isinstance(self.floor, Interval):
            floor = f"{number(self.floor.value)} ({number(self.floor.low)} to {number(self.floor.high)})"
        else:
            floor = "" if self.floor is None else number(self.floor)
        return self.measure, number(value), ends, floor


@dataclass(frozen=True)
class Finding:
    """`notes` say how to read the figures and what they cannot show; `shown` are examples, as text. `details` is what is
    written as JSON besides; `draw` draws into an empty figure of matplotlib."""

    rows: Sequence[Row]
    notes: Sequence[str]
    details: Mapping[str, Any]
    draw: Callable[[Any], None]
    shown: Sequence[str] = ()


ENOUGH = 5  # items or clusters: of fewer, an interval by their variance says nothing


def share(hits: float, of: int) -> Interval:
    """The share hits / of with Wilson's interval of a binomial (1927), which is also right near 0 and 1."""
    if of < 1:
        return Interval(float("nan"), 0.0, 1.0)
    p, z2 = hits / of, Z * Z / of
    centre, half = (p + z2 / 2) / (1 + z2), Z * (p * (1 - p) / of + z2 / of / 4) ** 0.5 / (1 + z2)
    return Interval(p, centre - half if hits else 0.0, centre + half if hits < of else 1.0)


def bootstrap(statistic: Callable[[np.ndarray], float], count: int, *, seed: int = 0, draws: int = DRAWS) -> Interval:
    """`statistic` of the items 0 .. count - 1, and its interval by drawing items with replacement (percentiles)."""
    rng = np.random.default_rng(seed)
    found = [statistic(rng.integers(count, size=count)) for _ in range(draws)]
    low, high = np.percentile(found, [2.5, 97.5])
    return Interval(float(statistic(np.arange(count))), float(low), float(high))


def ratio(totals: np.ndarray, weights: np.ndarray) -> Interval:
    """sum(totals) / sum(weights), float [n] each, and Student's t interval by the variance of a ratio over n independent
    clusters (Cochran, Sampling Techniques, 3rd edition, 1977, equation 6.13)."""
    n, whole = len(totals), float(np.sum(weights))
    middle = float(np.sum(totals)) / whole
    spread = (n / (n - 1) * np.sum((totals - middle * weights) ** 2)) ** 0.5 / whole if n > 1 else float("inf")
    half = float(-special.stdtrit(n - 1, 0.025) * spread) if n > 1 else float("inf")
    return Interval(middle, middle - half, middle + half)


def mean(values: np.ndarray) -> Interval:
    """The mean of the values, float [n], and Student's t interval, which a bootstrap of few values is too narrow for."""
    n, middle = len(values), float(np.mean(values))
    half = float(-special.stdtrit(n - 1, 0.025) * np.std(values, ddof=1) / n**0.5) if n > 1 else float("inf")
    return Interval(middle, middle - half, middle + half)


def auroc(higher: np.ndarray, lower: np.ndarray) -> float:
    """The probability that one of `higher` is above one of `lower`, ties counted half: 0.5 where nothing tells them apart."""
    ordered = np.sort(lower)
    below = np.searchsorted(ordered, higher, "left") + np.searchsorted(ordered, higher, "right")
    return float(below.mean() / 2 / len(lower))


def interval_ends(values: Mapping[str, np.ndarray]) -> dict[str, list[float]]:
    """The ends of the interval of the mean of each figure over items, float [n]: Wilson's where each is right or wrong."""
    found = {
        name: share(float(each.sum()), len(each)) if np.isin(each, (0, 1)).all() else mean(each)
        for name, each in values.items()
        if len(each) >= ENOUGH
    }
    return {name: within(interval, values[name]) for name, interval in found.items()}


def within(interval: Interval, values: np.ndarray) -> list[float]:
    """The ends of an interval, cut to where the values can be: not below 0 if none is, and to 1 if all are shares."""
    low, high = interval.low, interval.high
    if values.min() >= 0:
        low = max(low, 0.0)
        high = min(high, 1.0) if values.max() <= 1 else high
    return [low, high]
