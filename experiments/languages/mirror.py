"""The corpus `sotu` in words, forwards or with the words of each document in the opposite order.

A text has one probability, in whichever order its words are predicted, so both languages have the same entropy. How much of
it a model learns may differ: arXiv 2401.17505 finds a small advantage of forwards.
"""

import re
from collections import Counter
from functools import cache

from experiments.languages import Language, write
from lm.data.corpus import sotu

WORDS = re.compile(r"\w+|[^\w\s]")
COMMON = 500  # the words that are kept; all others are written as RARE
RARE = "<rare>"
HELDOUT = 12  # every twelfth message, by date


@cache
def documents() -> list[list[str]]:
    """The words and punctuation marks of each message in lower case, oldest first."""
    read = [WORDS.findall(path.read_text(encoding="utf-8").lower()) for path in sotu.speeches()]
    common = {word for word, _ in Counter(word for words in read for word in words).most_common(COMMON)}
    return [[word if word in common else RARE for word in words] for words in read]


def language(*, backwards: bool = False) -> Language:
    texts = [" ".join(words[::-1] if backwards else words) for words in documents()]
    held = texts[HELDOUT // 2 :: HELDOUT]
    train = [text for i, text in enumerate(texts) if i % HELDOUT != HELDOUT // 2]
    return write("mirror-backwards" if backwards else "mirror", train, held)
