"""Texts of paths: the search against all paths of small cases, enumerated."""

import itertools
import math
from collections import defaultdict

import numpy as np
import pytest

from lm.errors import UserError
from lm.generation import ctc

BLANK = 0


def some(length: int, vocabulary: int, seed: int) -> np.ndarray:
    logits = np.random.default_rng(seed).normal(0, 1.5, (length, vocabulary))
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def text_of(path) -> tuple[int, ...]:
    return tuple(token for token, _ in itertools.groupby(path) if token != BLANK)


def enumerated(log_probs: np.ndarray) -> dict[tuple[int, ...], float]:
    """The log-probability of each text: the sum over all of its paths."""
    found = defaultdict(float)
    for path in itertools.product(range(log_probs.shape[1]), repeat=len(log_probs)):
        found[text_of(path)] += math.exp(sum(row[token] for row, token in zip(log_probs, path, strict=True)))
    return {text: math.log(p) for text, p in found.items()}


@pytest.mark.parametrize("length, vocabulary, seed", [(1, 3, 0), (4, 3, 1), (5, 3, 2), (6, 3, 3), (5, 4, 4)])
def test_a_search_of_all_prefixes_gives_all_texts_and_their_probabilities(length, vocabulary, seed):
    log_probs = some(length, vocabulary, seed)
    wanted = enumerated(log_probs)
    found = ctc.search(log_probs, BLANK, beams=10_000, candidates=vocabulary)
    assert {one.tokens for one in found} == wanted.keys()
    for one in found:
        assert one.log_prob == pytest.approx(wanted[one.tokens], abs=1e-9)
    assert [one.log_prob for one in found] == sorted((one.log_prob for one in found), reverse=True)
    assert sum(math.exp(one.log_prob) for one in found) == pytest.approx(1)


def test_few_beams_find_the_best_text_of_most_cases():
    """What a narrow search gives up is bounded: its texts are at most as likely as they really are."""
    hits = 0
    for seed in range(20):
        log_probs = some(6, 4, seed)
        wanted = enumerated(log_probs)
        found = ctc.search(log_probs, BLANK, beams=8, candidates=4)
        assert len(found) == 8
        assert all(one.log_prob <= wanted[one.tokens] + 1e-9 for one in found)
        hits += found[0].tokens == max(wanted, key=lambda text: wanted[text])
    assert hits >= 18


def test_the_likeliest_path():
    log_probs = np.log(np.array([[0.1, 0.8, 0.1], [0.1, 0.8, 0.1], [0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8]]))
    assert ctc.greedy(log_probs, BLANK) == (1, 1, 2)
    for seed in range(10):
        log_probs = some(7, 3, seed)
        assert ctc.greedy(log_probs, BLANK) == text_of(log_probs.argmax(axis=1))
    assert ctc.greedy(np.zeros((0, 3)), BLANK) == ()


def test_the_search_sums_paths_where_the_likeliest_path_is_of_another_text():
    log_probs = np.log(np.array([[0.6, 0.4], [0.6, 0.4]]))  # blank blank: 0.36; all paths of (1,): 0.64
    assert ctc.greedy(log_probs, BLANK) == ()
    best = ctc.search(log_probs, BLANK, beams=4)[0]
    assert best.tokens == (1,) and math.exp(best.log_prob) == pytest.approx(0.64)


def test_a_search_of_nothing_is_refused():
    with pytest.raises(UserError, match="a beam and a candidate or more"):
        ctc.search(some(2, 3, 0), BLANK, beams=0)
