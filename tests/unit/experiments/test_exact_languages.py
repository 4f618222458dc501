"""Languages of which something is known exactly: a grammar's entropy, a text's reverse, the rule of a cipher."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest

from experiments.languages import cipher, grammar, mirror

TINY = grammar.draw(1, levels=2, symbols=2, rules=3, leaves=2, vocabulary=5, child_counts=(1, 2))


def derivations(made: grammar.Grammar, symbol: int = 0):
    """(words, probability) of every derivation from a symbol."""
    for word, children, p in zip(made.words[symbol], made.children[symbol], made.probs[symbol], strict=True):
        if p > 0:
            for parts in itertools.product(*(list(derivations(made, c)) for c in children if c >= 0)):
                words = [w for part, _ in parts for w in part]
                yield [int(word), *words], float(p) * math.prod(q for _, q in parts)


@pytest.fixture(scope="module", params=["plain", "noisy"])
def tiny(request):
    """A small grammar with all its derivations."""
    made = grammar.noisy(TINY, 0.3, range(5, 8)) if request.param == "noisy" else TINY
    return made, list(derivations(made))


def test_every_sentence_has_one_derivation(tiny):
    _, every = tiny
    assert len(every) > 100
    assert len({tuple(words) for words, _ in every}) == len(every)
    assert sum(p for _, p in every) == pytest.approx(1.0)


def test_the_entropy_is_that_of_all_sentences(tiny):
    made, every = tiny
    nats, words = -sum(p * math.log(p) for _, p in every), sum(p * len(words) for words, p in every)
    assert made.entropy == pytest.approx(nats / words, rel=1e-12)
    assert made.expected.sum() == pytest.approx(words, rel=1e-12)


def test_the_next_words_distribution_is_that_of_all_sentences(tiny):
    made, every = tiny
    ahead = Counter()  # of every beginning, the probability of the sentences that begin so
    for words, p in every:
        for n in range(len(words) + 1):
            ahead[tuple(words[:n])] += p
    for words, _ in every[:: len(every) // 50]:
        exact = [math.log(ahead[tuple(words[: n + 1])] / ahead[tuple(words[:n])]) for n in range(len(words))]
        np.testing.assert_allclose(made.log_probs(words), exact, atol=1e-9)


def test_samples_have_the_probabilities_of_their_sentences(tiny):
    made, every = tiny
    drawn = Counter(map(tuple, made.sample(20_000, 0)))
    assert made.sample(50, 0) == made.sample(50, 0) != made.sample(50, 1)
    assert set(drawn) <= {tuple(words) for words, _ in every}
    likely = sorted(every, key=lambda pair: -pair[1])[:10]
    for words, p in likely:
        assert drawn[tuple(words)] / 20_000 == pytest.approx(p, abs=5 * math.sqrt(p / 20_000))


def test_what_is_no_sentence_is_refused():
    words = TINY.sample(1, 0)[0]
    for wrong in (words[:-1], [*words, words[0]], [9, *words[1:]]):
        with pytest.raises(ValueError, match="no sentence"):
            TINY.log_probs(wrong)


def test_a_grammar_that_may_be_ambiguous_is_refused():
    with pytest.raises(ValueError, match="two rules of symbol 0 have the same word"):
        grammar.Grammar(np.zeros((1, 2), int), np.full((1, 2, 1), -1), np.full((1, 2), 0.5), 0)


def test_noise_replaces_the_share_of_the_leaves_words_that_it_says():
    plain, noisy = grammar.made(), grammar.made(0.2)
    leaves = noisy.probs[noisy.first_leaf :]
    assert noisy.probs.sum(1) == pytest.approx(1.0)
    assert leaves[noisy.words[noisy.first_leaf :] >= grammar.VOCABULARY].sum() == pytest.approx(0.2 * len(leaves))
    np.testing.assert_array_equal(noisy.expected, plain.expected)  # the sentences' trees are the same
    share = plain.expected[plain.first_leaf :].sum() / plain.expected.sum()
    leaf = -sum(p * math.log(p) for p in plain.probs[-1])  # of all leaves
    more = -0.2 * math.log(0.2 / grammar.NOISE) - 0.8 * math.log(0.8) - 0.2 * leaf
    assert noisy.entropy - plain.entropy == pytest.approx(share * more)


def test_renaming_is_a_permutation_of_the_words():
    assert sorted(grammar.names(renamed=True)) == grammar.names() != grammar.names(renamed=True)


def test_backwards_is_the_same_text_in_the_opposite_order(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(mirror, "messages", lambda: [["a", "b", mirror.RARE], ["a"]] * 12)
    forwards, backwards = mirror.language(), mirror.language(backwards=True)
    for source, count in (("train", 22), ("heldout", 2)):
        one, other = ((tmp_path / x.folder[2:] / f"{source}.jsonl").read_text() for x in (forwards, backwards))
        assert one.count(f"a b {mirror.RARE}") == other.count(f"{mirror.RARE} b a") > 0
        assert len(one.splitlines()) == len(other.splitlines()) == count


def test_a_chain_is_as_likely_in_the_opposite_order(monkeypatch):
    monkeypatch.setattr(mirror, "DOCUMENTS", 1500)
    first, after = mirror.transitions()
    np.testing.assert_allclose(first[:, None] * after, (first[:, None] * after).T, rtol=1e-12)
    words = np.array([[int(word[1:]) for word in document] for document in mirror.chains()])
    nats = -np.log(first[words[:, 0]]) - np.log(after[words[:, :-1], words[:, 1:]]).sum(1)
    back = -np.log(first[words[:, -1]]) - np.log(after[words[:, 1:], words[:, :-1]]).sum(1)
    np.testing.assert_allclose(nats, back, rtol=1e-9)
    error = nats.std() / np.sqrt(len(nats)) / mirror.LENGTH
    assert nats.mean() / mirror.LENGTH == pytest.approx(mirror.entropy(), abs=4 * error)


def test_a_cipher_is_one_rule_for_all_messages():
    rule = {}
    for question, answer in cipher.messages(300, 4, 0) + cipher.messages(300, 4, 1):
        for word, sign in zip(question.removesuffix(" =").split(), answer.split(), strict=True):
            assert rule.setdefault(word, sign) == sign
    assert len(rule) == len(set(rule.values())) == cipher.WORDS
    assert cipher.messages(5, 3, 0) == cipher.messages(5, 3, 0) != cipher.messages(5, 3, 1)
