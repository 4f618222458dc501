"""Texts forwards, or with the words of each document in the opposite order: of the corpus `sotu`, and of a chain of words.

A text has one probability, in whichever order its words are predicted, so both directions have the same entropy. How much of
it a model learns may differ: arXiv 2401.17505 finds a small advantage of forwards. The chain is reversible, which makes both
directions the same language: there no learner can tell them apart.
"""

import re
from collections import Counter
from functools import cache

import numpy as np

from experiments.languages import Language, write
from lm.data.corpus import sotu

WORDS = re.compile(r"\w+|[^\w\s]")
COMMON = 500  # words of the corpus that are kept; all others are written as RARE
RARE = "<rare>"
HELDOUT = 12  # every twelfth document
STATES, LENGTH, DOCUMENTS = 64, 50, 12_000  # of the chain: its words, words of a document, documents


@cache
def messages() -> list[list[str]]:
    """The words and punctuation marks of each message in lower case, oldest first."""
    read = [WORDS.findall(path.read_text(encoding="utf-8").lower()) for path in sotu.speeches()]
    common = {word for word, _ in Counter(word for words in read for word in words).most_common(COMMON)}
    return [[word if word in common else RARE for word in words] for words in read]


def transitions() -> tuple[np.ndarray, np.ndarray]:
    """The chain's first word and the next word given the last, float64 [W] and [W, W]. They are the rows of a symmetric matrix
    of weights, so a step from i to j is as probable as one from j to i: the chain is reversible."""
    weights = np.exp(2 * np.random.default_rng(0).standard_normal((STATES, STATES)))
    weights += weights.T
    return weights.sum(1) / weights.sum(), weights / weights.sum(1, keepdims=True)


def chains() -> list[list[str]]:
    """Documents of the chain, each from its stationary distribution."""
    first, after = transitions()
    ends = (np.cumsum(after, axis=1) + np.arange(STATES)[:, None]).ravel()  # word i has the interval from i to i + 1
    rng = np.random.default_rng(1)
    words = [rng.choice(STATES, DOCUMENTS, p=first)]
    for _ in range(LENGTH - 1):
        drawn = np.searchsorted(ends, words[-1] + rng.random(DOCUMENTS), side="right")
        words.append(np.minimum(drawn - words[-1] * STATES, STATES - 1))
    return [[f"w{i:02d}" for i in row] for row in np.stack(words, axis=1).tolist()]


def entropy() -> float:
    """Nats a word of the chain's documents, exact and the same in both directions."""
    first, after = transitions()
    step = -(first[:, None] * after * np.log(after)).sum()
    return float((-(first * np.log(first)).sum() + (LENGTH - 1) * step) / LENGTH)


def language(*, chain: bool = False, backwards: bool = False) -> Language:
    documents = chains() if chain else messages()
    texts = [" ".join(words[::-1] if backwards else words) for words in documents]
    held = texts[HELDOUT // 2 :: HELDOUT]
    train = [text for i, text in enumerate(texts) if i % HELDOUT != HELDOUT // 2]
    name = ("chain" if chain else "mirror") + ("-backwards" if backwards else "")
    return write(name, train, held, entropy=entropy() if chain else None)
