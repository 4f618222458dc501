"""Masked tokens and next-sentence prediction (BERT, arXiv 1810.04805, section 3.1, task 2), or sentence order (ALBERT)."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from lm import config
from lm.errors import UserError
from lm.objectives import masked
from lm.objectives.declaration import Declaration, Lengths, Objective, Suit, required_length
from lm.objectives.masked import Noise
from lm.objectives.prefix import split
from lm.objectives.prompts import EACH, REVEALED, Ask, Span, SpanPrompt, TextPrompt, join, with_masks
from lm.objectives.streams import stream, without_ends
from lm.objectives.vocabulary import Vocabulary
from lm.types import Example


def encoder(
    tokens: np.ndarray,
    rng: np.random.Generator,
    other: np.ndarray | None = None,
    *,
    noise: Noise,
    negatives: float,
    answers: tuple[int, int],
    bos: int,
    eos: int,
) -> Example:
    """Pairs the first part of a text with its second part, or with text of another document (`other`): does it follow? If that
    is None, the wrong pairs are the two parts swapped, and are told from the right ones by their order alone.

    The answer is predicted at bos, in the vocabulary: `answers`, the first two sentinels, are yes (s0, it follows) and no
    (s1), where BERT has a pooler and a classifier of two classes. Every prediction has the same weight, where BERT adds the
    mean over masked tokens and the mean over pairs. The cut is at any token, because `other` begins at any: a cut at the
    end of a sentence would give the answer away. Without `other` text the answer is yes. A text of fewer than two tokens
    cannot be cut: it stands alone, and only its masks are predicted.

    tokens    [20 21 22 23 24], cut before 23, other [80 81 82 83]
    encoder   [bos 20  M 22 eos 81 82 eos]
    types     [  0  0  0  0   0  1  1   1]
    where     [ 0  2]
    targets   [s1 21]
    weights   [ 1  1]

    without `other`, swapped:
    encoder   [bos 23 24 eos 20  M 22 eos]
    """
    text = without_ends(tokens, bos, eos)
    elsewhere = text if other is None else without_ends(other, bos, eos)
    if len(text) < 2:
        alone = np.concatenate([[bos], text, [eos]]).astype(np.int32)
        e: Any = masked.encoder(alone, rng, noise=noise)
        return replace(e, encoder=replace(e.encoder, types=np.zeros(len(alone), np.int32)))
    follows = len(elsewhere) == 0 or rng.random() >= negatives  # drawn before anything that depends on the length
    first, second = np.split(text, [split(len(text), rng)])
    if not follows and other is None:
        first, second = second, first
    elif not follows:
        size = min(len(second), len(elsewhere))
        start = int(rng.integers(len(elsewhere) - size + 1))
        second = elsewhere[start : start + size]
    pair = np.concatenate([[bos], first, [eos], second, [eos]]).astype(np.int32)
    types = (np.arange(len(pair)) >= len(first) + 2).astype(np.int32)
    corrupted, chosen = noise(pair, rng)
    return Example(
        replace(stream(corrupted), types=types),
        None,
        np.concatenate([[answers[0 if follows else 1]], pair[chosen]]).astype(np.int32),
        np.ones(len(chosen) + 1, np.float32),
        np.concatenate([[0], chosen]).astype(np.int32),
    )


def build_encoder(c: config.NextSentence, data: config.Data, v: Vocabulary) -> Objective:
    """Windows three shorter than the row, for bos and two eos; each document of a row has one prediction more."""
    length = required_length(data, "encoder_length")
    if len(v.sentinel_ids) < 2:
        raise UserError("objective 'next_sentence' answers with two sentinels and the tokenizer has none; take 'masked'")
    lengths = Lengths(length, None, masked.predicted(length, c.masked, extra=16), types=2)
    settings = dict(negatives=c.negatives, answers=v.sentinel_ids[:2], bos=v.bos_id, eos=v.eos_id)
    make = partial(encoder, noise=masked.noise_of(c.masked, v), **settings)
    uses: dict[str, Any] = dict(needs_other=c.against == "other", sentinels=2)
    return Objective(make, lengths, length - 3, length - 3, c.masked.dynamic, shortest=1, **uses)


def between_ends(ask: Ask) -> Ask:
    """Asks the same with bos and eos around the text, as the model has read its pairs."""

    def framed(span: Span, v: Vocabulary) -> list[Example]:
        asked: list[Any] = ask(span, v)
        texts = [stream(join([v.bos_id], e.encoder.tokens, [v.eos_id])) for e in asked]
        return [replace(e, encoder=s, where=e.where + 1) for e, s in zip(asked, texts, strict=True)]

    return framed


def with_masks_and_eos(parts: list[np.ndarray], tokenizer: Any, new_tokens: int, rng: np.random.Generator) -> Sequence[Any]:
    """A mask token at each mark of a prompt, and eos at its end."""
    return [*with_masks(parts, tokenizer, new_tokens, rng), [tokenizer.eos_id]]


OBJECTIVE = Declaration(
    config.NextSentence,
    suits={
        "encoder": Suit(
            build_encoder,
            factors=False,
            reads_prefix=False,
            spans={
                "suffix": SpanPrompt(between_ends(masked.ask_encoder), True, REVEALED, without_ends=True),
                "infill": SpanPrompt(between_ends(masked.ask_encoder), True, REVEALED, without_ends=True),
                "pll": SpanPrompt(between_ends(masked.ask_encoder_pll), False, EACH, without_ends=True),
            },
        )
    },
    refused={
        "decoder": "a causal decoder has read nothing where the question is asked; take 'causal', or an encoder",
        "encoder_decoder": "the question is asked at a position of the encoder, and the loss is the decoder's; take "
        "'denoise', or an encoder alone",
    },
    prompt=TextPrompt(with_masks_and_eos),
    rate=lambda c: c.masked.rate,
)
