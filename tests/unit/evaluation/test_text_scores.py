"""Windows of long texts, and the order of hypotheses."""

import numpy as np
import pytest

from lm.evaluation.text_scores import WEIGHTS, Hypothesis, distance, errors, order, tuned, windows


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize(("n", "length", "stride"), [(5, 8, 4), (8, 8, 4), (9, 8, 4), (40, 8, 3), (41, 8, 7), (30, 9, 1)])
def test_windows_cover_each_token_once_with_what_surrounds_it(n, length, stride, both):
    text = np.arange(100, 100 + n)
    spans = windows(text, slice(1, n), length=length, stride=stride, both=both)
    assert np.concatenate([span.target for span in spans]).tolist() == text[1:].tolist()
    for span in spans:
        row = np.concatenate([span.left, span.target, span.right])
        assert row.tolist() == list(range(row[0], row[-1] + 1)) and len(row) <= length  # what stands there in the text
        assert len(row) == min(length, n) or (not both and span is spans[0])
    for span in spans[1:]:
        assert len(span.target) <= stride and (len(span.left) + len(span.right) if both else len(span.left)) >= 1
        assert both or len(span.right) == 0


HYPOTHESES = [
    Hypothesis("a", "the cat sad", -1.0, "the cat sat"),
    Hypothesis("a", "the cat sat", -1.5, "the cat sat"),
    Hypothesis("b", "on a mat", -2.0, "on a mat"),
    Hypothesis("b", "honour mat", -1.9, "on a mat"),
]
LOG_PROBS = [-9.0, -5.0, -6.0, -8.0]


def test_hypotheses_are_ordered_by_both_scores():
    assert order(HYPOTHESES, LOG_PROBS, 0.0) == {"a": [0, 1], "b": [3, 2]}
    assert order(HYPOTHESES, LOG_PROBS, 0.2) == {"a": [1, 0], "b": [2, 3]}
    assert errors(HYPOTHESES, [0, 3]) == (1 + 2, 6) and errors(HYPOTHESES, [1, 2]) == (0, 6)


def test_the_weight_has_the_fewest_errors_and_is_the_smallest_that_has():
    weight = tuned(HYPOTHESES, LOG_PROBS, ["a"])
    assert weight == min(w for w in WEIGHTS if -1.5 - 5 * w > -1.0 - 9 * w) and 0.1 < weight < 0.2
    assert tuned(HYPOTHESES, [0.0] * 4, ["a"]) == 0.0  # a model that prefers nothing


@pytest.mark.parametrize(
    ("a", "b", "wanted"), [("", "", 0), ("a b", "", 2), ("", "a", 1), ("a b c", "a c", 1), ("k i t t e n", "s i t t i n g", 3)]
)
def test_word_errors_are_the_edit_distance(a, b, wanted):
    assert distance(a.split(), b.split()) == distance(b.split(), a.split()) == wanted
