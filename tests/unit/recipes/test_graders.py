"""What answers earn."""

import re

import numpy as np
import pytest

from lm import config
from lm.data.corpus import arithmetic, generated
from lm.data.records import Labelled, Message, Messages, Pair
from lm.errors import UserError
from lm.evaluation.rewards import Rewarder
from lm.recipes.graders import Graders, answer, check_answers, number, question

RIGHT = [Pair("2 + 2 =", "4")] * 4


def graded(answers, records=RIGHT, **given):
    rewards, parts = Graders({"a": config.Grader(**given)})(answers, records)
    assert rewards.dtype == np.float32
    return parts["a"].tolist()


def test_answers_that_are_the_same():
    assert graded(["4", " 4\n", "4.", "5"]) == [1, 1, 0, 0]
    assert graded(["spam", "Spam"], [Labelled("win!", "spam")] * 2) == [1, 0]


def test_the_last_answer_of_a_conversation():
    turns = [("user", "2 + 2 ="), ("assistant", "5"), ("user", "no"), ("assistant", "4"), ("user", "thanks")]
    talk = Messages(tuple(Message(*turn) for turn in turns))
    assert graded(["4", "5"], [talk] * 2) == [1, 0] and (question(talk), answer(talk)) == ("no", "4")


def test_a_reward_model_reads_all_that_was_said(monkeypatch):
    asked = []
    scores = lambda self, prompts, answers, cut: asked.extend(prompts) or np.arange(len(answers), dtype=np.float32)
    monkeypatch.setattr(Rewarder, "__init__", lambda self, opened: None)
    monkeypatch.setattr(Rewarder, "scores", scores)
    talk = Messages((Message("user", "a"), Message("assistant", "b"), Message("user", "c"), Message("assistant", "d")))
    graders = Graders({"good": config.Grader("model", weight=2.0, path="runs/reward")}, {"good": None})
    rewards, _ = graders(["x", "y"], [talk, Pair("q", "r", "s")])
    assert rewards.tolist() == [0, 2] and asked == [talk.messages[:3], "s\nq"]


def test_numbers_that_are_equal():
    assert graded(["4", "it is 3, no: 4.0", "4 or 5", ""], kind="number") == [1, 1, 0, 0]
    assert [number(t) for t in ("1 2 0", "-3.50", "1,234 people", "none", "7-2")] == [120, -3.5, 1234, None, -2]
    graders = {"right": config.Grader("number")}
    check_answers([Pair("2 + 2 =", "4")], "sums", graders)
    with pytest.raises(UserError, match="the answer 'four' of source 'sums' has no number"):
        check_answers([Pair("2 + 2 =", "4"), Pair("2 + 2 =", "four")], "sums", graders)


def test_a_pattern_has_to_match_all_of_it():
    assert graded(["ab", " ab ", "abc", "a\nb"], kind="regex", pattern="a.?b") == [1, 1, 0, 1]
    with pytest.raises(UserError, match=re.escape("the pattern '(' of a grader is no regular expression")):
        Graders({"a": config.Grader("regex", pattern="(")})


def test_programs_that_pass_their_tests():
    records = [Pair("write double", "assert double(3) == 6")] * 3
    answers = ["def double(x):\n    return 2 * x", "def double(x):\n    return x", "import sys; sys.exit(0)"]
    assert graded(answers, records, kind="tests") == [1, 0, 0]  # also where it leaves before the tests


def test_reasoning_gym():
    """Its questions are a function of the name, and its scorers take answers that are right and not the record's."""
    pytest.importorskip("reasoning_gym")
    path = "reasoning_gym:simple_equations?size=5&seed=3"
    pairs = generated.load(path, "pair")
    assert len(pairs) == 5 and generated.load("reasoning_gym:simple_equations?size=5&seed=4", "pair") != pairs
    assert [m.messages[1].content for m in generated.load(path, "messages")] == [pair.answer for pair in pairs]
    answers = [f" {pairs[0].answer}\n", "x", pairs[2].answer, ""]
    records = [*pairs[:2], generated.load(path, "messages")[2], pairs[3]]
    assert graded(answers, records, kind="reasoning_gym", path=path) == [1, 0, 1, 0]
    grader = {"own": config.Grader("reasoning_gym", path=path)}
    check_answers(pairs, "own", grader)
    with pytest.raises(UserError, match="'another question' is no question of reasoning_gym:simple_equations"):
        check_answers([*pairs, Pair("another question", "")], "own", grader)
    words = "reasoning_gym:word_ladder?size=1"
    (ladder,) = generated.load(words, "pair")
    assert graded([ladder.answer, ladder.answer[::-1]], [ladder] * 2, kind="reasoning_gym", path=words)[0] == 1
    assert generated.version(path).startswith("reasoning-gym 0") and generated.version("sums") == generated.VERSION
    for given, cause in (
        ("reasoning_gym:chain_sums", "no task 'chain_sums'; did you mean 'chain_sum'"),
        ("reasoning_gym:chain_sum?terms=3", "unexpected keyword argument 'terms'.*for example reasoning_gym:chain_sum.size"),
        ("reasoning_gym:chain_sum?min_terms=9&max_terms=1", "max_terms must be >= min_terms"),
        ("reasoning_gym:countdown", "the scorer of reasoning_gym:countdown runs answers as Python"),
        ("reasoning_gym:composite", "composite"),
        ("reasoning_gym:coin_flip", "runs answers as Python"),
        ("reasoning_gym:complex_arithmetic", "accepts what is no answer"),
        ("reasoning_gym:ransom_note", "are others in each process"),
    ):
        with pytest.raises(UserError, match=cause):
            Graders({"a": config.Grader("reasoning_gym", path=given)})
    with pytest.raises(UserError, match="has no answers to compare"):
        generated.load(path, "preference")


def test_a_mixture_is_a_weighted_sum():
    graders = Graders({"right": config.Grader(), "short": config.Grader("regex", weight=0.5, pattern=".{0,2}")})
    rewards, parts = graders(["4", "4, I think", "5", "five"], RIGHT)
    np.testing.assert_allclose(rewards, [1.5, 0, 0.5, 0])
    assert parts["short"].tolist() == [1, 0, 1, 0]


def test_a_grader_that_contradicts_itself_is_refused():
    for given in (dict(kind="model"), dict(pattern="x"), dict(kind="number", path="runs/reward")):
        with pytest.raises(UserError, match="regex may have a pattern, model and reasoning_gym have a path"):
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


def test_without_a_pattern_the_record_s_answer_is_one():
    graders = Graders({"right": config.Grader("regex")})
    records = [Pair("say an even digit", "0|2|4|6|8"), Pair("say an odd digit", "1|3|5|7|9")] * 2
    assert graders([" 4", "4", "44", "9 "], records)[0].tolist() == [1, 0, 0, 1]
    with pytest.raises(UserError, match=re.escape("the pattern '(' of a grader")):
        check_answers([*records, Pair("a", "(")], "own", {"right": config.Grader("regex")})
