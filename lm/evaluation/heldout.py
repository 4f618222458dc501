"""Held-out figures under the run's own objective, over all rows of the held-out split or some spread evenly over it."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jax.sharding import Mesh

from lm import sharding
from lm.data.rows import Rows, one_after_another
from lm.evaluation.findings import ENOUGH, ratio, within
from lm.types import WeightedMean

Score = Callable[[Any, Any], dict[str, WeightedMean]]  # (params, batch), jitted


@dataclass(frozen=True)
class HeldOut:
    """Call with parameters -> `{"loss", "accuracy", "tokens"}`, and `perplexity` and `bits_per_byte` where they are defined; of
    two or more sources also `<source>/loss`, `<source>/accuracy` and `<source>/bits_per_byte`, of the same rows.

    Perplexity is defined for a loss in nats a token (`nats`). Bits per byte are defined for a loss whose sum is the negative
    log-probability of the text (`factors`), which is the causal one: nats a token / ln 2 * tokens / bytes of the split. Of a
    loss that is at least that (`factors="bound"`) the same figure is `bits_per_byte_bound`.
    """

    rows: Rows
    score: Score
    batch_size: int
    mesh: Mesh
    limit: int | None = None  # rows; None: all
    factors: bool | str = False
    nats: bool = True
    batches: list[tuple[np.ndarray, dict[str, np.ndarray]]] = field(default_factory=list)  # of the latest call: rows, sums

    def __call__(self, params: Any) -> dict[str, float]:
        self.batches.clear()
        total = self.rows.count
        chosen = np.linspace(0, total - 1, min(total, self.limit or total)).round().astype(np.int64)
        ends = np.cumsum(list(self.rows.sizes.values()))
        parts = np.split(chosen, np.searchsorted(chosen, ends[:-1]))  # no batch has rows of two sources
        of_source = {name: self._sums(params, part) for name, part in zip(self.rows.sizes, parts, strict=True) if len(part)}
        names = next(iter(of_source.values()))
        sums = {name: np.sum([found[name] for found in of_source.values()], axis=0) for name in names}
        metrics = {name: _mean(sums[name]) for name in names}
        if len(self.rows.sizes) > 1:  # of sources that have predictions in the chosen rows
            each = [(f"{source}/{name}", found[name]) for source, found in of_source.items() for name in names]
            metrics |= {name: _mean(found) for name, found in each if found[1]}
        metrics["tokens"] = round(sums["loss"][1])
        if self.nats:
            metrics["perplexity"] = math.exp(min(metrics["loss"], 50.0))
        if self.factors:
            name, stores = self._bits_name, self.rows.stores
            metrics[name] = _bits(metrics["loss"], stores.values())
            of = {source: metrics.get(f"{source}/loss") for source in stores}
            metrics |= {f"{source}/{name}": _bits(loss, [stores[source]]) for source, loss in of.items() if loss is not None}
        return metrics

    def _sums(self, params: Any, chosen: np.ndarray) -> dict[str, np.ndarray]:
        """[total, weight] of each score over these rows, float64."""
        sums: dict[str, np.ndarray] = {}
        for first in range(0, len(chosen), self.batch_size):
            part = chosen[first : first + self.batch_size]
            # Past the end: blank; one shape.
            index = np.append(part, np.full(self.batch_size - len(part), self.rows.count))
            result = self.score(params, sharding.global_batch(self.rows.rows, index, self.mesh))
            # Summed as Python floats: float32 would lose the last digits over many batches.
            found = {name: np.array([float(mean.total), float(mean.weight)]) for name, mean in result.items()}
            self.batches.append((part, found))
            for name, pair in found.items():
                sums[name] = sums.get(name, np.zeros(2)) + pair
        return sums

    def intervals(self) -> dict[str, list[float]]:
        """The ends of the 95 % interval of the latest call's figures of all sources, over documents: a batch counts as part of
        the one in which its middle lies. {} where there are too few, or nothing was called."""
        documents = [self._document(int(part[len(part) // 2])) for part, _ in self.batches]
        order = {document: i for i, document in enumerate(dict.fromkeys(documents))}
        if len(order) < ENOUGH:
            return {}
        ends = dict[str, list[float]]()
        for name in self.batches[0][1]:
            sums = np.zeros((len(order), 2))
            np.add.at(sums, [order[document] for document in documents], [found[name] for _, found in self.batches])
            if sums[:, 1].sum():
                ends[name] = within(ratio(*sums.T), sums[:, 0] / np.maximum(sums[:, 1], 1e-9))
        if self.nats and "loss" in ends:
            ends["perplexity"] = [math.exp(min(end, 50.0)) for end in ends["loss"]]
        if self.factors and "loss" in ends:
            ends[self._bits_name] = [_bits(end, self.rows.stores.values()) for end in ends["loss"]]
        return ends

    @property
    def _bits_name(self) -> str:
        return "bits_per_byte_bound" if self.factors == "bound" else "bits_per_byte"

    def _document(self, row: int) -> tuple[int, int]:
        """The source and the number of the document in which a row begins."""
        (source,), (number,) = one_after_another(np.array([row]), list(self.rows.sizes.values()))
        offsets = list(self.rows.stores.values())[source].offsets
        return int(source), int(np.searchsorted(offsets, number * self.rows.objective.stride, side="right"))


def _bits(loss: float, stores: Iterable[Any]) -> float:
    """Bits per byte of texts in these stores, at so many nats a token."""
    found = list(stores)
    tokens = sum(store.num_tokens - store.num_documents for store in found)
    return loss / math.log(2) * tokens / sum(store.num_bytes for store in found)


def _mean(sums: np.ndarray) -> float:
    total, weight = sums
    return float(total / max(weight, 1.0))
