"""Parts of a long text that know their place in it: `text[part.start : part.stop]` is the part, character for character."""

import bisect
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

WORD = re.compile(r"\w+")
CLOSED = "[\"'\u201d\u2019)]*"  # what stands behind the end of a sentence
SENTENCE = re.compile(rf"[^.!?\n]*(?:[.!?](?!{CLOSED}(?:\s|$)|[.!?])[^.!?\n]*)*(?:[.!?]+{CLOSED}|\n|$)")
CUTS = ("\n\n", "\n", ". ", " ")  # where a window ends, by preference


@dataclass(frozen=True)
class Part:
    """Characters start..stop of a text (from 0, stop excluded), in its lines first..last (from 1)."""

    text: str
    start: int
    stop: int
    lines: tuple[int, int]


class Document:
    """A text that is cut into parts."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._ends = [i for i, c in enumerate(text) if c == "\n"]

    def part(self, start: int, stop: int) -> Part:
        """The part between two places, without the white space at its ends."""
        found = self.text[start:stop]
        start += len(found) - len(found.lstrip())
        stop = max(start, start + len(found.strip()))
        line = lambda at: 1 + bisect.bisect_left(self._ends, at)
        return Part(self.text[start:stop], start, stop, (line(start), line(max(start, stop - 1))))

    def windows(self, size: int, overlap: int) -> list[Part]:
        """Windows of at most `size` characters, which begin about `overlap` before the end of the one before.

        One ends at the last empty line in its second half, or else at a line's, a sentence's or a word's end, and begins with a
        word. The first begins where the text does, and the last ends where it ends: nothing but white space is in no window.
        """
        found, start = list[Part](), 0
        while start < len(self.text):
            stop = self._cut(start, start + size)
            if (part := self.part(start, stop)).text:
                found.append(part)
            if stop >= len(self.text):
                break
            back = max(start + 1, stop - overlap)
            word = self.text.find(" ", back, stop)
            start = back if not overlap else stop if word < 0 else word
        return found

    def _cut(self, start: int, stop: int) -> int:
        if stop >= len(self.text):
            return len(self.text)
        for mark in CUTS:
            if (at := self.text.rfind(mark, start + (stop - start) // 2, stop)) > start:
                return at + len(mark)
        return stop

    def sentences(self, part: Part) -> list[Part]:
        """The sentences in a part, each with its own place."""
        every = (self.part(part.start + m.start(), part.start + m.end()) for m in SENTENCE.finditer(part.text) if m[0].strip())
        return list(every)

    @cached_property
    def _rarity(self) -> dict[str, float]:
        """How much a word says: the logarithm of the text's words for each time that it is there."""
        counts = Counter(words(self.text))
        total = counts.total()
        return {word: math.log(total / count) for word, count in counts.items()}

    def quote(self, part: Part, said: str, about: str) -> Part:
        """The sentence of a part that has most in common with what was `said` of it, and with what it was asked `about`.

        A sentence has the sum of the rarities of the words that it shares, over the fourth root of its number of words, so that
        a long one does not win by its length alone. Words of the question count half.
        """
        shared = {word: 0.5 for word in words(about)} | {word: 1.0 for word in words(said)}

        def score(sentence: Part) -> float:
            own = words(sentence.text)
            return sum(self._rarity.get(word, 0.0) * shared.get(word, 0.0) for word in set(own)) / (len(own) + 1) ** 0.25

        return max(self.sentences(part), key=score, default=part)


def words(text: str) -> Sequence[str]:
    return WORD.findall(text.casefold())
