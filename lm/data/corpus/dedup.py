"""Signatures by which exact and near duplicates (MinHash) are found; `lm.data.corpus.groups` compares them."""

import functools
import hashlib
import itertools
import re
import unicodedata
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from lm import config
from lm.data.word_boundaries import SENTENCE_ENDS, UNSPACED

_SHINGLE = 5  # words
_BLOCK = 1024  # shingles per MinHash update: their hashes under all permutations fit the processor's cache
_CHUNK = 1 << 16  # words in memory at a time: a text of hundreds of megabytes has tens of millions
_SHORT = 1 << 18  # characters of a text whose words are in memory all at once
_SEED = 1  # of the permutations; changing it needs a new FORMAT of prepared data (`lm.data.corpus.prepare`)

# Vowel signs of Hindi, Thai and Hebrew are combining marks, which `\w` does not match; Persian and Hindi also use ZWNJ, ZWJ.
_MARKS = "".join(c for c in map(chr, range(0x300, 0x1F000)) if unicodedata.category(c)[0] == "M")
_MARKS += "\u200c\u200d\U000e0100-\U000e01ef"
# Punctuation is ignored after a word at the end of a sentence; elsewhere it distinguishes 1.5 from 15 and n! = 5 from n = 5.
# If the next word begins in lower case, the sentence continues, and only a comma between two words is ignored.
_COMMAS = ",\u060c\u3001\uff0c"
_STOPS = SENTENCE_ENDS.replace("\n", "") + _COMMAS + ":;\u061b\uff1a\uff1b"
_LOWER = "".join(c for c in map(chr, range(0x1F000)) if c.islower())
_MARK = rf"(?![\x00-\u02ff])[{_MARKS}]"  # what is no mark is told apart at once
_LETTER_BEFORE = rf"(?:(?<=[^\W\d_])|(?<=[^\x00-\u02ff])(?<=[{_MARKS}]))"
_END_BEHIND = rf"(?=\s*(?:\n|\Z)|\s+(?![{_LOWER}])[^\W\d_])"
_IGNORED = (
    rf"{_LETTER_BEFORE}(?:[{_STOPS}]{{1,3}}{_END_BEHIND}|[{_COMMAS}](?=\s+[^\W\d_]))|(?<=\d)[.,\u3002\uff0c]{_END_BEHIND}"
)
_WORD = re.compile(rf"((?:\w+|{_MARK})+)|{_IGNORED}|(\S)")
# The same words as one group, for texts without the scripts of the next lines.
_SPACED = re.compile(rf"\s*(?:((?:\w+|{_MARK})+|(?!{_IGNORED})\S)|{_IGNORED})")
# In scripts without spaces between words, each letter counts as a word.
_SPACELESS = "".join(f"{chr(first)}-{chr(last)}" for first, last in UNSPACED)
_HAS_SPACELESS = re.compile(f"[{_SPACELESS}]")
_LETTER = re.compile(f"[{_SPACELESS}][{_MARKS}]*|[^{_SPACELESS}]+")


@dataclass(frozen=True)
class Signature:
    """What documents are compared by."""

    exact: bytes  # SHA-256 of its words in lower case
    near: np.ndarray | None  # uint32 [permutations], the MinHash of its word 5-grams; None if settings.near is None


def words(text: str) -> Iterator[str]:
    """Splits a text into lower-case words, with each symbol as its own word. Texts with equal words are exact duplicates.

    Letter case, white space, commas between two words, and punctuation after a word at the end of a line or sentence make no
    difference. A sentence ends where the next one begins with a letter that is not in lower case, so a text all in lower case
    and its copy in capitals may differ in punctuation.
    "if (x >= 1.5) Stop!" -> if ( x > = 1 . 5 ) stop
    """
    if len(text) <= _SHORT and not _HAS_SPACELESS.search(text):
        found = " ".join(
            filter(None, _SPACED.findall(text.rstrip()))
        ).lower()  # several times faster; spaces at an end are tried anew at each
        yield from found.split(" ") if found else ()
        return
    for match in _WORD.finditer(text):
        if match.lastindex is None:
            continue
        word = match[0].lower()
        if _HAS_SPACELESS.search(word):
            yield from (letter[0] for letter in _LETTER.finditer(word))
        else:
            yield word


def sign(text: str, settings: config.Dedup) -> Signature:
    """Computes the signature of one document, in memory that does not grow with its length."""
    exact = hashlib.sha256()
    minhash = _minhash(settings) if settings.near is not None else None
    remaining, carried = words(text), np.zeros(0, np.uint64)
    chunk = list(itertools.islice(remaining, _CHUNK)) or [text]  # a text without words is compared literally
    first = True
    while chunk:
        exact.update(("" if first else " ").encode() + " ".join(chunk).encode("utf-8", "surrogatepass"))
        if minhash is not None:
            hashes = np.concatenate([carried, _hashes(chunk)])
            shingles, carried = _shingles(hashes), hashes[-(_SHINGLE - 1) :]  # for shingles that span two chunks
            for at in range(0, len(shingles), _BLOCK):
                minhash.update_batch(shingles[at : at + _BLOCK])
        chunk, first = list(itertools.islice(remaining, _CHUNK)), False
    return Signature(exact.digest(), None if minhash is None else minhash.hashvalues)


def _index(threshold: float, permutations: int) -> Any:
    from datasketch import MinHashLSH

    try:
        # Weighted towards recall: candidates are checked, so a false positive costs only time.
        return MinHashLSH(threshold, permutations, weights=(0.02, 0.98))
    except ValueError:  # no parameters for a threshold this near 1: all hashes must agree, so two bands of half of them do
        return MinHashLSH(num_perm=permutations, params=(2, permutations // 2))


def bands(settings: config.Dedup) -> tuple[int, int]:
    """The number of bands of a MinHash and of its values in one. Documents with an equal band are candidates."""
    assert settings.near is not None
    return _bands(settings.near, settings.permutations)


@functools.cache
def _bands(threshold: float, permutations: int) -> tuple[int, int]:
    index = _index(threshold, permutations)
    return index.b, index.r


def _minhash(settings: config.Dedup) -> Any:
    from datasketch import MinHash

    # The shingles are hashes already (`hashfunc=int`); the library's permutations mix them further.
    how: dict[str, Any] = dict(seed=_SEED, hashfunc=int, scheme="affine32")
    known = _permutations(settings.permutations)
    return MinHash(settings.permutations, permutations=known, **how)


@functools.cache
def _permutations(count: int) -> Any:
    """The permutations of so many MinHash values, which the library draws anew for each document."""
    from datasketch import MinHash

    return MinHash(count, seed=_SEED, scheme="affine32").permutations


class _Crcs(dict[str, int]):
    """The CRC-32 of words, which are mostly the same ones."""

    def __missing__(self, word: str) -> int:
        if len(self) > _CHUNK:
            self.clear()
        self[word] = crc = zlib.crc32(word.encode("utf-8", "surrogatepass"))
        return crc


_CRCS = _Crcs()


def _hashes(words: list[str]) -> np.ndarray:
    """uint64 [n], the CRC-32 of each word."""
    return np.fromiter(map(_CRCS.__getitem__, words), np.uint64, len(words))


def _shingles(hashes: np.ndarray) -> np.ndarray:
    """uint32, sorted: the distinct hashes of all runs of 5 words, from the hashes of the words (uint64 [n]). With fewer than 5
    words, all of them are one run."""
    count = max(1, len(hashes) - _SHINGLE + 1)
    out = np.zeros(count, np.uint64)
    for k in range(min(_SHINGLE, len(hashes))):  # multiply and fold, so that the hash depends on the order of the words
        out = (out + hashes[k : k + count]) * np.uint64(0x9E3779B97F4A7C15)
        out ^= out >> np.uint64(29)
    return np.unique(out >> np.uint64(32)).astype(np.uint32)
