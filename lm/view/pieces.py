"""Tokens as people read them: bytes that are no text, spaces and control characters are visible."""

import unicodedata
from collections.abc import Mapping

from lm import config
from lm.data.tokenizer import Tokenizer
from lm.errors import printable
from lm.objectives import special_tokens

SPACE, NEWLINE, CARRIER = "␣", "⏎", "◌"  # the last carries a combining mark that begins a piece
KINDS = {  # of tokens
    "text": "text",
    "mask": "mask token",
    "sentinel": "sentinel",
    "role": "role of a turn",
    "special": "other special token",
}


def visible(raw: bytes) -> str:
    """The bytes of a piece as text: a space is ␣, a newline ⏎, another control or invisible character as in a Python literal
    (`\\x1b`, `\\u202e`), and a byte that is no UTF-8 <0xE2>."""
    text = "".join(map(_visible, raw.decode(errors="surrogateescape")))
    return CARRIER + text if text and unicodedata.combining(text[0]) else text


def _visible(c: str) -> str:
    if "\udc80" <= c <= "\udcff":
        return f"<0x{ord(c) - 0xDC00:02X}>"
    return {" ": SPACE, "\n": NEWLINE}.get(c) or printable(c)


class Pieces:
    """The texts and kinds of a tokenizer's ids. `names`: what special tokens stand for under an objective (`names_of`)."""

    def __init__(self, tokenizer: Tokenizer, names: Mapping[int, str] | None = None) -> None:
        self.tokenizer, self.names = tokenizer, names or {}
        self._kinds = dict.fromkeys(tokenizer.sentinel_ids, "sentinel") | dict.fromkeys(tokenizer.role_ids.values(), "role")
        if tokenizer.mask_id is not None:
            self._kinds[tokenizer.mask_id] = "mask"

    def text(self, i: int) -> str:
        """Token `i`: its text, or, of a special token, its name and what it stands for: `<extra_id_99>=prefix`."""
        if not self.tokenizer.special[i]:
            return visible(self.tokenizer.piece_bytes[i])
        name = printable(self.tokenizer.piece(i))
        return f"{name}={self.names[i]}" if i in self.names else name

    def kind(self, i: int) -> str:
        """One of KINDS."""
        return self._kinds.get(i, "special" if self.tokenizer.special[i] else "text")


def names_of(objective: config.Objective, tokenizer: Tokenizer) -> dict[int, str]:
    """What special tokens stand for under an objective that gives some a meaning of their own."""
    sentinels, found = tokenizer.sentinel_ids, dict[int, str]()
    match objective:
        case config.FillInMiddle():
            marks = special_tokens.fill_in_middle(sentinels)
            found = dict(zip(marks, ("prefix", "suffix", "middle"), strict=True))
        case config.NextSentence():
            found = dict(zip(sentinels, ("yes", "no"), strict=False))
        case config.Mixture():
            for part in objective.parts.values():
                found |= names_of(part.objective, tokenizer)
            found |= {i: name for name, i in special_tokens.modes(objective, sentinels).items()}
    return found
