"""What answers earn."""

import re

import numpy as np
import pytest

from lm import config
from lm.data.corpus import arithmetic, generated
from lm.data.records import Labelled, Messages, Pair
from lm.errors import UserError
from lm.recipes.graders import Graders, check_numbers, number

RIGHT = [Pair("2 + 2 =", "4")] * 4


def graded(answers, records=RIGHT, **given):
    rewards, parts = Graders({"a": config.Grader(**given)})(answers, records)
    assert rewards.dtype == np.float32
    return parts["a"].tolist()


def test_answers_that_are_the_same():
    assert graded(["4", " 4\n", "4.", "5"]) == [1, 1, 0, 0]
    assert graded(["spam", "Spam"], [Labelled("win!", "spam")] * 2) == [1, 0]


def test_numbers_that_are_equal():
    assert graded(["4", "it is 3, no: 4.0", "4 or 5", ""], kind="number") == [1, 1, 0, 0]
    assert [number(t) for t in ("1 2 0", "-3.50", "1,234 people", "none", "7-2")] == [120, -3.5, 1234, None, -2]
    check_numbers([Pair("2 + 2 =", "4")], "sums")
    with pytest.raises(UserError, match="the answer 'four' of source 'sums' has no number"):
        check_numbers([Pair("2 + 2 =", "4"), Pair("2 + 2 =", "four")], "sums")


def test_a_pattern_has_to_match_all_of_it():
    assert graded(["ab", " ab ", "abc", "a\nb"], kind="regex", pattern="a.?b") == [1, 1, 0, 1]
    with pytest.raises(UserError, match=re.escape("the pattern '(' of a grader is no regular expression")):
        Graders({"a": config.Grader("regex", pattern="(")})


def test_programs_that_pass_their_tests():
    records = [Pair("write double", "assert double(3) == 6")] * 3
    answers = ["def double(x):\n    return 2 * x", "def double(x):\n    return x", "import sys; sys.exit(0)"]
    assert graded(answers, records, kind="tests") == [1, 0, 0]  # also where it leaves before the tests


def test_a_mixture_is_a_weighted_sum():
    graders = Graders({"right": config.Grader(), "short": config.Grader("regex", weight=0.5, pattern=".{0,2}")})
    rewards, parts = graders(["4", "4, I think", "5", "five"], RIGHT)
    np.testing.assert_allclose(rewards, [1.5, 0, 0.5, 0])
    assert parts["short"].tolist() == [1, 0, 1, 0]


def test_a_grader_that_contradicts_itself_is_refused():
    for given in (dict(kind="regex"), dict(kind="model"), dict(pattern="x"), dict(kind="number", path="runs/reward")):
        with pytest.raises(UserError, match="regex has a pattern, model has a path"):
            config.Grader(**given)


def test_generated_questions_have_right_answers():
    sums = generated.load("sums", "pair")
    assert len(set(sums)) == 10_000 and sums[2758] == Pair("2 7 + 5 8 =", "8 5")
    for pair in sums[::97]:
        a, b = (number(side) for side in pair.question.rstrip(" =").split("+"))
        assert number(pair.answer) == a + b
    letters = list(arithmetic.letters())
    assert letters == list(arithmetic.letters())
    for pair in letters[::97]:
        letter, word = re.fullmatch(r"how many (.) in (.*) \?", pair.question).groups()
        assert int(pair.answer) == word.count(letter)
    turns = generated.load("letters", "messages")[0]
    assert isinstance(turns, Messages) and [m.role for m in turns.messages] == ["user", "assistant"]
    with pytest.raises(UserError, match="the generated set 'sums' has no answers to compare"):
        generated.load("sums", "preference")
