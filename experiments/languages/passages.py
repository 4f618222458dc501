"""Passages of Bible verses of two to sixteen words, from the King James into the World English version, by length.

    and it came to pass in those days   ->   it happened in those days

The 31,099 verses that both versions have are cut and paired as in `experiments.languages.verses`; a passage is a run of
neighbouring clauses of a verse, without the punctuation between them, all of which are paired and of frequent words. Books that
are asked are not taught, and no asked question is taught.
"""

import json
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache

import numpy as np

from experiments import languages
from experiments.languages import verses
from lm.data.corpus import packages
from lm.paths import expanded

BINS = {"short": (2, 4), "middle": (5, 8), "long": (9, 12), "longest": (13, 16)}  # words of the question
ASKED = 100  # passages of a length that are asked
TAUGHT = 40_000  # passages, at most; as many of each length as there are, up to a quarter
LONGEST = BINS["longest"][1] + 2  # words of an answer, at most


@lru_cache
def language() -> languages.Language:
    """Files of records {"question": King James, "answer": World English}: `taught`, and one for each of BINS to be asked."""
    old, new = (
        verses.parse(packages.member(f"pythonbible-{v}==0.0.2", verses.MEMBER.format(v), verses.SHA256[v]).decode())
        for v in verses.SHA256
    )
    taught, asked = split(old, new)
    files = {"taught": taught} | asked
    records = {name: [{"question": question, "answer": answer} for question, answer in some] for name, some in files.items()}
    return languages.write("passages", (text for pair in taught for text in pair), {}, items=records)


@lru_cache
def texts() -> languages.Language:
    """The taught passages in the World English version as texts to train on, and the asked ones held out."""
    read = lambda name: expanded(language().items[name]).read_text(encoding="utf-8").splitlines()
    answers = lambda name: [json.loads(line)["answer"] for line in read(name)]
    return languages.write("passages_texts", answers("taught"), [text for name in BINS for text in answers(name)])


def split(old: dict[int, str], new: dict[int, str]) -> tuple[list[verses.Clauses], dict[str, list[verses.Clauses]]]:
    """The pairs that are taught, and those that are asked by length, spread evenly over the asked books."""
    clauses = {verse: verses.paired(old[verse], new[verse]) for verse in sorted(old.keys() & new.keys())}
    counted = Counter(word for some in clauses.values() for pair in some for word in " ".join(pair).split())
    frequent = {word for word, _ in counted.most_common(verses.WORDS)}
    held = lambda verse: verse // 1_000_000 in verses.HELD_OUT
    found: dict[bool, dict[str, list[verses.Clauses]]] = {split: {name: [] for name in BINS} for split in (False, True)}
    for verse, some in clauses.items():
        for pair in runs(some, frequent):
            size = len(pair[0].split())
            name = next((name for name, (low, high) in BINS.items() if low <= size <= high), None)
            if name is not None and len(pair[1].split()) <= LONGEST:
                found[held(verse)][name].append(pair)
    rng = np.random.default_rng(0)
    taught = [pair for name in BINS for pair in _some(found[False][name], TAUGHT // len(BINS))]
    questions, words = {question for question, _ in taught}, {word for pair in taught for word in " ".join(pair).split()}
    new_pairs = lambda pair: pair[0] not in questions and set(" ".join(pair).split()) <= words
    # From the middle of each stride: those at its beginning were in the pilot of `experiments.seq2seq`.
    asked = {name: _some(list(dict.fromkeys(filter(new_pairs, found[True][name]))), ASKED, start=0.5) for name in BINS}
    return [taught[i] for i in rng.permutation(len(taught))], asked


def runs(clauses: list[verses.Clauses], frequent: set[str]) -> Iterator[verses.Clauses]:
    """All runs of neighbouring clauses of a verse, each of which `verses.suited` takes but for its length."""
    good = [_suited(pair, frequent) for pair in clauses]
    for first in range(len(clauses)):
        for stop in range(first + 1, len(clauses) + 1):
            if not good[stop - 1]:
                break
            yield tuple(" ".join(pair[side] for pair in clauses[first:stop]) for side in range(2))  # type: ignore[misc]


def _suited(pair: verses.Clauses, frequent: set[str]) -> bool:
    first, second = (set(text.split()) for text in pair)
    return first | second <= frequent and len(first & second) >= verses.COMMON * max(len(first), len(second))


def _some(pairs: list[verses.Clauses], most: int, *, start: float = 0.0) -> list[verses.Clauses]:
    """At most so many of the pairs, one of each stride over them: the one that is this share of a stride from its beginning."""
    return pairs if len(pairs) <= most else [pairs[int((i + start) * len(pairs) / most)] for i in range(most)]
