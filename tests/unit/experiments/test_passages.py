"""Passages: runs of neighbouring clauses, in books that are taught or asked, and what a study measures of them."""

import pytest

from experiments.languages import passages

FREQUENT = set("and god said let there be light was it so".split())


def test_runs_are_of_neighbouring_clauses_of_frequent_words():
    clauses = [("and god said", "and god said"), ("let there be light", "let light be"), ("selah", "selah"), ("so", "so")]
    found = list(passages.runs(clauses, FREQUENT))
    both = ("and god said let there be light", "and god said let light be")
    assert found == [clauses[0], both, clauses[1], clauses[3]]


def test_asked_books_are_not_taught_and_lengths_are_told_apart():
    verse = lambda book, number: 1_000_000 * book + 1000 + number
    text = "and god said, let there be light, and there was light, and it was so"
    old = {verse(book, n): text if book == 1 else text.replace("it was", "there was") for book in (1, 7) for n in (1, 2)}
    taught, asked = passages.split(old, old)
    sizes = [len(question.split()) for question, _ in taught]
    assert {3, 4, 7, 8, 11, 12, 15} <= set(sizes) and max(sizes) <= 16
    questions = {question for question, _ in taught}
    for name, (low, high) in passages.BINS.items():
        assert asked[name] and all(low <= len(question.split()) <= high for question, _ in asked[name])
        assert not questions & {question for question, _ in asked[name]} and len(set(asked[name])) == len(asked[name])


def test_scores_of_a_text_are_those_of_sacrebleu():
    sacrebleu = pytest.importorskip("sacrebleu")
    from experiments.seq2seq import study

    text, answer = "and it came to pass in those days", "it happened in those days"
    assert study.chrf(text, answer) == pytest.approx(sacrebleu.sentence_chrf(text, [answer]).score)
    assert study.bleu([text, text], [answer, text]) == pytest.approx(
        sacrebleu.corpus_bleu([text, text], [[answer, text]], tokenize="none").score
    )
