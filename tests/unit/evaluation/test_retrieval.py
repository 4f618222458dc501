"""Retrieval: ranks and chance against plain loops, whatever has the same caption."""

import itertools

import numpy as np
import pytest

from lm.evaluation.retrieval import chance, logsumexp, ranks, same


def test_ranks_count_wrong_answers_that_are_as_high():
    scores = np.array([[0.9, 0.1, 0.5], [0.3, 0.2, 0.1], [0.4, 0.4, 0.4]])
    assert ranks(scores, np.eye(3, dtype=bool)).tolist() == [0, 1, 2]  # ties count against it
    right = np.eye(3, dtype=bool)
    right[1, 0] = True  # the same caption
    assert ranks(scores, right).tolist() == [0, 0, 2]


@pytest.mark.parametrize("k", [1, 2, 3])
def test_chance_is_the_share_of_random_orders(k):
    right = np.array([[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 1], [0, 1, 0, 1]], bool)
    orders = list(itertools.permutations(range(4)))
    wanted = np.mean([[row[list(order[:k])].any() for order in orders] for row in right])
    assert chance(right, k) == pytest.approx(wanted)
    assert chance(right, 5) == 1.0


def test_equal_texts_are_the_same():
    assert same(["a", "b", "a"]).tolist() == [[True, False, True], [False, True, False], [True, False, True]]


def test_logsumexp_is_that_of_large_numbers():
    assert logsumexp(np.array([[1000.0, 1000.0], [0.0, -1000.0]])) == pytest.approx([1000 + np.log(2), 0.0])
