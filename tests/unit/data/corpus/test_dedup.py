"""Duplicates are found, and the earlier document stays."""

import random
import tracemalloc

import numpy as np
import pytest

from lm import config
from lm.data.corpus import dedup
from lm.data.corpus.dedup import _hashes, _shingles, sign, words
from tests.unit.data.corpus.sequential import Dropped, duplicates

NEAR = config.Dedup()


def text(seed, words=400):
    rng = random.Random(seed)
    return " ".join(rng.choice("abcdefgh") + str(rng.randrange(500)) for _ in range(words))


def changed(base, times, seed=0):
    words, rng = base.split(), random.Random(seed)
    for _ in range(times):
        words[rng.randrange(len(words))] = "changed"
    return " ".join(words)


def drops(texts, settings=NEAR):
    return duplicates([sign(t, settings) for t in texts], settings)


def test_exact_ignores_case_and_punctuation():
    a, b = text(1), text(2)
    assert drops([a, b, a.upper().replace(" ", ",\n")]) == [Dropped(2, "exact", 0)]


@pytest.mark.parametrize(
    "one, two",
    [
        ("दिन", "दीन"),  # vowel signs of Hindi, Tamil, Thai; points of Hebrew
        ("கிளி", "குளு"),
        ("กิน", "กัน"),
        ("שָׁלוֹם", "שָׁלֵם"),
        ("می‌خواهم", "میخواهم"),  # with and without a zero-width non-joiner
        ("C++", "C#"),
        ("a < b", "a > b"),
        ("x = -1", "x = 1"),
        ("f(x) += 1;", "f(x) -= 1;"),
        ("1.5", "15"),
        ("x²", "x2"),
        ("!ready", "ready"),
        ("100 €", "100 $"),
        ("👍", "👎"),
        ("中文", "日文"),
        ("café", "cafe"),
        ("it's", "its"),
        ("n! = 5", "n = 5"),
        ("x; y", "x: y"),
        ("x? y", "x! y"),
        ("5! + 1", "5 + 1"),
        ("a ? b : c", "a ? b ; c"),
        ("x = [1, 2]", "x = [1 2]"),
        ("std::a", "std:a"),
        ("the factorial n! grows", "the factorial n grows"),
    ],
)
@pytest.mark.parametrize("around", ["{}", "In a sentence: {}, of a few words more."])
def test_texts_that_differ_in_letters_marks_or_symbols_are_different(one, two, around):
    assert drops([around.format(one), around.format(two)]) == []


@pytest.mark.parametrize(
    "one, two",
    [
        ("Hello, world", "hello world."),
        ("Stop!  Now?", "stop\n\nnow"),
        ("यह दिन है।", "यह दिन है"),
        ("你好，世界。", "你好，世界"),
        ("…and so on...", "…AND so on"),
        ("He went; she, too, stayed. Émile? No.", "he went; she too stayed émile no"),
        ("दिन है। रात है", "दिन है रात है"),
        ("in 1945.\nThen", "In 1945\nthen"),
    ],
)
def test_case_space_and_sentence_punctuation_do_not_count(one, two):
    assert drops([one, two]) == [Dropped(1, "exact", 0)]


def test_words_of_all_scripts():
    assert list(words("If (x >= 1.5) Stop!")) == ["if", "(", "x", ">", "=", "1", ".", "5", ")", "stop"]
    assert list(words("दिन और रात।")) == ["दिन", "और", "रात"]
    assert list(words("กินdata中文2")) == ["กิ", "น", "data", "中", "文", "2"]
    assert list(words(" \n")) == []


def test_near_duplicates_of_a_script_without_spaces():
    rng = random.Random(0)
    letters = [rng.choice("的一是不了人我在有他这为之大来以个中上们") for _ in range(400)]
    changed = letters[:200] + ["口"] + letters[201:]
    other = [rng.choice(letters) for _ in range(400)]
    assert drops(["".join(letters), "".join(changed), "".join(other)]) == [Dropped(1, "near", 0)]


def test_a_long_text_is_signed_in_pieces(monkeypatch):
    whole = sign(text(1, 1000), NEAR)
    monkeypatch.setattr(dedup, "_CHUNK", 7)
    pieces = sign(text(1, 1000), NEAR)
    assert pieces.exact == whole.exact and np.array_equal(pieces.near, whole.near)


def test_a_long_text_costs_a_few_times_its_size(monkeypatch):
    monkeypatch.setattr(dedup, "_CHUNK", 1 << 10)  # words; the text has 60,000
    long = "some word and, then, another one. " * 10_000
    sign("what is imported at first", NEAR)
    tracemalloc.start()
    sign(long, NEAR)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * len(long)  # a list of the words takes twelve times the text


def test_near_duplicates_go_and_different_ones_stay():
    a, b = text(1), text(2)
    assert drops([b, a, changed(a, 4), changed(a, 120)]) == [Dropped(2, "near", 1)]


def test_the_estimate_is_the_jaccard_similarity():
    a = text(1, 3000)
    b = changed(a, 60)
    x, y = (set(_shingles(_hashes(text.split()))) for text in (a, b))
    true = len(x & y) / len(x | y)
    many = config.Dedup(permutations=1024)
    estimate = np.mean(sign(a, many).near == sign(b, many).near)
    assert 0.7 < true < 0.95
    assert abs(estimate - true) < 0.06  # four standard errors


def test_recall_above_the_threshold():
    pairs = [(text(i), changed(text(i), 5, i)) for i in range(40)]  # similarity about 0.88
    found = drops([t for pair in pairs for t in pair])
    assert len(found) >= 36 and all(d.index % 2 == 1 and d.kept == d.index - 1 for d in found)


def test_switches():
    a = text(1)
    assert drops([a, a, changed(a, 2)], config.Dedup(near=None)) == [Dropped(1, "exact", 0)]
    assert drops([a, a], config.Dedup(exact=False, near=None)) == []
    assert sign(a, config.Dedup(near=None)).near is None


def test_short_texts_and_symbols():
    assert drops(["one", "two", "***", "???", "one"]) == [Dropped(4, "exact", 0)]


def test_signatures_do_not_change():
    # The fingerprint of prepared data relies on these values; a change needs a new FORMAT.
    signature = sign("the quick brown fox jumps over the lazy dog", NEAR)
    assert signature.exact.hex().startswith("05c6e08f1d9fdafa")
    assert signature.near.tolist()[:3] == [1565612536, 1757564827, 396795691]


@pytest.mark.parametrize("near", [1e-30, 0.5, 0.99, 1.0])
@pytest.mark.parametrize("permutations", [2, 3, 128])
def test_every_threshold_that_a_config_may_have_works(near, permutations):
    """Near 1, the index would need fewer bands than the library allows."""
    settings = config.Dedup(exact=False, near=near, permutations=permutations)
    found = drops([text(1), text(2), text(1)], settings)
    assert Dropped(2, "near", 0) in found


def test_spaces_at_an_end_are_no_matter():
    """They are looked at once, not anew from each of them."""
    for space in (" ", "\u3000", "\x0c"):
        assert [*dedup.words("a b." + space * 100_000)] == ["a", "b"]
