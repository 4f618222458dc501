"""A classifier of good and bad texts: logistic regression over hashed n-grams of bytes, trained on labelled examples.

A text's score is the mean weight of its n-grams, as in fastText's linear classifiers (arXiv 1607.01759); bytes in place of
words need no tokenizer and see misspellings and markup. N-grams of fewer than two examples share a weight, so that it counts
how much of a text is like nothing that is known. The same examples give the same weights. GPT-3 (arXiv 2005.14165, appendix A)
and LLaMA (arXiv 2302.13971, section 2.1) choose web pages by such models.
"""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lm import config
from lm.data import records
from lm.errors import UserError

_LONGEST = 5  # bytes of an n-gram
_BITS = 18  # of a bucket's number
_MULTIPLIERS = tuple(np.uint64(m) for m in (0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93))
_READ = 1 << 16  # bytes of a text that are read
_HELD_OUT = 0.2  # of the examples, chosen by a hash
_DECAY = 1e-4  # the penalty: half of it on the weights' squares, beside the mean loss of an example


@dataclass(frozen=True)
class Model:
    """`weights` by bucket, float32 [2^18], and what the report says of them."""

    weights: np.ndarray
    bias: float
    facts: Mapping[str, Any]

    def good(self, text: str) -> float:
        """The probability that the text is good; of an empty one 0."""
        grams = [self.weights[buckets].mean(dtype=np.float64) for buckets in _buckets(text)]
        return 1 / (1 + math.exp(-min(max(sum(grams) + self.bias, -30.0), 30.0))) if grams else 0.0


def train(examples: Sequence[records.Record], settings: config.Classifier) -> Model:
    """Trains on four fifths of the examples and measures on the others. Raises UserError without both kinds in each part."""
    texts = {one.text: one.label == settings.good for one in examples if isinstance(one, records.Labelled)}
    held = {t for t in texts if int.from_bytes(hashlib.sha256(t.encode()).digest()[:4], "big") < _HELD_OUT * 2**32}
    parts = [sorted(texts.keys() - held), sorted(held)]
    for part in parts:
        if len({texts[text] for text in part}) < 2:
            raise UserError(
                f"data.quality.classifier.examples: of {len(texts)} examples {sum(texts.values())} have the label "
                f"{settings.good!r} of good texts: give some tens of both kinds, or set good="
            )
    x, used, scale = _features(parts[0])
    found, bias = _fit(x, np.array([texts[text] for text in parts[0]], float))
    weights = np.full(1 << _BITS, found[0] * scale[0], np.float32)
    weights[used] = found[1:] * scale[1:]
    model = Model(weights, bias, {})
    right = np.array([(model.good(text) >= settings.least) == texts[text] for text in parts[1]])
    good = np.array([texts[text] for text in parts[1]])
    facts = {
        "trained on": len(parts[0]),
        "held out": len(right),
        "held-out accuracy": round(float(right.mean()), 4),
        "good kept": round(float(right[good].mean()), 4),
        "bad dropped": round(float(right[~good].mean()), 4),
    }
    return Model(model.weights, model.bias, facts)


def _fit(x: Any, y: np.ndarray) -> tuple[np.ndarray, float]:
    """Weights and bias of logistic regression with a penalty on the weights' squares; both kinds count the same."""
    from scipy import optimize

    share = np.where(y == 1, 0.5 / y.mean(), 0.5 / (1 - y.mean()))

    def loss(w: np.ndarray) -> tuple[float, np.ndarray]:
        logits = x @ w[:-1] + w[-1]
        error = share * (1 / (1 + np.exp(-np.clip(logits, -30, 30))) - y) / len(y)
        value = float((share * (np.logaddexp(0, logits) - y * logits)).mean()) + _DECAY / 2 * float(w[:-1] @ w[:-1])
        return value, np.append(x.T @ error + _DECAY * w[:-1], error.sum())

    w = optimize.minimize(loss, np.zeros(x.shape[1] + 1), jac=True, method="L-BFGS-B", options={"maxiter": 100}).x
    return w[:-1], float(w[-1])


def _buckets(text: str) -> Iterator[np.ndarray]:
    """For each n the buckets of the text's n-grams of bytes, in lower case."""
    data = np.frombuffer(text.lower().encode("utf-8", "surrogatepass")[:_READ], np.uint8).astype(np.uint64)
    grams = data + np.uint64(1)
    for n in range(1, min(_LONGEST, len(data)) + 1):
        if n > 1:
            grams = grams[:-1] * _MULTIPLIERS[0] + data[n - 1 :] + np.uint64(1)
        yield ((grams * _MULTIPLIERS[1]) >> np.uint64(64 - _BITS)).astype(np.int64)


def _features(texts: list[str]) -> tuple[Any, np.ndarray, np.ndarray]:
    """A sparse matrix [texts, 1 + n] of the shares of each text's n-grams in the n buckets of two texts or more, after that of
    all others, which are rare; these n buckets; and what each column was multiplied by, so that all are of like size."""
    from scipy import sparse

    columns, values, ends = [], [], [0]
    for text in texts:
        grams = list(_buckets(text))
        found, where = np.unique(np.concatenate(grams), return_inverse=True)
        columns.append(found)
        values.append(np.bincount(where, np.concatenate([np.full(len(b), 1 / len(b)) for b in grams])))
        ends.append(ends[-1] + len(found))
    count = np.bincount(np.concatenate(columns), minlength=1 << _BITS)
    used = np.flatnonzero(count > 1)
    column = np.zeros(1 << _BITS, np.int64)
    column[used] = np.arange(1, len(used) + 1)
    x = sparse.csr_matrix((np.concatenate(values), column[np.concatenate(columns)], ends), (len(texts), len(used) + 1))
    x.sum_duplicates()
    scale = np.maximum(np.asarray(x.multiply(x).mean(axis=0)).ravel(), 1e-12) ** -0.25
    return x @ sparse.diags(scale), used, scale
