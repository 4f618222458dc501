"""Rules of C4, Gopher and FineWeb that tell text from noise (`lm.config.quality` has their papers and thresholds).

A rule is named by the setting with its threshold: each function returns the name of the first one that a text breaks, or None.
Words are what white space separates. The papers do not say how they count words; tokens that set punctuation apart are about a
seventh more.
"""

import re
from collections import Counter
from collections.abc import Iterator

import numpy as np

from lm import config

_STOP_WORDS = frozenset({"the", "be", "to", "of", "and", "that", "have", "with"})
_LETTER = re.compile(r"[^\W\d_]")
_BULLETS = ("•", "-")
_ELLIPSES = ("...", "…")
_NEWLINES, _PARAGRAPHS = re.compile(r"\n+"), re.compile(r"\n{2,}")
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # of the hashes of word n-grams

# C4
_CITATION = re.compile(r"\[\d*\]|\[edit\]|\[citation needed\]")
_END_MARKS = (".", "?", "!", '"')
_POLICIES = re.compile("terms of use|privacy policy|cookie policy|uses cookies|use of cookies|use cookies")
_SENTENCE_END = re.compile(r"""[.?!]+["'”’)\]]*(?=\s|$)""")

# FineWeb: what ends a sentence in Latin, Greek, Arabic, Indic, Ethiopic, Armenian and East Asian scripts
_TERMINALS = tuple(".?!‼‽⁇⁈⁉…。．！？｡؟۔։።፧।॥။៕᠃")


def gopher(text: str, rules: config.Gopher) -> str | None:
    """Returns the broken rule of Gopher (arXiv 2112.11446, appendix A1.1), or None."""
    words = text.split()
    return _gopher_quality(text, words, rules) or _gopher_repetition(text.strip(), words, rules)


def _gopher_quality(text: str, words: list[str], rules: config.Gopher) -> str | None:
    count, lines = max(len(words), 1), [line.strip() for line in text.splitlines()] or [""]
    mean = sum(map(len, words)) / count
    if len(words) < rules.min_words:
        return "min_words"
    if len(words) > rules.max_words:
        return "max_words"
    if mean < rules.min_mean_chars:
        return "min_mean_chars"
    if mean > rules.max_mean_chars:
        return "max_mean_chars"
    if max(text.count("#"), sum(map(text.count, _ELLIPSES))) > rules.symbols * count:
        return "symbols"
    if sum(line.startswith(_BULLETS) for line in lines) > rules.bullets * len(lines):
        return "bullets"
    if sum(line.endswith(_ELLIPSES) for line in lines) > rules.ellipses * len(lines):
        return "ellipses"
    if sum(word.isalpha() or _LETTER.search(word) is not None for word in words) < rules.letters * len(words):
        return "letters"
    if len(_STOP_WORDS.intersection(words)) < rules.stop_words:
        return "stop_words"
    return None


def _gopher_repetition(text: str, words: list[str], rules: config.Gopher) -> str | None:
    paragraphs, lines = _PARAGRAPHS.split(text), _NEWLINES.split(text)
    chars = max(len(text), 1)
    count, size = _repeated(paragraphs)
    if count > rules.paragraphs * len(paragraphs):
        return "paragraphs"
    if size > rules.paragraph_chars * chars:
        return "paragraph_chars"
    count, size = _repeated(lines)
    if count > rules.lines * len(lines):
        return "lines"
    if size > rules.line_chars * chars:
        return "line_chars"
    sizes = np.fromiter(map(len, words), np.int64, len(words))
    tops, repeats = dict(enumerate(rules.top_ngrams, 2)), dict(enumerate(rules.repeated_ngrams, 5))
    for n, grams in _ngrams(words, max([*tops, *repeats], default=0)):
        order = np.argsort(grams, kind="stable")
        equal = np.diff(grams[order]) == 0  # to the one before
        if not equal.any():
            return None  # nor is any longer one repeated
        if n in tops and _top_chars(order, equal, sizes, n) > tops[n] * chars:
            return "top_ngrams"
        if n in repeats and _covered_chars(order[1:][equal], sizes, n) > repeats[n] * chars:
            return "repeated_ngrams"
    return None


def _repeated(parts: list[str]) -> tuple[int, int]:
    """How many parts are equal to an earlier one, and how many characters these have."""
    more = Counter(parts)
    if len(more) == len(parts):
        return 0, 0
    return len(parts) - len(more), sum(len(part) * (n - 1) for part, n in more.items())


def _ngrams(words: list[str], longest: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yields n and a hash of each n-gram of words, uint64 [words - n + 1], for n from 2 on."""
    index: dict[str, int] = {}
    ids = np.fromiter((index.setdefault(word, len(index)) for word in words), np.uint64, len(words))
    grams = ids
    for n in range(2, min(longest, len(words)) + 1):
        grams = grams[:-1] * _MULTIPLIER + ids[n - 1 :]
        yield n, grams


def _top_chars(order: np.ndarray, equal: np.ndarray, sizes: np.ndarray, n: int) -> int:
    """Characters in the most frequent n-gram, with the spaces in it; of several that are as frequent, in the first. `order`
    sorts the n-grams, `equal` says which of them are as the one before."""
    starts = np.flatnonzero(np.concatenate([[True], ~equal]))
    counts = np.diff(np.append(starts, len(order)))
    most = counts.max()
    first = order[starts[counts == most]].min()
    return int(most * (sizes[first : first + n].sum() + n - 1))


def _covered_chars(repeats: np.ndarray, sizes: np.ndarray, n: int) -> int:
    """Characters of the words in n-grams that start at `repeats`, each word once."""
    edges = np.zeros(len(sizes) + 1, np.int64)
    edges[repeats] += 1
    edges[repeats + n] -= 1
    return int(sizes[np.cumsum(edges)[:-1] > 0].sum())


def c4(text: str, rules: config.C4) -> tuple[str, str | None, int]:
    """Returns the lines that C4 (arXiv 1910.10683, section 2.2) keeps, the broken rule or None, and how many lines went."""
    kept, sentences, gone = [], 0, 0
    for line in text.splitlines():
        stripped = line.strip()
        words = stripped.split()
        if not words:
            continue
        stripped = _CITATION.sub("", stripped)
        ends = not rules.end_marks or (stripped.endswith(_END_MARKS) and not stripped.endswith("..."))
        if not ends or len(words) < rules.min_words or max(map(len, words), default=0) > rules.max_word_chars:
            gone += 1
            continue
        lower = stripped.lower()
        if "lorem ipsum" in lower:
            return text, "lorem_ipsum", gone
        if "javascript" in lower:
            gone += 1
            continue
        if "{" in stripped:
            return text, "curly_bracket", gone
        if _POLICIES.search(lower):
            gone += 1
            continue
        sentences += max(1, len(_SENTENCE_END.findall(stripped)))
        kept.append(stripped)
    return "\n".join(kept).strip(), "min_sentences" if sentences < rules.min_sentences else None, gone


def fineweb(text: str, rules: config.FineWeb) -> str | None:
    """Returns the broken rule of FineWeb (arXiv 2406.17557, section 3.6), or None."""
    lines = [line for line in text.split("\n") if line.strip()]
    if not lines:
        return "end_marks"
    if sum(line.endswith(_TERMINALS) for line in lines) < rules.end_marks * len(lines):
        return "end_marks"
    if sum(len(line) <= rules.short for line in lines) > rules.short_lines * len(lines):
        return "short_lines"
    newlines = text.count("\n")
    if _repeated(lines)[1] > rules.repeated_chars * (len(text) - newlines):
        return "repeated_chars"
    if rules.newlines is not None and newlines > rules.newlines * max(len(text.split()), 1):
        return "newlines"
    return None
