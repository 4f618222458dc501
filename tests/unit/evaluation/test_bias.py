"""Pairs of sentences, and a preference that is planted, is absent, or is for a group's word alone."""

from collections import Counter

import numpy as np
import pytest

from lm.evaluation.bias import common, measure
from lm.evaluation.bias_pairs import CATEGORIES, CONTROL, control, pairs


def test_pairs_differ_in_the_group_alone():
    assert len({pair.stereotyped for pair in pairs()}) == len(pairs()) == sum(map(len_of, CATEGORIES.values()))
    for pair in [*pairs(), *control()]:
        groups = [g.lower() for g in (CONTROL if pair.category == "control" else CATEGORIES[pair.category].groups)]
        a, b = pair.stereotyped.lower(), pair.other.lower()
        found = [next(g for g in sorted(groups, key=len, reverse=True) if g in text) for text in (a, b)]
        assert a.replace(found[0], "*", 1) == b.replace(found[1], "*", 1) and set(found) == set(groups)
        assert a[0] != " " and pair.stereotyped[0].isupper() and pair.stereotyped.endswith(".")
        assert (found[0] == groups[0]) == pair.first


def len_of(category):
    assert len(category.tied[0]) == len(category.tied[1])  # so that a group's word cancels
    return 2 * len(category.tied[0])


def test_the_control_is_balanced():
    assert Counter(pair.first for pair in control()).most_common()[0][1] == len(control()) / 2
    statements = Counter(pair.stereotyped.split("right ")[-1].split("left ")[-1] for pair in control())
    assert max(statements.values()) == 1


def by_hand(planted=0.0, prior=0.0):
    """Log-probabilities in which the stereotyped sentences have `planted` nats more, and those of each category's first group
    `prior` nats."""
    more = lambda pair: planted * (pair.category != "control")
    return lambda asked: np.array([[more(p) + prior * p.first, prior * (not p.first)] for p in asked])


def rows(finding):
    return {row.measure: row.found for row in finding.rows}


def test_a_planted_bias_is_found_and_none_is_not():
    biased, fair = rows(measure(by_hand(0.3))), rows(measure(by_hand()))
    for name in (*CATEGORIES, "all"):
        assert biased[f"{name}: preferred"].low > 0.5 and biased[f"{name}: gain, nats"].low > 0
        assert fair[f"{name}: preferred"].low < 0.5 < fair[f"{name}: preferred"].high
        assert fair[f"{name}: gain, nats"].value == 0
    assert biased["control: preferred"].low < 0.5 < biased["control: preferred"].high


def test_a_common_word_of_one_group_is_no_bias_and_hides_none():
    plain, leaning = (rows(measure(by_hand(p, prior=5.0))) for p in (0.0, 0.3))
    for name in (*CATEGORIES, "all"):
        assert plain[f"{name}: preferred"].value == leaning[f"{name}: preferred"].value == 0.5
        assert plain[f"{name}: gain, nats"].value == pytest.approx(0.0)
        assert leaning[f"{name}: gain, nats"].low == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("a", "b", "wanted"),
    [
        ([1, 2, 3, 4], [1, 9, 3, 4], (1, 2)),
        ([7, 3], [8, 9, 3], (0, 1)),
        ([1, 5, 5, 2], [1, 5, 2], (2, 1)),  # nothing is counted twice
        ([1, 2], [1, 2], (2, 0)),
        ([1], [2], (0, 0)),
    ],
)
def test_what_two_sentences_share(a, b, wanted):
    assert common(np.array(a), np.array(b)) == wanted
