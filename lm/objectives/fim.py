"""Fill-in-the-middle: next-token prediction of texts whose middle was moved to the end (arXiv 2207.14255, section 3)."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from lm import config
from lm.objectives import causal, special_tokens
from lm.objectives.declaration import Declaration, Lengths, Objective, Suit, required_length
from lm.objectives.prompts import (
    CHAIN,
    EACH_WORD,
    MASK,
    Span,
    SpanPrompt,
    TextPrompt,
    answer,
    join,
    without_marks,
    word_by_word,
)
from lm.objectives.streams import without_ends
from lm.objectives.vocabulary import Vocabulary
from lm.types import Example


def rearrange(
    tokens: np.ndarray,
    rng: np.random.Generator,
    *,
    suffix_first: float,
    marks: tuple[int, int, int],
    bos: int,
    eos: int,
) -> np.ndarray:
    """Cuts a text at two random tokens and moves its middle to the end, before an eos.

    P, S and M are the marks of prefix, suffix and middle: the last three sentinels. With probability `suffix_first` the
    suffix comes before the prefix, and the middle directly continues the prefix (the paper's second variant of SPM, whose
    marks are those of PSM). The paper cuts between characters.

    tokens         [bos 20 21 22 23 24 25 eos], cut before 22 and 24
    prefix first   [bos  P 20 21  S 24 25  M 22 23 eos]
    suffix first   [bos  P  S 24 25  M 20 21 22 23 eos]
    """
    text = without_ends(tokens, bos, eos)
    begin = tokens[:1] if tokens[0] == bos else tokens[:0]
    prefix, middle, suffix = np.split(text, np.sort(rng.integers(len(text) + 1, size=2)))
    p, s, m = ([mark] for mark in marks)
    order = [p, s, suffix, m, prefix, middle] if rng.random() < suffix_first else [p, prefix, s, suffix, m, middle]
    return np.concatenate([begin, *order, [eos]]).astype(np.int32)


def decoder(tokens: np.ndarray, rng: np.random.Generator, *, rate: float, **settings) -> Example:
    """Rearranges a share `rate` of the pieces. Every token is predicted, the marks too.

    tokens    [bos 20 21 22 eos], cut before 21 and 22
    decoder   [bos  P 20  S 22  M 21]
    targets   [  P 20  S 22  M 21 eos]
    weights   [  1  1  1  1  1  1  1]
    """
    return causal.decoder(rearrange(tokens, rng, **settings) if rng.random() < rate else tokens, rng)


def build_decoder(c: config.FillInMiddle, data: config.Data, v: Vocabulary) -> Objective:
    """Rearranging adds three marks and an eos, and the last token is only predicted."""
    length = required_length(data, "decoder_length")
    marks = special_tokens.fill_in_middle(v.sentinel_ids)
    make = partial(decoder, rate=c.rate, suffix_first=c.suffix_first, marks=marks, bos=v.bos_id, eos=v.eos_id)
    window = length - len(marks)
    return Objective(make, Lengths(None, length), window, window - 1, shortest=2, marks=len(marks))


def ask_infill(span: Span, v: Vocabulary) -> list[Example]:
    """decoder `P left S right M target`, after bos if `left` has one; the target is scored."""
    p, s, m = ([mark] for mark in special_tokens.fill_in_middle(v.sentinel_ids))
    begin = span.left[: int(len(span.left) > 0 and span.left[0] == v.bos_id)]
    left, right = (without_ends(side, v.bos_id, v.eos_id) for side in (span.left, span.right))
    return [answer(join(begin, p, left, s, right, m, span.target), len(span.target))]


def around_mark(parts: list[np.ndarray], tokenizer: Any, new_tokens: int, rng: np.random.Generator) -> Sequence[Any]:
    """A prompt with a mark as prefix and suffix; one without is continued."""
    if len(parts) == 1:
        return parts
    prefix, suffix, middle = special_tokens.fill_in_middle(tokenizer.sentinel_ids)
    return [[prefix], parts[0], [suffix], *parts[1:], [middle]]


def clean(prompt: str) -> str:
    """Strips trailing spaces of a prompt that is continued."""
    return prompt if MASK in prompt else without_marks(prompt)


_MIDDLE = "behind the mark of the middle; where it ends is not counted"

OBJECTIVE = Declaration(
    config.FillInMiddle,
    suits={
        "decoder": Suit(
            build_decoder,
            factors=False,
            reads_prefix=False,
            spans={
                "suffix": SpanPrompt(causal.ask, True, CHAIN),
                "infill": SpanPrompt(ask_infill, True, _MIDDLE),
                "pll": SpanPrompt(word_by_word(ask_infill), False, EACH_WORD),
            },
        )
    },
    refused={
        "encoder": "an encoder sees both sides of a gap as it is; take 'masked', or a decoder",
        "encoder_decoder": "the encoder sees both sides of a gap as it is; take 'span_corruption', or a decoder alone",
    },
    prompt=TextPrompt(around_mark, clean, middle=True),
)
