"""Word, character and sentence boundaries among tokens, from the bytes that each piece of a vocabulary stands for.

A boundary is a uint8 of `lm.types`: WORD if a word begins with the token, CHARACTER if only a character does, INSIDE if the
token begins with a later byte of a character. Each punctuation mark or symbol is a word. So is each character of a script
written without spaces, as in BERT's Chinese tokenizer: masking or scoring a clause as if it were one word would make no sense.
"""

import unicodedata
from collections.abc import Callable, Sequence

import numpy as np

from lm.types import CHARACTER, INSIDE, WORD

# Marks that end a sentence in Latin, Chinese and Japanese (also full and half width), Arabic, Urdu, Devanagari, Armenian,
# Ethiopic, Burmese and Khmer script; and the newline.
SENTENCE_ENDS = (
    ".!?\n\u2026\u2025\u203c\u2047\u2048\u2049\u3002\uff01\uff1f\uff0e\uff61"
    "\u061f\u06d4\u0964\u0965\u0589\u1362\u1367\u104b\u17d4"
)
_ENDS = tuple(mark.encode() for mark in SENTENCE_ENDS)
_LONGEST_END = max(map(len, _ENDS))
_LONGEST_CHARACTER = 4  # bytes

# First and last code points of scripts written without spaces: Thai and Lao, Burmese, Khmer, Chinese radicals, iteration marks,
# kana and bopomofo, more kana, ideographs (three ranges), half-width kana, ideographs of the supplementary planes.
UNSPACED = (
    (0x0E00, 0x0EFF),
    (0x1000, 0x109F),
    (0x1780, 0x17FF),
    (0x2E80, 0x2FDF),
    (0x3005, 0x3007),
    (0x3040, 0x312F),
    (0x31F0, 0x31FF),
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0xFF66, 0xFF9F),
    (0x20000, 0x3FFFF),
)
_FIRST, _LAST = np.array(UNSPACED).T


def unspaced(points: np.ndarray) -> np.ndarray:
    """bool [n] for code points [n]: a character, not a combining mark, of a script written without spaces."""
    found = np.searchsorted(_FIRST, points, side="right") > np.searchsorted(_LAST, points, side="left")
    found[found] = [unicodedata.category(chr(point))[0] != "M" for point in points[found]]
    return found


def boundary(piece: bytes) -> int:
    """The boundary at which a piece begins: INSIDE, CHARACTER or WORD. An incomplete character counts as a letter."""
    if not piece:
        return CHARACTER
    if 0x80 <= piece[0] < 0xC0:
        return INSIDE
    size = 1 + sum(piece[0] >= lead for lead in (0xC0, 0xE0, 0xF0))
    try:
        first = piece[:size].decode()
    except UnicodeDecodeError:
        return CHARACTER
    own_word = first.isspace() or unicodedata.category(first)[0] in "PSZ" or unspaced(np.array([ord(first)]))[0]
    return WORD if own_word else CHARACTER


def _incomplete(piece: bytes) -> bool:
    """Whether a piece is too short to hold its first character."""
    return bool(piece) and len(piece) < 1 + sum(piece[0] >= lead for lead in (0xC0, 0xE0, 0xF0))


class Pieces:
    """Boundaries by the pieces alone: a word begins where a piece begins with a space, a symbol or an unspaced character.

    pieces: the bytes that each id adds to a text.
    special: bool [V], ids that encoding never produces. Each is a word and ends no sentence.
    """

    def __init__(self, pieces: Sequence[bytes], special: np.ndarray) -> None:
        self.bytes, self.special = pieces, special
        self.begins = np.fromiter(map(boundary, pieces), np.uint8, len(pieces))
        self.begins[special] = WORD
        self.incomplete = np.fromiter(map(_incomplete, pieces), bool, len(pieces)) & ~special
        self.ends = np.fromiter((piece.endswith(_ENDS) for piece in pieces), bool, len(pieces)) & ~special

    def boundaries(self, tokens: np.ndarray) -> np.ndarray:
        """uint8 [n]. A token with only the first bytes of a character is judged together with the tokens after it."""
        out = self.begins[tokens]
        for i in np.flatnonzero(self.incomplete[tokens] & (out == CHARACTER)):
            out[i] = boundary(b"".join(self.bytes[t] for t in tokens[i : i + _LONGEST_CHARACTER]))
        return out

    def sentence_ends(self, tokens: np.ndarray) -> np.ndarray:
        """bool [n]: the text up to and including this token ends in one of SENTENCE_ENDS, whose bytes may be spread over
        several tokens."""
        out = self.ends[tokens]
        for i in np.flatnonzero(self.begins[tokens] == INSIDE):
            out[i] |= b"".join(self.bytes[t] for t in tokens[max(0, i - _LONGEST_END + 1) : i + 1]).endswith(_ENDS)
        return out


class Marked(Pieces):
    """For vocabularies that mark the pieces that begin a word (`opens`, bool [V]) or end one (`closes`, bool [V]): words begin
    there as well as where `Pieces` has them."""

    def __init__(
        self, pieces: Sequence[bytes], special: np.ndarray, opens: np.ndarray, closes: np.ndarray | None = None
    ) -> None:
        super().__init__(pieces, special)
        self.begins[opens] = WORD
        self.closes = closes if closes is not None and closes.any() else None

    def boundaries(self, tokens: np.ndarray) -> np.ndarray:
        out = super().boundaries(tokens)
        if self.closes is not None:
            out[1:][self.closes[tokens[:-1]]] = WORD
        return out


def characters(raw: bytes) -> tuple[str, np.ndarray]:
    """Decodes UTF-8. Returns the text, and int64 [characters + 1]: the byte offset of each character, and the end of the last.

    A byte that is not part of a complete character, as at the ends of a window, counts as a letter.
    """
    points = np.frombuffer(raw.decode("utf-8", "surrogateescape").encode("utf-32-le", "surrogatepass"), "<u4")
    alone = (points >= 0xD800) & (points < 0xE000)
    sizes = np.where(alone, 1, 1 + (points >= 0x80) + (points >= 0x800) + (points >= 0x10000).astype(np.int64))
    text = np.where(alone, ord("a"), points).astype("<u4").tobytes().decode("utf-32-le")
    return text, np.concatenate([[0], np.cumsum(sizes)])


def byte_level_alphabet() -> dict[str, int]:
    """Maps the characters of byte-level BPE (GPT-2) to bytes. A printable byte is spelled as itself, others from U+0100 on."""
    printed = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printed]
    return {chr(b): b for b in printed} | {chr(0x100 + i): b for i, b in enumerate(others)}


class ByteLevel(Pieces):
    """Byte-level BPE. Its words are those of the file's pre-tokenizer, which has to see the text: a token alone does not tell.

    unsplit: bool [V], special and added tokens, which are taken out of a text before the pre-tokenizer splits it.
    split: text -> the index of the first character of each word.
    drops_spaces: the pre-tokenizer removes white space, so a space in a token was inserted before a word. (If it removes spaces
        and inserts none, tokens do not show where words begin, and a run without punctuation counts as one word.)
    """

    def __init__(
        self,
        pieces: Sequence[bytes],
        special: np.ndarray,
        unsplit: np.ndarray,
        split: Callable[[str], Sequence[int]],
        drops_spaces: bool = False,
    ) -> None:
        super().__init__(pieces, special)
        self.unsplit, self.split = unsplit, split
        self.begins[unsplit] = WORD
        self.opens = np.array([drops_spaces and piece[:1].isspace() for piece in pieces])

    def boundaries(self, tokens: np.ndarray) -> np.ndarray:
        """uint8 [n]. The first token is taken to begin a word, unless it is INSIDE a character."""
        out = np.where(self.begins[tokens] == INSIDE, INSIDE, CHARACTER).astype(np.uint8)
        unsplit = self.unsplit[tokens]
        out[unsplit | self.opens[tokens]] = WORD
        for run in np.split(np.arange(len(tokens)), np.flatnonzero(np.diff(unsplit)) + 1):
            if len(run) and not unsplit[run[0]]:
                out[run] = np.maximum(out[run], self._words(tokens[run]))
        return out

    def _words(self, tokens: np.ndarray) -> np.ndarray:
        """uint8 [n] for tokens that are text: WORD where one of the pre-tokenizer's words begins, elsewhere INSIDE."""
        pieces = [self.bytes[t] for t in tokens]
        text, begins = characters(b"".join(pieces))
        at = np.cumsum([0, *map(len, pieces[:-1])])
        points = np.frombuffer(text.encode("utf-32-le"), "<u4")
        words = np.concatenate([np.array(self.split(text), int), np.flatnonzero(unspaced(points))])
        aligned = self.begins[tokens] != INSIDE
        return np.where(np.isin(at, begins[words]) & aligned, WORD, INSIDE).astype(np.uint8)
