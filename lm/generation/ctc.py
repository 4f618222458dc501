"""Texts in the outputs of a model trained under CTC (`lm.losses.ctc`): the likeliest path, or a search over texts.

A path has a token or a blank at each of T vectors; its text is its tokens, of which runs are one, without the blanks.
On the host. Axes: T vectors, V vocabulary.
"""

import math
from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from lm.errors import UserError


@dataclass(frozen=True)
class Reading:
    """One text, int32 [n], and its log-probability in nats: the sum over its paths that the search has kept."""

    tokens: tuple[int, ...]
    log_prob: float


def greedy(log_probs: np.ndarray, blank: int) -> tuple[int, ...]:
    """The text of the likeliest path, of log-probabilities [T, V]."""
    best = log_probs.argmax(axis=-1)
    begins = np.diff(best, prepend=-1) != 0
    return tuple(int(token) for token in best[begins] if token != blank)


def search(log_probs: np.ndarray, blank: int, *, beams: int, candidates: int = 16) -> list[Reading]:
    """The likeliest texts, the best first, `beams` at most: prefix beam search (Hannun et al., arXiv 1408.2873, algorithm 1,
    without its language model). With as many beams as there are prefixes, and all tokens as candidates, it is exact.

    log_probs: [T, V]. candidates: tokens that are tried at each vector, the likeliest ones.
    """
    if beams < 1 or candidates < 1:
        raise UserError(f"a search needs a beam and a candidate or more, and has beams={beams}, candidates={candidates}")
    # prefix -> log-probabilities of its paths that end in a blank, and of those that end in its last token
    kept: dict[tuple[int, ...], tuple[float, float]] = {(): (0.0, -math.inf)}
    top = np.argsort(-log_probs, axis=1, kind="stable")[:, :candidates]
    for row, tokens in zip(log_probs.tolist(), top.tolist(), strict=True):
        grown: dict[tuple[int, ...], list[float]] = defaultdict(lambda: [-math.inf, -math.inf])
        for prefix, (silent, spoken) in kept.items():
            either, last = _add(silent, spoken), prefix[-1] if prefix else None
            same = grown[prefix]
            same[0] = _add(same[0], either + row[blank])
            if last is not None:  # the last token goes on
                same[1] = _add(same[1], spoken + row[last])
            for token in tokens:
                if token != blank:  # a new token; the same one again needs a blank before it
                    longer = grown[(*prefix, token)]
                    longer[1] = _add(longer[1], (silent if token == last else either) + row[token])
        best = sorted(grown, key=lambda prefix: -_add(*grown[prefix]))[:beams]
        kept = {prefix: (grown[prefix][0], grown[prefix][1]) for prefix in best}
    return [Reading(prefix, _add(*ends)) for prefix, ends in kept.items() if _add(*ends) > -math.inf]


def _add(a: float, b: float) -> float:
    """log(exp(a) + exp(b))."""
    high, low = (a, b) if a >= b else (b, a)
    return high if low == -math.inf else high + math.log1p(math.exp(low - high))
