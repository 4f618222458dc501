"""Fill-in-the-blank questions about the documents of prepared data, as pairs: a source of kind `cloze`. The answer of `spans`
and `infill` are the words that were blanked out. Training questions are about training documents, held-out questions about
held-out documents.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np

from lm.data.records import Pair
from lm.data.tokenizer import Tokenizer
from lm.errors import UserError, nearest

VERSION = 1  # of the questions; raise it to have them prepared again
BLANK = "___"
COUNTS = {"train": 2000, "holdout": 500}  # questions of each split, at most
WORDS = 3  # of an infilled answer, at most
WORD = re.compile(r"[A-Z][A-Za-z]+(?:-[A-Za-z]+)*|\d[\d,]*\d|\d")
CLAUSE = re.compile(r"(?<=[.,!?;:])\s+")


Question = tuple[str, str, str]  # context, question, answer
Make = Callable[[list[str], np.random.Generator], Iterator[Question]]


class Corpus(Protocol):
    """The part of `lm.data.corpus.prepare.Prepared` that is used here."""

    @property
    def train(self) -> Mapping[str, Any]: ...

    @property
    def holdout(self) -> Mapping[str, Any]: ...

    @property
    def tokenizer(self) -> Tokenizer: ...

    def documents(self, source: str, split: str) -> Iterable[Any]: ...  # each has a `text`


def load(name: str, corpus: Corpus, *, length: int, seed: int = 0) -> dict[str, list[Pair]]:
    """The pairs of both splits, `train` and `holdout`. Context and question have at most `length` tokens of the corpus's
    tokenizer. UserError where there is nothing to ask.
    """
    if name not in MAKERS:
        raise UserError(f"no cloze questions '{name}'{nearest(name, MAKERS)}")
    return _ask(name, corpus, MAKERS[name], length, seed)


def spans(clauses: list[str], rng: np.random.Generator) -> Iterator[Question]:
    """Asks for a name or number that is blanked out in a clause and also occurs in an earlier clause of the passage.

    context   On Monday the Senate met. In the evening,
    question  when the ___ had voted,
    answer    Senate

    Neither occurrence is the first word of a clause, because any first word may have a capital.
    """
    for i in range(1, len(clauses)):
        earlier = {m[0] for c in clauses[:i] for m in WORD.finditer(c) if m.start()}
        both = sorted(earlier & {m[0] for m in WORD.finditer(clauses[i]) if m.start()})
        if both:
            word = both[rng.integers(len(both))]
            yield " ".join(clauses[:i]), re.sub(rf"\b{re.escape(word)}\b", BLANK, clauses[i]), word


def infill(clauses: list[str], rng: np.random.Generator) -> Iterator[Question]:
    """Asks for 1 to WORDS words that are blanked out in a passage; the question is empty.

    context   On Monday the ___ in the Capitol.
    question
    answer    Senate met
    """
    words = " ".join(clauses).split()
    size = int(rng.integers(1, WORDS + 1))
    if len(words) >= size + 6:  # long enough for words on both sides of the blank
        at = int(rng.integers(2, len(words) - size - 1))
        yield " ".join([*words[:at], BLANK, *words[at + size :]]), "", " ".join(words[at : at + size])


MAKERS: Mapping[str, Make] = {"spans": spans, "infill": infill}


def _ask(name: str, corpus: Corpus, make: Make, length: int, seed: int) -> dict[str, list[Pair]]:
    """Pairs from paragraphs in random order (by `seed`); the pairs of a passage are consecutive."""
    tokenizer = corpus.tokenizer
    blank = len(tokenizer.encode(" " + BLANK)) + 1
    out: dict[str, list[Pair]] = {}
    for number, (split, most) in enumerate(COUNTS.items()):
        stores = getattr(corpus, split)
        if not stores:
            raise UserError(
                f"'{name}' asks about held-out documents, and none is held out: set data.holdout=0.05, or give a source with "
                "use=holdout"
            )
        rng = np.random.default_rng((seed, number))
        texts = [document.text for source in stores for document in corpus.documents(source, split)]
        paragraphs = [p for text in texts for p in text.split("\n") if p]
        pairs: list[Pair] = []
        for i in rng.permutation(len(paragraphs)):  # lazily: only as many are encoded as are needed
            for passage in _passages(paragraphs[i], tokenizer, length - blank):
                pairs += [Pair(question, answer, context) for context, question, answer in make(passage, rng)]
            if len(pairs) >= most:
                break
        if not pairs:
            raise UserError(f"'{name}' finds nothing to ask in the {split} documents: raise its length, or take more text")
        out[split] = pairs[:most]
    return out


def _passages(paragraph: str, tokenizer: Tokenizer, length: int) -> Iterator[list[str]]:
    """Runs of clauses, each as long as fits into `length` tokens; a clause that is longer by itself is left out."""
    clauses = [c for c in CLAUSE.split(paragraph) if c]
    passage: list[str] = []
    used = 0
    for clause, ids in zip(clauses, tokenizer.encode_batch([" " + c for c in clauses], threads=1), strict=True):
        if passage and used + len(ids) > length:
            yield passage
            passage, used = [], 0
        if len(ids) <= length:
            passage.append(clause)
            used += len(ids)
    if passage:
        yield passage
