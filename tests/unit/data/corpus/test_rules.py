"""Rules of C4, Gopher and FineWeb: each on a text that breaks it alone, and the counts against plain Python."""

import random
from collections import Counter
from dataclasses import fields, replace

import numpy as np
import pytest

from lm import config
from lm.data.corpus import rules

SENTENCE = "the people of this land have to be with one another and that is a good thing for all of them number {}."
WORDS = "war peace union people states congress treaty commerce senate nation the of and to that have with be".split()


def prose(lines=8):
    """A text that breaks no rule of any set."""
    rng = random.Random(0)
    return "\n".join(" ".join(rng.choice(WORDS) for _ in range(14)).capitalize() + "." for _ in range(lines))


def off(section):
    """Gopher's rules with no upper or lower bound."""
    limits = {"min_words": 0, "min_mean_chars": 0.0, "max_mean_chars": 1e9, "symbols": 1e9, "letters": 0.0, "stop_words": 0}
    shares = {f.name: 1.0 for f in fields(section) if isinstance(getattr(section, f.name), float) and f.name not in limits}
    return replace(section, **limits, **shares, max_words=10**6, top_ngrams=(), repeated_ngrams=())


def test_prose_breaks_no_rule():
    text = prose()
    assert rules.gopher(text, config.Gopher()) is rules.fineweb(text, config.FineWeb()) is None
    assert rules.c4(text, config.C4()) == (text, None, 0)


@pytest.mark.parametrize(
    "name,text",
    [
        ("min_words", "the war and the peace"),
        ("max_words", "a " * 100_001),
        ("min_mean_chars", "a of " * 60),
        ("max_mean_chars", "constitutionally " * 60),
        ("symbols", prose() + " #" * 13),
        ("bullets", "\n".join(f"- {line}" for line in prose(12).split("\n"))),
        ("ellipses", "\n".join(line + ".." * (i % 2) for i, line in enumerate(prose(20).split("\n")))),
        ("letters", prose() + " 1234567" * 40),
        ("stop_words", " ".join(f"word{i}x" for i in range(60))),
        ("paragraphs", "\n\n".join(["Short."] * 9 + prose(12).split("\n"))),
        ("paragraph_chars", "\n\n".join([*prose(8).split("\n"), *[" ".join(prose(8).split("\n")[:3])] * 2])),
        ("lines", "\n".join(["Short."] * 9 + prose(12).split("\n"))),
        ("line_chars", "\n".join([*prose(9).split("\n"), *prose(9).split("\n")[:3]])),
        ("top_ngrams", " ".join(f"constitutional convention word{i} the of" for i in range(30))),
        ("repeated_ngrams", prose() + " " + " ".join(prose().replace("\n", " ").split()[:30])),
    ],
)
def test_each_rule_of_gopher(name, text):
    """The rule at its default is broken, and with it at no bound no other one is named first."""
    assert rules.gopher(text, config.Gopher()) == name
    assert rules.gopher(text, off(config.Gopher())) is None
    alone = {name: getattr(config.Gopher(), name)}
    assert rules.gopher(text, replace(off(config.Gopher()), **alone)) == name


def plain_top(words, n):
    grams = Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
    first, most = grams.most_common(1)[0]
    return len(" ".join(first)) * most if most > 1 else 0


def plain_covered(words, n):
    seen, covered = set(), set()
    for i in range(len(words) - n + 1):
        gram = tuple(words[i : i + n])
        if gram in seen:
            covered |= set(range(i, i + n))
        seen.add(gram)
    return sum(len(words[i]) for i in covered)


@pytest.mark.parametrize("kinds", [2, 5, 40])
def test_ngrams_are_counted_as_by_a_plain_loop(kinds):
    rng = random.Random(kinds)
    for size in (1, 2, 6, 11, 200):
        words = ["w" * rng.randint(1, 9) + str(rng.randrange(kinds)) for _ in range(size)]
        words += words[: size // 3]
        sizes = np.array([len(word) for word in words])
        for n, grams in rules._ngrams(words, 10):
            order = np.argsort(grams, kind="stable")
            equal = np.diff(grams[order]) == 0
            assert rules._covered_chars(order[1:][equal], sizes, n) == plain_covered(words, n)
            if equal.any():
                assert rules._top_chars(order, equal, sizes, n) == plain_top(words, n)
            else:
                assert plain_top(words, n) == 0


def test_c4_keeps_lines_that_end_as_sentences_do():
    good = [SENTENCE.format(i) for i in range(4)]
    bad = [
        "Home About Contact and some more words",
        "Too few words.",
        "This line ends in an ellipsis and so it goes...",
        "Please enable JavaScript to see all of this page.",
        "We have a privacy policy that you may want to read.",
        "This " + "x" * 1001 + " is a very long word in a line.",
    ]
    text = "\n".join(line for pair in zip(good, bad[:4], strict=True) for line in pair) + "\n" + "\n".join(bad[4:])
    assert rules.c4(text, config.C4()) == ("\n".join(good), None, 6)
    assert rules.c4(good[0] + "[12][citation needed]", config.C4(min_sentences=1))[0] == good[0]
    assert rules.c4(bad[0] * 3, config.C4(end_marks=False, min_sentences=1))[1:] == (None, 0)


@pytest.mark.parametrize(
    "name,line",
    [
        ("lorem_ipsum", "Lorem ipsum dolor sit amet and so on."),
        ("curly_bracket", "if (a < b) { return a.b.c and more; }."),
        ("min_sentences", None),
    ],
)
def test_c4_drops_documents(name, line):
    text = "\n".join([SENTENCE.format(1), SENTENCE.format(2), *([line] if line else [])])
    assert rules.c4(text, config.C4())[1] == name


@pytest.mark.parametrize(
    "name,text",
    [
        ("end_marks", "\n".join(f"A line of some words that does not end {i} times" for i in range(20))),
        ("end_marks", " \n "),
        ("short_lines", "\n".join(["A short line."] + [f"A line {i}." for i in range(8)] + [prose(1)])),
        ("repeated_chars", prose() + "\nA line that is there twice.\nA line that is there twice."),
        ("newlines", "\n".join(f"Constitutionality{i} unconstitutionally{i}." for i in range(9))),
    ],
)
def test_each_rule_of_fineweb(name, text):
    assert rules.fineweb(text, config.FineWeb(repeated_chars=0.01, newlines=0.3)) == name


def test_fineweb_as_the_paper_prints_it():
    """Of two equal lines one is repeated; line ends have no rule of their own."""
    assert (
        rules.fineweb("\n".join(["A line that is there and is longer than others."] * 2), config.FineWeb()) == "repeated_chars"
    )
    assert rules.fineweb(prose() + "\nA line that is there twice.\nA line that is there twice.", config.FineWeb()) is None


def test_thresholds_are_not_broken_by_what_is_equal_to_them():
    text = "\n".join(["One line."] * 3 + [f"line {i}." for i in range(7)])
    lines = replace(off(config.Gopher()), lines=0.2)
    assert rules.gopher(text, lines) is None  # two of ten lines are copies
    assert rules.gopher(text, replace(lines, lines=0.19)) == "lines"
