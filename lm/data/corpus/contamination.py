"""Cuts the texts of evaluation sets out of documents (GPT-3, arXiv 2005.14165, appendix C; see `lm.config.Contamination`)."""

import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lm import config
from lm.data import records

_PUNCTUATION = re.compile(r"[^\w\s]|_")
_WORD = re.compile(r"\S+")
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # of the hashes of runs of words


@dataclass(frozen=True)
class Index:
    """What is searched for: runs of words by their hashes, for each length."""

    settings: config.Contamination
    runs: Mapping[int, np.ndarray]  # words -> sorted hashes, uint64
    sets: Mapping[int, np.ndarray]  # words -> the number of each hash's set, in `names`
    names: Sequence[str]
    facts: Mapping[str, Any] = field(default_factory=dict)

    def cut(self, text: str) -> tuple[str, str, bool]:
        """Returns the pieces of the text around what was found, with an empty line between them; the name of the first set that
        it was found in, or ""; and whether anything is left."""
        found, name = self._found(_hashes(_words(text)))
        if not name:
            return text, "", True
        pieces = [piece for piece in _pieces(text, found, self.settings.around) if piece]
        kept = [piece for piece in pieces if len(piece) >= self.settings.min_chars]
        if not kept or len(pieces) > self.settings.max_pieces:
            return text, name, False
        return "\n\n".join(kept), name, True

    def _found(self, words: np.ndarray) -> tuple[list[tuple[int, int]], str]:
        """Runs [first word, after the last) that are in a set, and the name of the set of the first one found."""
        found, name = [], ""
        for length, grams in _grams(words, max(self.runs, default=0)):
            if length not in self.runs:
                continue
            known = self.runs[length]
            at = np.minimum(np.searchsorted(known, grams), len(known) - 1)
            hits = np.flatnonzero(known[at] == grams)
            found += [(int(i), int(i) + length) for i in hits]
            if len(hits):
                name = name or self.names[int(self.sets[length][at[hits[0]]])]
        return found, name


def index(sets: Mapping[str, Sequence[records.Record]], settings: config.Contamination) -> Index:
    """The index of all texts of these records. Labels are no texts; the parts of a record are searched for one by one."""
    found: dict[int, dict[int, int]] = {}
    facts: dict[str, Any] = {}
    for number, (name, every) in enumerate(sets.items()):
        facts[name] = {"texts": 0, "too short": 0}
        for text in (text for record in every for text in _texts(record) if text.strip()):
            words = _hashes(_words(text))
            length = min(settings.words, len(words))
            short = length < min(settings.shortest, settings.words)
            facts[name]["too short" if short else "texts"] += 1
            if not short:
                grams = next(g for n, g in _grams(words, length) if n == length)
                for gram in grams.tolist():
                    found.setdefault(length, {}).setdefault(gram, number)
    runs = {n: np.array(sorted(grams), np.uint64) for n, grams in sorted(found.items())}
    owners = {n: np.array([found[n][gram] for gram in runs[n].tolist()], np.int32) for n in runs}
    return Index(settings, runs, owners, tuple(sets), {"sets": facts, "runs of words": sum(map(len, runs.values()))})


def _texts(record: records.Record) -> list[str]:
    match record:
        case records.Text(text=text) | records.Labelled(text=text) | records.Speech(text=text) | records.Captioned(text=text):
            return [text]
        case records.Pair(question, answer, context):
            return [context, question, answer]
    answers = [getattr(record, name) for name in ("chosen", "rejected", "completion") if hasattr(record, name)]
    return [*(turn.content for turn in record.messages), *answers]


def _words(text: str) -> list[str]:
    """Lower-case words without punctuation."""
    return _PUNCTUATION.sub("", text.lower()).split()


def _hashes(words: list[str]) -> np.ndarray:
    """uint64 [words], the same in every process."""
    return np.fromiter((zlib.crc32(word.encode("utf-8", "surrogatepass")) for word in words), np.uint64, len(words))


def _grams(words: np.ndarray, longest: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yields n and the hashes of all runs of n words, uint64 [words - n + 1], for n from 1 on."""
    grams = words
    for n in range(1, min(longest, len(words)) + 1):
        if n > 1:
            grams = grams[:-1] * _MULTIPLIER + words[n - 1 :]
        yield n, grams


def _pieces(text: str, runs: list[tuple[int, int]], around: int) -> Iterator[str]:
    """The pieces of the text outside of these runs of words and of `around` characters beside each; words stay whole."""
    spans = [m.span() for m in _WORD.finditer(text) if _PUNCTUATION.sub("", m[0].lower())]
    starts, ends = np.array(spans).T
    at = 0
    for first, last in sorted(runs):
        begin = int(starts[max(np.searchsorted(starts, starts[first] - around, side="right") - 1, 0)])
        if begin > at:
            yield text[at:begin].strip()
        at = max(at, int(ends[min(np.searchsorted(ends, ends[last - 1] + around), len(ends) - 1)]))
    yield text[at:].strip()
