"""Retrieval between held-out pictures and captions: how often a picture finds its caption, and a caption its picture.

Axes: N pairs, E size of the common space.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import comb
from typing import Any

import numpy as np
from jax.sharding import Mesh

from lm import sharding
from lm.data.image_rows import ImageRows
from lm.data.records import Captioned
from lm.evaluation.findings import interval_ends

AT = (1, 5)  # a query has found what it looks for if that is among so many nearest


@dataclass(frozen=True)
class Retrieval:
    """Call with parameters -> figures of all held-out pairs: `image_to_text@1` and the like are shares of queries for which a
    right answer is among the nearest, `chance@1` what a random order gives. `loss` is CLIP's, over all pairs at once.

    A right answer is of the same picture, or has the same caption.
    """

    rows: ImageRows
    encode: Callable[[Any, Any], tuple[Any, Any]]  # (params, batch) -> vectors of pictures and captions [B, E], of length 1
    scale: Callable[[Any], Any]  # params -> what cosines are multiplied by
    batch_size: int
    mesh: Mesh
    limit: int | None = None  # pairs; None: all
    latest: dict[str, np.ndarray] = field(default_factory=dict)  # values of the latest call

    def __call__(self, params: Any) -> dict[str, float]:
        index = (
            np.linspace(0, self.rows.count - 1, min(self.rows.count, self.limit or self.rows.count)).round().astype(np.int64)
        )
        images, texts = self.vectors(params, index)
        cosines = images @ texts.T
        right = alike(self.rows.records(index))
        self.latest.clear()
        self.latest.update(hits(cosines, right))
        metrics = {name: float(values.mean()) for name, values in self.latest.items()}
        metrics |= {f"chance@{k}": chance(right, k) for k in AT}
        scaled = cosines * float(self.scale(params))
        loss = np.mean([logsumexp(scaled) - np.diag(scaled), logsumexp(scaled.T) - np.diag(scaled)])
        return {"loss": float(loss), **metrics, "items": len(index)}

    def intervals(self) -> dict[str, list[float]]:
        """The ends of the 95 % intervals of the latest call's shares, over queries."""
        return interval_ends(self.latest)

    def vectors(self, params: Any, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The vectors of pictures and captions in rows `index`, float64 [N, E]."""
        sides: list[list[np.ndarray]] = [[], []]
        for first in range(0, len(index), self.batch_size):
            part = index[first : first + self.batch_size]
            padded = np.append(part, np.full(self.batch_size - len(part), self.rows.count))  # past the end: blank; one shape
            found = self.encode(params, sharding.global_batch(self.rows.rows, padded, self.mesh))
            for side, vectors in zip(sides, found, strict=True):
                side.append(np.asarray(vectors, np.float64)[: len(part)])
        images, texts = map(np.concatenate, sides)
        return images, texts


def alike(records: Sequence[Captioned]) -> np.ndarray:
    """bool [N, N]: whether the caption of column j is a right answer to the picture of row i."""
    return same([record.image for record in records]) | same([record.text for record in records])


def hits(cosines: np.ndarray, right: np.ndarray) -> dict[str, np.ndarray]:
    """`image_to_text@k` and `text_to_image@k` of each query, for each k of AT: 1.0 if a right answer is among the k nearest,
    else 0.0; float64 [N]. `cosines` and `right` have a row for each picture and a column for each caption."""
    found = {}
    for name, scores in (("image_to_text", cosines), ("text_to_image", cosines.T)):
        nearest = ranks(scores, right)
        found |= {f"{name}@{k}": (nearest < k).astype(np.float64) for k in AT}
    return found


def ranks(scores: np.ndarray, right: np.ndarray) -> np.ndarray:
    """int64 [N]: for each row of scores [N, M], how many wrong columns are at least as high as the highest right one."""
    best = np.where(right, scores, -np.inf).max(axis=1)
    return ((scores >= best[:, None]) & ~right).sum(axis=1)


def chance(right: np.ndarray, k: int) -> float:
    """The mean probability that a random order of the M columns has one of a row's right ones among its first k."""
    columns = right.shape[1]
    if columns < k:
        return 1.0
    missed = [comb(columns - int(n), k) / comb(columns, k) for n in right.sum(axis=1)]
    return float(1 - np.mean(missed))


def same(texts: list[str]) -> np.ndarray:
    """bool [N, N]: which of the texts are equal."""
    _, numbers = np.unique(np.array(texts), return_inverse=True)
    return numbers[:, None] == numbers


def logsumexp(scores: np.ndarray) -> np.ndarray:
    """float64 [N] of the rows of [N, M]."""
    most = scores.max(axis=1)
    return most + np.log(np.exp(scores - most[:, None]).sum(axis=1))
