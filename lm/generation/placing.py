"""What fills in the marks of a text, in its place: behind the space that it begins with, or joined to the word before it."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from lm.generation.texts import CONTEXT
from lm.objectives.prompts import MASK, as_read


def decoded(tokenizer: Any, before: Sequence[int] | np.ndarray, ids: Sequence[int] | np.ndarray) -> str:
    """The text of tokens that follow others, with the space that they begin with."""
    context = [int(i) for i in before[-CONTEXT:]]
    known = len(tokenizer.decode(context)) if context else 0
    return tokenizer.decode([*context, *map(int, ids)])[known:]


def placed(tokenizer: Any, parts: Sequence[str], spans: Sequence[str]) -> str:
    """The parts of a text with the spans between them, each with the space that it begins with.

    "the cat [MASK] here", " sat"  ->  "the cat sat here"
    "the cat [MASK] here", "s"     ->  "the cats here"
    """
    # Word pieces (BERT) are decoded with a space before each word, whatever stood there: the text's own space counts.
    spaced = tokenizer.decode(tokenizer.encode("(a")) != "(a"
    text, cut = "", as_read(list(parts))
    for part, short, span in zip(parts, cut, spans, strict=False):
        text += part + span.removeprefix(" ") if spaced and span.startswith(" ") else short + span
    return text + parts[-1]


def with_tokens(tokenizer: Any, text: str, tokens: Sequence[int], *, shown: str = "{}") -> str:
    """The text with a token at each of its marks, which `shown` may put into brackets."""
    parts, before, spans = text.split(MASK), list[int](), list[str]()
    for part, token in zip(as_read(parts)[:-1], tokens, strict=True):
        before += map(int, tokenizer.encode(part))
        span = decoded(tokenizer, before, [token])
        spans.append(" " * span.startswith(" ") + shown.format(span.removeprefix(" ")))
        before.append(int(token))
    found = placed(tokenizer, parts, spans)
    return found if parts[0] else found.removeprefix(" ")
