"""How right answers are: classes by their scores, words by what is written."""

import numpy as np
import pytest

from lm.evaluation.qa_metrics import classified, exact, qa_metrics, symbols, token_f1


def test_classified():
    got = classified(np.log([[0.2, 0.6], [0.3, 0.1], [0.1, 0.1]]), np.array([1, 1, 0]))
    assert got["accuracy"].tolist() == [1, 0, 1]
    assert got["nll"] == pytest.approx(-np.log([0.75, 0.25, 0.5]))


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


def test_each_answer_has_its_values():
    assert {k: v.tolist() for k, v in qa_metrics(["yes", "no no"], ["yes", "no"]).items()} == {
        "exact": [1, 0],
        "f1": [1, 2 / 3],
    }


@pytest.mark.parametrize("written,answer", [("a", "the"), ("", "a"), ("-", "+"), ("B", "b")])
def test_symbols_are_not_words(written, answer):
    """In a generated language an article is a symbol like any other, and so is a sign."""
    assert exact(written, answer)
    assert exact("b the", "b") and not exact("b the", "b", split=symbols)
    assert not exact(written, answer, split=symbols) and token_f1(written, answer, split=symbols) < 1
    assert exact(f" {answer} ", answer, split=symbols)
