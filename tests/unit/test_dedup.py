"""Duplicates: the earlier document stays, whatever else happens."""

import random

import numpy as np

from lm import config
from lm.data.dedup import Dropped, _shingles, duplicates, sign

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


def test_near_duplicates_go_and_different_ones_stay():
    a, b = text(1), text(2)
    assert drops([b, a, changed(a, 4), changed(a, 120)]) == [Dropped(2, "near", 1)]


def test_the_estimate_is_the_jaccard_similarity():
    a = text(1, 3000)
    b = changed(a, 60)
    x, y = set(_shingles(a.split())), set(_shingles(b.split()))
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
    # What is written down here is what the fingerprint of prepared data relies on.
    signature = sign("the quick brown fox jumps over the lazy dog", NEAR)
    assert signature.exact.hex().startswith("05c6e08f1d9fdafa")
    assert signature.near.tolist()[:3] == [1565612536, 1757564827, 396795691]
