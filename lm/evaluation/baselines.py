"""What no neural network is needed for: bits per byte of the held-out text under xz and under n-gram models.

A model that is not clearly below these has learned little. All are measured on the same held-out documents as a neural
model, and with the same accounting: every token of a document after its bos is predicted, eos included, and the total
is divided by the UTF-8 bytes of the documents alone.
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

XZ_TRAIN_BYTES = 1 << 24  # of training text before the held-out text at most, the last ones: xz takes 1 to 2 s a MB
TRAIN_TOKENS = 1 << 26  # an n-gram model counts at most so many, the first ones
FIGURES = {"xz", "xz_after_train", "bigram", "trigram", "bytes", "seconds"}  # of `baselines`
_SEPARATOR = b"\0"  # ends a document for xz, as eos does for the others


def baselines(
    train_texts: Iterable[str],
    heldout_texts: Iterable[str],
    *,
    train_tokens: Sequence[np.ndarray],
    heldout_tokens: Sequence[np.ndarray],
    vocab_size: int,
) -> dict[str, float]:
    """Bits per byte of the held-out documents under each baseline, and the seconds that all took.

    Tokens are documents, int [n] each, that begin with the same bos. Keys: `xz` (-9, of the held-out text alone),
    `xz_after_train` (of what it adds to the compressed training text), `bigram`, `trigram` (interpolated modified
    Kneser-Ney), `bytes` (the held-out UTF-8 bytes), `seconds`.
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
    """The last documents, as few as hold `size` bytes; no more are ever in memory."""
    kept: deque[bytes] = deque()
    total = 0
    for document in documents:
        kept.append(document)
        total += len(document)
        while total - len(kept[0]) >= size:
            total -= len(kept.popleft())
    return kept


def of_prepared(prepared: Any) -> dict[str, float]:
    """`baselines` over all sources of a `Prepared` (`lm.data.corpus.prepare`), computed once: they are written beside the data.
    Where writing fails there is a warning, and the figures are returned all the same."""
    kept = prepared.path / "baselines.json"
    if (earlier := _earlier(kept)) is not None:
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
        if kept.exists() and not kept.is_file():
            atomic.put_aside(kept, kept.parent, name=f"{kept.name}.bad")
        atomic.write_json(kept, found)
    except OSError as error:
        warnings.warn(f"the baselines are not kept, as {kept} cannot be written ({error.strerror})", stacklevel=2)
    return found


def _earlier(path: Path) -> dict[str, float] | None:
    """Baselines computed before; None, with a warning if they are damaged, where they are to be computed."""
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
    """The documents of all stores, up to `limit` tokens of each."""
    out: list[np.ndarray] = []
    for store in stores.values():
        last = store.num_documents if limit is None else max(1, int(np.searchsorted(store.offsets, limit, "right")) - 1)
        out += [store.document(i) for i in range(last)]
    return out


def _joined(texts: Iterable[bytes]) -> bytes:
    return b"".join(text + _SEPARATOR for text in texts)


def _xz(data: bytes) -> int:
    """Bytes under `xz -9`, without container."""
    return len(lzma.compress(data, format=lzma.FORMAT_RAW, filters=xz.FILTERS))


def _xz_added(before: bytes, after: bytes) -> int:
    """Bytes that `after` adds behind `before`: the difference of the two sizes, exactly."""
    command = [sys.executable, "-I", xz.__file__, str(len(before))]
    done = subprocess.run(command, input=before + after, stdout=subprocess.PIPE, check=True)
    first, both = map(int, done.stdout.split())
    return both - first


# -------------------------------------------------------------------------------------------------------------- n-grams


@dataclass(frozen=True)
class _Level:
    """The n-grams of one order: their discounted probability, and what is left for the order below.

    Sorted int64 codes, a digit of base `vocab_size` for each token, stand for n-grams and for their contexts.
    """

    grams: np.ndarray  # int64 [n]
    probability: np.ndarray  # float64 [n], max(count - discount, 0) / (sum of counts in the context)
    contexts: np.ndarray  # int64 [m]
    left: np.ndarray  # float64 [m], the share that goes to the order below
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
        """Probabilities, given those of the order below; an unseen context leaves everything to it."""
        own = np.where((at := _find(self.grams, grams)) >= 0, self.probability[at], 0.0)
        left = np.where((at := _find(self.contexts, context)) >= 0, self.left[at], 1.0)
        return own + left * below


def _find(sorted_codes: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """int64 [n]: where each code stands, or -1."""
    at = np.minimum(np.searchsorted(sorted_codes, codes), len(sorted_codes) - 1)
    return np.where(sorted_codes[at] == codes, at, -1)


def _discounts(counts: np.ndarray) -> tuple[float, float, float]:
    """For n-grams seen once, twice, and more: Chen and Goodman (1998), equation 26, from the training counts alone."""
    n1, n2, n3, n4 = (max(1, int(np.sum(counts == k))) for k in (1, 2, 3, 4))
    y = n1 / (n1 + 2 * n2)
    raw = 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3
    # Tiny or odd counts (no singletons) make the estimate senseless: keep it inside (0, k).
    d1, d2, d3 = (float(np.clip(d, 0.1 * k, 0.95 * k)) for k, d in enumerate(raw, 1))
    return d1, d2, d3


@dataclass(frozen=True)
class NGram:
    """Interpolated modified Kneser-Ney over token ids (Chen and Goodman, "An empirical study of smoothing techniques
    for language modeling", TR-10-98, section 3).

    The discounts come from the training counts in closed form: nothing is fitted on held-out data. Below the highest
    order, an n-gram counts once for each different token seen before it; the lowest is mixed with 1 / vocab_size.
    """

    order: int
    vocab_size: int
    levels: tuple[_Level, ...]  # of orders 1, 2, ..

    @classmethod
    def fit(cls, documents: Sequence[np.ndarray], *, order: int, vocab_size: int) -> "NGram":
        """Counts int [n] documents, each of which begins with bos. Raises ValueError if codes pass 63 bits."""
        if vocab_size**order >= 1 << 63:
            raise ValueError(f"a vocabulary of {vocab_size} is too large for an n-gram of order {order}")
        grams, counts = np.unique(_codes(documents, order, vocab_size), return_counts=True)
        levels = [_Level.of(grams, counts, vocab_size)]
        for n in range(order - 1, 0, -1):
            grams, counts = np.unique(grams % vocab_size**n, return_counts=True)
            levels.append(_Level.of(grams, counts, vocab_size))
        return cls(order, vocab_size, tuple(reversed(levels)))

    def probability(self, codes: np.ndarray) -> np.ndarray:
        """float64 [n] of the last token of each n-gram, given those before. `codes`: int64 [n], of `_codes`."""
        p = np.full(len(codes), 1.0 / self.vocab_size)
        for n, level in enumerate(self.levels, 1):
            grams = codes % self.vocab_size**n
            p = level.mix(grams, grams // self.vocab_size, p)
        return p

    def nats(self, documents: Sequence[np.ndarray]) -> float:
        """The total over every token after bos."""
        return float(-np.log(self.probability(_codes(documents, self.order, self.vocab_size))).sum())


def _codes(documents: Sequence[np.ndarray], order: int, vocab_size: int) -> np.ndarray:
    """int64 [tokens after bos]: each token with the `order - 1` before it; before the beginning there is only bos."""
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
