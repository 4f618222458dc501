"""Exact and near duplicates. The earlier document stays, so that the outcome depends on nothing but the order.

`sign` is the costly part and is done for one document at a time, in any process; `duplicates` looks at the signatures.
"""

import hashlib
import itertools
import re
import unicodedata
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from lm import config
from lm.data.word_boundaries import SENTENCE_ENDS, UNSPACED

_SHINGLE = 5  # words
_BLOCK = 1024  # shingles in one call: their hashes under all permutations stay in the processor's cache
_HELD = 1 << 16  # words in memory at a time: a text of hundreds of megabytes has tens of millions
_SEED = 1  # of the permutations; part of what the fingerprint of prepared data covers through its FORMAT

# Vowel signs of Hindi, Thai or Hebrew are combining marks, and `\w` has none; Persian and Hindi join letters with ZWNJ, ZWJ.
_MARKS = "".join(c for c in map(chr, range(0x300, 0x1F000)) if unicodedata.category(c)[0] == "M")
_MARKS += "\u200c\u200d\U000e0100-\U000e01ef"
# Sentence punctuation does not count behind a word at the end of a sentence; elsewhere it tells 1.5 from 15, n! = 5 from n = 5.
# Where the next word goes on in lower case the sentence does too, and only a comma between two words does not count.
_COMMAS = ",\u060c\u3001\uff0c"
_STOPS = SENTENCE_ENDS.replace("\n", "") + _COMMAS + ":;\u061b\uff1a\uff1b"
_LOWER = "".join(c for c in map(chr, range(0x1F000)) if c.islower())
_LETTER_BEFORE = rf"(?:(?<=[^\W\d_])|(?<=[{_MARKS}]))"
_END_BEHIND = rf"(?=\s*(?:\n|\Z)|\s+(?![{_LOWER}])[^\W\d_])"
_WORD = re.compile(
    rf"([\w{_MARKS}]+)"
    rf"|{_LETTER_BEFORE}(?:[{_STOPS}]{{1,3}}{_END_BEHIND}|[{_COMMAS}](?=\s+[^\W\d_]))"
    rf"|(?<=\d)[.,\u3002\uff0c]{_END_BEHIND}"
    r"|(\S)"
)
# Of scripts that put no space between words each letter is a word.
_SPACELESS = "".join(f"{chr(first)}-{chr(last)}" for first, last in UNSPACED)
_HAS_SPACELESS = re.compile(f"[{_SPACELESS}]")
_LETTER = re.compile(f"[{_SPACELESS}][{_MARKS}]*|[^{_SPACELESS}]+")


@dataclass(frozen=True)
class Signature:
    """What is kept of a document to compare it by."""

    exact: bytes  # SHA-256 of its words in lower case
    near: np.ndarray | None  # uint32 [permutations], the MinHash of its word 5-grams; None if not asked for


@dataclass(frozen=True)
class Dropped:
    index: int
    reason: Literal["exact", "near"]
    kept: int  # index of the earlier document that stays


def words(text: str) -> Iterator[str]:
    """The words of a text in lower case, and every symbol as a word of its own, as two texts are compared by.

    What two texts may differ in and be the same: letter case, white space, commas between two words, and punctuation behind a
    word at the end of a line or sentence (what follows begins with a letter that is not in lower case, so that a text all in
    lower case and its copy in capitals may differ in that).
    "if (x >= 1.5) Stop!" -> if ( x > = 1 . 5 ) stop
    """
    for match in _WORD.finditer(text):
        if match.lastindex is None:
            continue
        word = match[0].lower()
        if _HAS_SPACELESS.search(word):
            yield from (letter[0] for letter in _LETTER.finditer(word))
        else:
            yield word


def sign(text: str, settings: config.Dedup) -> Signature:
    """The signature of one document."""
    exact = hashlib.sha256()
    minhash = _minhash(settings) if settings.near is not None else None
    every, before = words(text), np.zeros(0, np.uint64)
    some = list(itertools.islice(every, _HELD)) or [text]  # a text of spaces is compared as it is
    first = True
    while some:
        exact.update(("" if first else " ").encode() + " ".join(some).encode("utf-8", "surrogatepass"))
        if minhash is not None:
            hashes = np.concatenate([before, _hashes(some)])
            shingles, before = _shingles(hashes), hashes[-(_SHINGLE - 1) :]
            for at in range(0, len(shingles), _BLOCK):
                minhash.update_batch(shingles[at : at + _BLOCK])
        some, first = list(itertools.islice(every, _HELD)), False
    return Signature(exact.digest(), None if minhash is None else minhash.hashvalues)


def _index(threshold: float, permutations: int) -> Any:
    from datasketch import MinHashLSH

    try:
        return MinHashLSH(threshold, permutations, weights=(0.02, 0.98))
    except ValueError:  # so near to 1 that no hash may differ: then either half of them finds all
        return MinHashLSH(num_perm=permutations, params=(2, permutations // 2))


def _minhash(settings: config.Dedup, hashvalues: np.ndarray | None = None) -> Any:
    from datasketch import MinHash

    # The shingles come hashed; the library's permutations mix them further.
    return MinHash(settings.permutations, seed=_SEED, hashfunc=int, hashvalues=hashvalues, scheme="affine32")


def _hashes(words: list[str]) -> np.ndarray:
    """uint64 [n], a hash of each word."""
    return np.fromiter((zlib.crc32(w.encode("utf-8", "surrogatepass")) for w in words), np.uint64, len(words))


def _shingles(word: np.ndarray) -> np.ndarray:
    """uint32, the distinct hashes of all runs of 5 words, given those of the words; a shorter text is one run."""
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
    first: dict[bytes, int] = {}
    kept: dict[int, np.ndarray] = {}
    dropped: list[Dropped] = []
    # Candidates are checked, so that a false one costs only time: the weights favour finding all.
    threshold = settings.near
    lsh: Any = _index(threshold, settings.permutations) if threshold is not None else None
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
