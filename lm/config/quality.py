"""Published rules that tell text from noise, with their papers' thresholds: what `lm.data.corpus.quality` applies.

Each drops a document that breaks one of its rules. All are made for running text in English; for other languages change the
thresholds, and for code use none of them.
"""

from dataclasses import dataclass

from lm.config.ranges import Count, Name, Natural, NonNegative, Share
from lm.errors import UserError


@dataclass(frozen=True)
class Language:
    """The languages that are kept, by fastText's identification of 176 (`lm.data.corpus.language`)."""

    keep: tuple[Name, ...] = ("en",)  # ISO 639 codes, as fastText writes them
    least: Share = 0.65  # probability of a kept language (FineWeb, arXiv 2406.17557, section 3.3)

    def __post_init__(self) -> None:
        if not self.keep:
            raise UserError("keep=() leaves no document: name the languages that are kept, such as keep=('en',)")


@dataclass(frozen=True)
class Gopher:
    """The rules of MassiveText (Gopher, arXiv 2112.11446, appendix A1.1): quality, and repetition (Table A1).

    Shares of lines and paragraphs count those that are equal to an earlier one; shares of characters are of the document.
    """

    min_words: Natural = 50
    max_words: Count = 100_000
    min_mean_chars: NonNegative = 3.0  # of a word
    max_mean_chars: NonNegative = 10.0
    symbols: NonNegative = 0.1  # hashes, or ellipses, for each word, at most
    bullets: Share = 0.9  # of the lines begin with a bullet, at most
    ellipses: Share = 0.3  # of the lines end with an ellipsis, at most
    letters: Share = 0.8  # of the words have a letter, at least
    stop_words: Natural = 2  # of the, be, to, of, and, that, have, with, at least
    lines: Share = 0.30  # repeated, at most
    paragraphs: Share = 0.30
    line_chars: Share = 0.20  # characters in repeated lines
    paragraph_chars: Share = 0.20
    top_ngrams: tuple[Share, ...] = (0.20, 0.18, 0.16)  # characters in the most frequent 2-, 3- and 4-gram of words
    repeated_ngrams: tuple[Share, ...] = (0.15, 0.14, 0.13, 0.12, 0.11, 0.10)  # characters in repeated 5- to 10-grams


@dataclass(frozen=True)
class C4:
    """The rules of C4 (T5, arXiv 1910.10683, section 2.2), which drop lines and then documents.

    A line stays if it ends in one of . ! ? " and not in an ellipsis, has enough words, and mentions neither JavaScript nor a
    policy on cookies; citations such as [3] are cut out. A document is dropped if "lorem ipsum" or a curly bracket is in a line
    that stays, or if too few sentences are left. The first version of the paper has 3 words and 5 sentences.
    """

    end_marks: bool = True  # drop lines without an end mark; FineWeb (arXiv 2406.17557, section 3.5) does not
    min_words: Natural = 5  # of a line
    min_sentences: Natural = 3  # of a document
    max_word_chars: Count = 1000  # a line with a longer word is dropped


@dataclass(frozen=True)
class FineWeb:
    """The rules of FineWeb (arXiv 2406.17557, section 3.6), on lines that are not empty.

    The released code has `repeated_chars` 0.01 where the paper has 0.1, and one more rule, `newlines` 0.3.
    """

    end_marks: Share = 0.12  # of the lines end in punctuation that ends a sentence, at least
    repeated_chars: Share = 0.1  # characters in repeated lines, at most
    short_lines: Share = 0.67  # of the lines are short, at most
    short: Natural = 30  # characters of a short line, at most
    newlines: NonNegative | None = None  # line ends for each word, at most
