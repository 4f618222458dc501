"""Held-out figures of preferred answers: how often a model agrees, and whether it is as sure as it is right."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from lm import distributed, sharding
from lm.data.preference_rows import PreferenceRows
from lm.evaluation.calibration import bins
from lm.evaluation.findings import interval_ends
from lm.losses.preference import Values


@dataclass(frozen=True)
class HeldOutJudged:
    """Call with parameters -> the mean of each figure over held-out rows, such as `loss` and `accuracy`; their number, `items`;
    and of pairs `ece`, the expected calibration error of sigmoid(margin), the probability that the chosen answer is better."""

    rows: PreferenceRows
    score: Callable[[Any, Any], Values]  # (params, batch), jitted
    batch_size: int
    mesh: Mesh
    limit: int | None = None  # rows; None: all
    latest: dict[str, np.ndarray] = field(default_factory=dict)  # of the latest call, the rows that each figure is of

    def __call__(self, params: Any) -> dict[str, float]:
        found = self.values(params)
        self.latest.update({name: value[weight > 0] for name, (value, weight) in found.items() if name != "kl"})  # of a batch
        metrics = {name: float(np.sum(value * weight) / max(np.sum(weight), 1.0)) for name, (value, weight) in found.items()}
        if "margin" in found:
            metrics["ece"] = calibration_error(found["margin"][0])
        return metrics | {"items": len(found["loss"][0])}

    def intervals(self) -> dict[str, list[float]]:
        """The ends of the 95 % intervals of the latest call's figures, over records."""
        return interval_ends(self.latest)

    def values(self, params: Any) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """The figures of each row and their weights, float64 [N] each."""
        total = self.rows.count
        chosen = np.linspace(0, total - 1, min(total, self.limit or total)).round().astype(np.int64)
        parts: list[Values] = []
        for first in range(0, len(chosen), self.batch_size):
            part = chosen[first : first + self.batch_size]
            index = np.append(part, np.full(self.batch_size - len(part), total))  # past the end: blank; one shape
            batch = sharding.global_batch(self.rows.rows, index, self.mesh)
            parts.append(jax.tree.map(distributed.fetched, self.score(params, batch)))
        joined = lambda name, i: np.concatenate([np.asarray(part[name][i], np.float64) for part in parts])[: len(chosen)]
        return {name: (joined(name, 0), joined(name, 1)) for name in parts[0]}


def calibration_error(margin: np.ndarray) -> float:
    """The expected calibration error, in ten bins of equal width, of pairs whose chosen answer has probability sigmoid(margin),
    float [N]."""
    p = 1 / (1 + np.exp(-np.clip(margin, -500, 500)))
    return bins(np.maximum(p, 1 - p), p > 0.5).error
