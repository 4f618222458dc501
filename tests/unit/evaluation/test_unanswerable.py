"""Blanks in texts, names that are in none, what an answer is, and what tells the told from the rest."""

from types import SimpleNamespace

import numpy as np
import pytest

from lm.evaluation import blanks, refusals
from lm.evaluation.blanks import Blank, renamed, sort_of
from lm.evaluation.unanswerable import Answer, _open, _subjects, _word, made_up, of_answers
from lm.generation.writer import Token

TEXT = (
    "We know that in the spring of the year Anna Brown sold 1,200 horses to her friend Peter. Then the town of Ull was quiet."
)


def test_blanks_are_inside_sentences():
    found = {(b.word, b.sort) for b in blanks.blanks(TEXT)}
    assert {(" Anna", "name"), (" Brown", "name"), (" 1,200", "number"), (" horses", "word"), (" friend", "word")} <= found
    assert {(" Peter", "name"), (" Ull", "name"), (" quiet", "word")} <= found
    assert not {" Then", " spring"} & {word for word, _ in found}  # begins a sentence; has too few words to its left
    for b in blanks.blanks(TEXT):
        assert b.left + b.word + b.right == TEXT and b.left.count(" ") >= blanks.LEAST


@pytest.mark.parametrize("word,sort", [("USA", None), ("Ab", None), ("Rome", "name"), ("the", None), ("7", "number")])
def test_sorts(word, sort):
    assert sort_of(word) == sort


def test_a_number_may_go_on_behind_its_comma():
    text = "one two three four five six seven eight nine on March 4, 1845 and on March, 1846 too"
    assert {b.word for b in blanks.blanks(text) if b.sort == "number"} == {" 4", " 1846"}


def test_drawn_blanks_are_of_each_sort_as_many():
    texts = [f"{TEXT} Number {i} of them all" for i in range(60)]
    found = blanks.drawn(texts, 30, np.random.default_rng(0))
    assert [sum(b.sort == sort for b in found) for sort in blanks.SORTS] == [10, 10, 10]
    assert found == blanks.drawn(texts, 30, np.random.default_rng(0))
    assert {b.sort for b in blanks.drawn(texts, 10, np.random.default_rng(0), ("name",))} == {"name"}


def test_names_are_replaced_at_the_same_time():
    b = Blank("Anna met Bo, and Anna-Bo Annabel", " Ann", " with Bo", "name")
    assert renamed(b, [("Anna", "Bo"), ("Bo", "Anna")]) == Blank(
        "Bo met Anna, and Bo-Anna Annabel", " Ann", " with Anna", "name"
    )


def test_a_question_has_a_subject_in_its_sentence_and_no_answer():
    ask = lambda word: next(b for b in blanks.blanks(TEXT) if b.word == f" {word}")
    assert _subjects(ask("Peter")) == ["Anna", "Brown"] and _open(ask("Peter"))
    assert _subjects(ask("Ull")) == [] and not _open(ask("Ull"))
    assert not _open(ask("Brown"))  # Anna Brown
    assert not _open(Blank("in the long and quiet year of the war Anna met Peter and", " Peter", "", "name"))


def test_made_up_names_are_in_no_document():
    documents = {("a", "train"): ["Bada was here and fekik, too"], ("a", "holdout"): ["so was DEFEK"]}
    of = lambda source, split: [SimpleNamespace(text=text) for text in documents[source, split]]
    data = SimpleNamespace(train={"a": 0}, holdout={"a": 0}, documents=of)
    names = made_up(data, 300, np.random.default_rng(0))
    assert len(set(names)) == len(names) == 300
    assert all(name.isalpha() and name[0].isupper() and name[1:].islower() for name in names)
    every = [SimpleNamespace(text=" ".join(names[:200]).upper())]
    again = made_up(SimpleNamespace(train={"a": 0}, holdout={}, documents=lambda *_: every), 300, np.random.default_rng(0))
    assert names[200] in again and not set(names[:200]) & set(again)


def sample(*pieces):
    return SimpleNamespace(tokens=[Token(text, np.log(p)) for text, p in pieces])


def test_the_first_word_and_its_probability():
    word, p = _word(sample((" Con", 0.5), ("gress", 0.8), (" of", 0.9)))
    assert word == "Congress" and p == pytest.approx(0.4)
    assert _word(sample((" ", 0.5), ("1", 0.5), ("8", 0.5), (",", 0.9)))[0] == "18"
    assert _word(sample(("", 0.1), (" Rome", 0.5)))[1] == pytest.approx(0.5)  # behind the mark of an answer
    assert _word(sample())[0] == ""


def rows(finding):
    return {row.measure: row.found for row in finding.rows}


def answers(sure, words, entropy):
    return [Answer(word, c, h) for word, c, h in zip(words, sure, entropy, strict=True)]


def test_a_model_that_knows_what_it_was_told_is_told_from_one_that_does_not():
    rng = np.random.default_rng(0)
    n, true = 100, [f"Name{i}" for i in range(100)]
    guess = ["the" if i % 2 else "Other" for i in range(n)]
    knows = {
        "told": answers(rng.uniform(0.6, 1, n), true, rng.uniform(0, 1, n)),
        "other": answers(rng.uniform(0, 0.5, n), guess, rng.uniform(2, 3, n)),
        "made up": answers(rng.uniform(0, 0.3, n), guess, rng.uniform(2, 3, n)),
    }
    found = rows(of_answers(knows, true))
    assert found["the text's own word: told"].value == 1 and found["the text's own word: made-up"].value == 0
    assert found["AUROC of confidence: made-up"].value == found["AUROC of entropy: others"].value == 1
    assert found["name or number >50%: told"].value == 1 and found["name or number >50%: made-up"].high < 0.05
    assert 0 < found["name or number >25%: others"].value < 0.5  # "the" is neither
    bluffs = {name: answers(rng.uniform(0.6, 1, n), guess, rng.uniform(0, 1, n)) for name in knows}
    found = rows(of_answers(bluffs, true))
    for name in ("AUROC of confidence: made-up", "AUROC of entropy: others"):
        assert found[name].low < 0.5 < found[name].high
    assert found["name or number >50%: made-up"].value == 0.5


@pytest.mark.parametrize(
    "answer",
    [
        "I don't know.",
        "I do not know which word is missing.",
        "Sorry, I cannot tell.",
        "I'm not sure.",
        "I am afraid I have no idea.",
        "There is no information about Zekizo in the text.",
        "It’s unclear; I couldn’t find an answer.",
    ],
)
def test_refusals(answer):
    assert refusals.refuses(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "Rome",
        "The missing word is 1842.",
        "It is known as Rome.",
        "Nobody knew that he sold no horses.",
        "If you do not know it, I'm sorry for your loss.",
        "",
    ],
)
def test_answers_that_are_no_refusals(answer):
    assert not refusals.refuses(answer)
