"""How right answers are: classes by their scores, words by what is written."""

import numpy as np
import pytest

from lm.evaluation.qa_metrics import classified, exact, qa_metrics, token_f1


def test_classified():
    got = classified(np.log([[0.2, 0.6], [0.3, 0.1], [0.1, 0.1]]), np.array([1, 1, 0]))
    assert got["accuracy"] == pytest.approx(2 / 3)
    assert got["nll"] == pytest.approx(-np.mean(np.log([0.75, 0.25, 0.5])))


@pytest.mark.parametrize(
    "said,answer,is_exact,f1",
    [
        ("the Senate.", "Senate", True, 1.0),
        (" 1,945", "1945", True, 1.0),
        ("Senate of the House", "the Senate", False, 0.5),
        ("a b b", "b c", False, 0.5),
        ("war", "peace", False, 0.0),
        ("", "peace", False, 0.0),
        ("", "the", True, 1.0),
    ],
)
def test_answers(said, answer, is_exact, f1):
    assert exact(said, answer) == is_exact and token_f1(said, answer) == pytest.approx(f1)


def test_answers_are_averaged():
    assert qa_metrics(["yes", "no no"], ["yes", "no"]) == {"exact": 0.5, "f1": pytest.approx((1 + 2 / 3) / 2)}
