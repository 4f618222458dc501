"""Bits per byte of the held-out text under baselines without a neural network: xz and n-gram models.

A model that is not clearly below these has learned little. All are measured on the same held-out documents as a model, and with
the same accounting: every token of a document after its bos is predicted, eos included, and the sum is divided by the UTF-8
bytes of the documents.
"""

import json
import lzma
import math
import subprocess
import sys
import time
import warnings
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lm import atomic
from lm.errors import UserError
from lm.evaluation import xz

XZ_TRAIN_BYTES = 1 << 24  # of training text that xz sees before the held-out text, the last ones: xz takes 1 to 2 s per MB
TRAIN_TOKENS = 1 << 26  # per source that an n-gram model counts, the first ones
FIGURES = {"xz", "xz_after_train", "bigram", "trigram", "bytes", "seconds"}  # the keys of `baselines`
_SEPARATOR = b"\0"  # ends each document for xz, as eos does for the n-gram models


def baselines(
    train_texts: Iterable[str],
    heldout_texts: Iterable[str],
    *,
    train_tokens: Sequence[np.ndarray],
    heldout_tokens: Sequence[np.ndarray],
    vocab_size: int,
) -> dict[str, float]:
    """Bits per byte of the held-out documents under each baseline.

    train_tokens, heldout_tokens: documents, int [n] each, all beginning with the same bos.

    Returns {xz: `xz -9` of the held-out text alone, xz_after_train: what it adds to the compressed training text, bigram,
    trigram: interpolated modified Kneser-Ney, bytes: UTF-8 bytes of the held-out text, seconds: the time all this took}.
    Raises ValueError if there is no held-out text.
    """
    start = time.monotonic()
    heldout = [text.encode() for text in heldout_texts]
    size = sum(map(len, heldout))
    if not size:
        raise ValueError("no held-out bytes to measure on")
    after = _joined(heldout)
    before = _joined(_last(map(str.encode, train_texts), XZ_TRAIN_BYTES))[-XZ_TRAIN_BYTES:]
    with ThreadPoolExecutor(1) as pool:
        added = pool.submit(_xz_added, before, after)
        grams = {
            name: NGram.fit(train_tokens, order=order, vocab_size=vocab_size).nats(heldout_tokens) / np.log(2)
            for name, order in (("bigram", 2), ("trigram", 3))
        }
        bits = {"xz": 8 * _xz(after), "xz_after_train": 8 * added.result()} | grams
    out = {name: float(b / size) for name, b in bits.items()}
    return out | {"bytes": size, "seconds": round(time.monotonic() - start, 1)}


def _last(documents: Iterable[bytes], size: int) -> deque[bytes]:
    """The fewest last documents that hold `size` bytes. Keeps no more than these in memory."""
    kept: deque[bytes] = deque()
    total = 0
    for document in documents:
        kept.append(document)
        total += len(document)
        while total - len(kept[0]) >= size:
            total -= len(kept.popleft())
    return kept


def of_prepared(prepared: Any) -> dict[str, float]:
    """`baselines` over all sources of a `Prepared` (`lm.data.corpus.prepare`), cached beside it as baselines.json. If that
    cannot be written, warns and returns them all the same. Raises UserError if no documents are held out."""
    cached = prepared.beside / "baselines.json"
    if (earlier := _read_cached(cached)) is not None:
        return earlier
    if not prepared.holdout:
        raise UserError("baselines need held-out documents; set data.holdout above 0, or evaluate.baselines=False")
    train = (d.text for name in prepared.train for d in prepared.documents(name, "train"))
    held = (d.text for name in prepared.holdout for d in prepared.documents(name, "holdout"))
    found = baselines(
        train,
        held,
        train_tokens=_documents(prepared.train, TRAIN_TOKENS),
        heldout_tokens=_documents(prepared.holdout, None),
        vocab_size=prepared.tokenizer.vocab_size,
    )
    try:
        if cached.exists() and not cached.is_file():
            atomic.put_aside(cached, cached.parent, name=f"{cached.name}.bad")
        atomic.write_json(cached, found)
    except OSError as error:
        warnings.warn(f"the baselines are not kept, as {cached} cannot be written ({error.strerror})", stacklevel=2)
    return found


def _read_cached(path: Path) -> dict[str, float] | None:
    """The cached baselines; None if there are none, or, with a warning, if the file is damaged."""
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_bytes())
        if found.keys() == FIGURES and all(type(v) in (int, float) and math.isfinite(v) for v in found.values()):
            return found
    except (OSError, ValueError, AttributeError, RecursionError):
        pass
    warnings.warn(f"{path} is damaged; the baselines are computed again", stacklevel=3)
    return None


def _documents(stores: Mapping[str, Any], limit: int | None) -> list[np.ndarray]:
    """The documents of all stores, int [n] each: from each store the first ones that fit `limit` tokens, at least one."""
    out: list[np.ndarray] = []
    for store in stores.values():
        last = store.num_documents if limit is None else max(1, int(np.searchsorted(store.offsets, limit, "right")) - 1)
        out += [store.document(i) for i in range(last)]
    return out


def _joined(texts: Iterable[bytes]) -> bytes:
    return b"".join(text + _SEPARATOR for text in texts)


def _xz(data: bytes) -> int:
    """The size under `xz -9` without the container format, in bytes."""
    return len(lzma.compress(data, format=lzma.FORMAT_RAW, filters=xz.FILTERS))


def _xz_added(before: bytes, after: bytes) -> int:
    """By how many bytes `before + after` compresses larger than `before`, in a process of its own."""
    command = [sys.executable, "-I", xz.__file__, str(len(before))]
    done = subprocess.run(command, input=before + after, stdout=subprocess.PIPE, check=True)
    first, both = map(int, done.stdout.split())
    return both - first


# -------------------------------------------------------------------------------------------------------------- n-grams


@dataclass(frozen=True)
class _Level:
    """The n-grams of one order: their discounted probabilities, and the mass left to the next lower order.

    An n-gram or context is coded as an int64 with one digit of base `vocab_size` per token; codes are sorted.
    """

    grams: np.ndarray  # int64 [n]
    probability: np.ndarray  # float64 [n], max(count - discount, 0) / (sum of counts in the context)
    contexts: np.ndarray  # int64 [m]
    left: np.ndarray  # float64 [m], the probability mass left to the next lower order
    discounts: tuple[float, float, float]

    @classmethod
    def of(cls, grams: np.ndarray, counts: np.ndarray, vocab_size: int) -> "_Level":
        d = _discounts(counts)
        taken = np.array([0.0, *d])[np.minimum(counts, 3)]
        contexts, inverse = np.unique(grams // vocab_size, return_inverse=True)
        total = np.bincount(inverse, counts)
        left = np.bincount(inverse, taken) / total
        return cls(grams, (counts - taken) / total[inverse], contexts, left, d)

    def mix(self, grams: np.ndarray, context: np.ndarray, below: np.ndarray) -> np.ndarray:
        """float64 [n]: probabilities of `grams`, given those of the lower order; an unseen context leaves all mass to it."""
        own = np.where((at := _find(self.grams, grams)) >= 0, self.probability[at], 0.0)
        left = np.where((at := _find(self.contexts, context)) >= 0, self.left[at], 1.0)
        return own + left * below


def _find(sorted_codes: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """int64 [n]: the index of each code in `sorted_codes`, or -1."""
    at = np.minimum(np.searchsorted(sorted_codes, codes), len(sorted_codes) - 1)
    return np.where(sorted_codes[at] == codes, at, -1)


def _discounts(counts: np.ndarray) -> tuple[float, float, float]:
    """Discounts of n-grams seen once, twice, and more often: Chen and Goodman (1998), equation 26."""
    n1, n2, n3, n4 = (max(1, int(np.sum(counts == k))) for k in (1, 2, 3, 4))
    y = n1 / (n1 + 2 * n2)
    raw = 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3
    # Few counts, or none of a kind, make the estimate meaningless: clip it inside (0, k).
    d1, d2, d3 = (float(np.clip(d, 0.1 * k, 0.95 * k)) for k, d in enumerate(raw, 1))
    return d1, d2, d3


@dataclass(frozen=True)
class NGram:
    """Interpolated modified Kneser-Ney over token ids (Chen and Goodman, "An empirical study of smoothing techniques
    for language modeling", TR-10-98, section 3).

    The discounts are a closed form of the training counts; nothing is fitted on held-out data. Below the highest order, an
    n-gram counts once per distinct token seen before it; the lowest order is mixed with 1 / vocab_size.
    """

    order: int
    vocab_size: int
    levels: tuple[_Level, ...]  # of orders 1, 2, ..

    @classmethod
    def fit(cls, documents: Sequence[np.ndarray], *, order: int, vocab_size: int) -> "NGram":
        """Counts the n-grams of `documents`, int [n] each, beginning with bos. Raises ValueError if codes exceed 63 bits."""
        if vocab_size**order >= 1 << 63:
            raise ValueError(f"a vocabulary of {vocab_size} is too large for an n-gram of order {order}")
        grams, counts = np.unique(_codes(documents, order, vocab_size), return_counts=True)
        levels = [_Level.of(grams, counts, vocab_size)]
        for n in range(order - 1, 0, -1):
            grams, counts = np.unique(grams % vocab_size**n, return_counts=True)
            levels.append(_Level.of(grams, counts, vocab_size))
        return cls(order, vocab_size, tuple(reversed(levels)))

    def probability(self, codes: np.ndarray) -> np.ndarray:
        """float64 [n]: the probability of the last token of each n-gram given the others. `codes`: int64 [n], from `_codes`."""
        p = np.full(len(codes), 1.0 / self.vocab_size)
        for n, level in enumerate(self.levels, 1):
            grams = codes % self.vocab_size**n
            p = level.mix(grams, grams // self.vocab_size, p)
        return p

    def nats(self, documents: Sequence[np.ndarray]) -> float:
        """The negative log-likelihood of all tokens after bos, in nats."""
        return float(-np.log(self.probability(_codes(documents, self.order, self.vocab_size))).sum())


def _codes(documents: Sequence[np.ndarray], order: int, vocab_size: int) -> np.ndarray:
    """int64 [tokens after bos]: the code of each token with the `order - 1` before it; documents are padded with bos on the
    left."""
    out = []
    for document in documents:
        if len(document) < 2:
            continue
        padded = np.concatenate([np.repeat(document[:1], order - 1), document[1:]]).astype(np.int64)
        count = len(document) - 1
        code = np.zeros(count, np.int64)
        for k in range(order):
            code = code * vocab_size + padded[k : k + count]
        out.append(code)
    return np.concatenate(out) if out else np.zeros(0, np.int64)
