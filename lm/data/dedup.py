"""Exact and near duplicates. The earlier document stays, so that the outcome depends on nothing but the order.

`sign` is the costly part and is done for one document at a time, in any process; `duplicates` looks at the signatures.
"""

import hashlib
import re
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from lm import config

_SHINGLE = 5  # words
_BLOCK = 1024  # shingles in one call: their hashes under all permutations stay in the processor's cache
_SEED = 1  # of the permutations; part of what the fingerprint of prepared data covers through its FORMAT
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Signature:
    """What is kept of a document to compare it by."""

    exact: bytes  # SHA-256 of its words in lower case, whatever stands between them
    near: np.ndarray | None  # uint32 [permutations], the MinHash of its word 5-grams; None if not asked for


@dataclass(frozen=True)
class Dropped:
    index: int
    reason: Literal["exact", "near"]
    kept: int  # index of the earlier document that stays


def sign(text: str, settings: config.Dedup) -> Signature:
    """The signature of one document."""
    words = _WORD.findall(text.lower()) or [text]  # a text without a word, a run of symbols, is compared as it is
    exact = hashlib.sha256(" ".join(words).encode("utf-8", "surrogatepass")).digest()
    if settings.near is None:
        return Signature(exact, None)
    minhash = _minhash(settings)
    hashes = _shingles(words)
    for at in range(0, len(hashes), _BLOCK):
        minhash.update_batch(hashes[at : at + _BLOCK])
    return Signature(exact, minhash.hashvalues)


def _minhash(settings: config.Dedup, hashvalues: np.ndarray | None = None) -> Any:
    from datasketch import MinHash

    # The shingles come hashed; the library's permutations mix them further.
    return MinHash(settings.permutations, seed=_SEED, hashfunc=int, hashvalues=hashvalues, scheme="affine32")


def _shingles(words: list[str]) -> np.ndarray:
    """uint32, the distinct hashes of all runs of 5 words; a shorter text is one run."""
    word = np.fromiter((zlib.crc32(w.encode("utf-8", "surrogatepass")) for w in words), np.uint64, len(words))
    count = max(1, len(word) - _SHINGLE + 1)
    out = np.zeros(count, np.uint64)
    for k in range(min(_SHINGLE, len(word))):  # multiply and fold, so that the order of the words counts
        out = (out + word[k : k + count]) * np.uint64(0x9E3779B97F4A7C15)
        out ^= out >> np.uint64(29)
    return np.unique(out >> np.uint64(32)).astype(np.uint32)


def duplicates(signatures: Iterable[Signature], settings: config.Dedup) -> list[Dropped]:
    """The documents to drop, in order. `near` compares with what has been kept: copies of a copy fall too.

    Which pairs are looked at is the LSH's choice, tuned to miss little; the MinHash estimate of the Jaccard similarity
    (standard error about 0.5 / sqrt(permutations)) then decides. A document whose words equal an earlier one's is
    `exact`, and one above the threshold `near`, of the earliest such document.
    """
    from datasketch import MinHashLSH

    first: dict[bytes, int] = {}
    kept: dict[int, np.ndarray] = {}
    dropped: list[Dropped] = []
    # Candidates are checked, so that a false one costs only time: the weights favour finding all.
    threshold = settings.near
    lsh: Any = MinHashLSH(threshold, settings.permutations, weights=(0.02, 0.98)) if threshold is not None else None
    for index, signature in enumerate(signatures):
        earlier = first.get(signature.exact)
        if settings.exact and earlier is not None:
            dropped.append(Dropped(index, "exact", earlier))
            continue
        if threshold is not None and signature.near is not None:
            minhash = _minhash(settings, signature.near)
            alike = [i for i in lsh.query(minhash) if np.mean(kept[i] == signature.near) >= threshold]
            if alike:
                dropped.append(Dropped(index, "near", min(alike)))
                first.setdefault(signature.exact, min(alike))
                continue
            lsh.insert(index, minhash)
            kept[index] = signature.near
        first.setdefault(signature.exact, index)
    return dropped
