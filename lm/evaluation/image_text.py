"""Held-out figures of models that read images: what they write about them, and how well codes keep them."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from lm import distributed, sharding
from lm.config import Sampling
from lm.data.image_questions import guess
from lm.data.image_text import ImageTextRows, PictureRows
from lm.data.records import Pair
from lm.evaluation.findings import interval_ends
from lm.evaluation.qa_metrics import qa_metrics
from lm.generation.engine import Request
from lm.generation.text_engine import engine_for
from lm.models.transformer import Transformer
from lm.types import WeightedMean

Score = Callable[[Any, Any], dict[str, Any]]  # (params, batch), jitted


def sums(score: Score, params: Any, rows: PictureRows, mesh: Mesh, *, batch_size: int, limit: int | None) -> dict[str, Any]:
    """What `score` gives, summed in float64 over held-out rows spread evenly: of a WeightedMean [total, weight]."""
    chosen = spread(rows.count, limit)
    found: dict[str, Any] = {}
    for first in range(0, len(chosen), batch_size):
        part = chosen[first : first + batch_size]
        index = np.append(part, np.full(batch_size - len(part), rows.count))  # past the end: blank; one shape
        for name, value in score(params, sharding.global_batch(rows.rows, index, mesh)).items():
            several = (value.total, value.weight) if isinstance(value, WeightedMean) else value
            pair = np.asarray(jax.tree.map(distributed.fetched, several), np.float64)
            found[name] = found.get(name, 0.0) + pair
    return found


def spread(count: int, limit: int | None) -> np.ndarray:
    """int64 [n]: numbers of `limit` of `count` rows, spread evenly; None: of all."""
    return np.linspace(0, count - 1, min(count, limit or count)).round().astype(np.int64)


@dataclass(frozen=True)
class HeldOutCodes:
    """Call with an autoencoder's parameters -> its loss and terms; `mse` and `psnr` (decibels) of pixels from 0 to 1;
    `code_perplexity`, exp of the entropy of all codes of these images; `codes_unused`, how many codes none of them has."""

    rows: PictureRows
    score: Score
    batch_size: int
    mesh: Mesh
    limit: int | None = None  # rows; None: all

    def __call__(self, params: Any) -> dict[str, float]:
        found = sums(self.score, params, self.rows, self.mesh, batch_size=self.batch_size, limit=self.limit)
        codes = found.pop("codes")
        means = {name: float(total / max(weight, 1.0)) for name, (total, weight) in found.items()}
        used = codes[codes > 0] / codes.sum()
        means |= {"psnr": -10.0 * math.log10(max(means["mse"], 1e-12))}
        return means | {
            "code_perplexity": math.exp(-float(np.sum(used * np.log(used)))),
            "codes_unused": float((codes == 0).sum()),
        }


@dataclass(frozen=True)
class HeldOutImageText:
    """Call with parameters -> `loss` in nats and `accuracy` of a token; `exact` match and `f1` of the texts that the model
    writes, the most likely token at each step; and `guess`, the share of exact matches of the best answers without the image,
    which are those most common in training to the same question. Of several kinds of text each has its own too: `colour/exact`.
    """

    network: Transformer
    rows: ImageTextRows
    trained: Sequence[Pair]
    score: Score
    batch_size: int
    mesh: Mesh
    limit: int | None = None  # rows; None: all
    latest: dict[str, np.ndarray] = field(default_factory=dict)  # values of the latest call

    def __call__(self, params: Any) -> dict[str, float]:
        found = sums(self.score, params, self.rows, self.mesh, batch_size=self.batch_size, limit=self.limit)
        index = spread(self.rows.count, self.limit).tolist()
        answers = [self.rows.asked(i).answer for i in index]
        best = guess(self.trained)
        guessed = [best(self.rows.asked(i).question) for i in index]
        values = qa_metrics(self.written(params, index), answers) | {"guess": qa_metrics(guessed, answers)["exact"]}
        self.latest.update(values)
        means = {name: float(total / max(weight, 1.0)) for name, (total, weight) in found.items()}
        return means | by_kind(values, [self.rows.kind(i) for i in index]) | {"items": len(index)}

    def written(self, params: Any, index: Sequence[int]) -> list[str]:
        """The most likely text of each of these rows."""
        return write(self.network, params, self.rows, index, slots=self.batch_size)

    def intervals(self) -> dict[str, list[float]]:
        """The ends of the 95 % intervals of the latest call's figures, over rows."""
        return interval_ends(self.latest)


def write(network: Transformer, params: Any, rows: ImageTextRows, index: Sequence[int], *, slots: int) -> list[str]:
    """What the model writes in these rows: the most likely token at each step, up to the end of the text."""
    how, end, room = Sampling(temperature=0.0), rows.tokenizer.require("eos"), rows.lengths.decoder or 0
    requests = []
    for i in index:
        encoder, prompt = rows.prompt(i)
        requests.append(Request(prompt, room + 1 - len(prompt), how, encoder))
    written = engine_for(requests, network, params, rows.tokenizer, slots=slots, ends=[end]).write(requests)
    return [rows.tokenizer.decode([w.token for w in sample if w.token != end]).strip() for (sample,) in written]


def by_kind(values: Mapping[str, np.ndarray], kinds: Sequence[str]) -> dict[str, float]:
    """Means of values float64 [N] over all rows and, of several kinds, of each: {"exact": ..., "name/exact": ...}."""
    found = {name: float(np.mean(x)) for name, x in values.items()}
    for kind in dict.fromkeys(kinds) if len(set(kinds)) > 1 else ():
        mine = np.array([one == kind for one in kinds])
        found |= {f"{kind}/{name}": float(np.mean(x[mine])) for name, x in values.items()}
    return found
