"""Held-out figures of a model that tells the classes of pictures."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jax.sharding import Mesh

from lm import sharding
from lm.data.image_rows import ImageRows
from lm.evaluation.findings import share, within
from lm.types import WeightedMean


@dataclass(frozen=True)
class HeldOutPictures:
    """Call with parameters -> `loss` in nats a picture, `accuracy`, and `majority`: the accuracy of always naming the class
    that is most frequent in training. `items` are the pictures with a class that training has."""

    rows: ImageRows
    trained: ImageRows
    score: Callable[[Any, Any], dict[str, WeightedMean]]  # (params, batch), jitted
    batch_size: int
    mesh: Mesh
    limit: int | None = None  # pictures; None: all
    latest: dict[str, float] = field(default_factory=dict)  # hits and items of the latest call

    def __call__(self, params: Any) -> dict[str, float]:
        index = (
            np.linspace(0, self.rows.count - 1, min(self.rows.count, self.limit or self.rows.count)).round().astype(np.int64)
        )
        sums: dict[str, np.ndarray] = {}
        for first in range(0, len(index), self.batch_size):
            part = index[first : first + self.batch_size]
            padded = np.append(part, np.full(self.batch_size - len(part), self.rows.count))  # past the end: blank; one shape
            found = self.score(params, sharding.global_batch(self.rows.rows, padded, self.mesh))
            for name, mean in found.items():
                sums[name] = sums.get(name, np.zeros(2)) + np.array([float(mean.total), float(mean.weight)])
        hits, items = sums["accuracy"]
        self.latest.update(hits=hits, items=items)
        metrics = {name: float(total / max(weight, 1.0)) for name, (total, weight) in sums.items()}
        return metrics | {"majority": self._majority(index), "items": round(items)}

    def intervals(self) -> dict[str, list[float]]:
        """The ends of the 95 % interval of the latest call's accuracy, over pictures."""
        if not self.latest:
            return {}
        hits, items = self.latest["hits"], int(self.latest["items"])
        return {"accuracy": within(share(hits, items), np.array([0.0, 1.0]))}

    def _majority(self, index: np.ndarray) -> float:
        labels = Counter(r.label for of in self.trained.pictures.values() for r in of.records if r.label)
        told = [record.label for record in self.rows.records(index) if record.label in labels]
        return told.count(max(sorted(labels), key=labels.__getitem__)) / max(len(told), 1)
