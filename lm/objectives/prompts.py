"""How a model is asked: for the tokens of a held-out span, so that scores compare across objectives, and with a text prompt.

Three kinds of score of a `target` that stands between `left` and `right` in its document:

    suffix   the target given `left`
    infill   the target given both sides
    pll      pseudo-log-likelihood: each token given all the others (arXiv 1910.14659). The later tokens of a word are
             hidden with it, so that a word cannot be guessed from its own end (arXiv 2305.10588, "PLL-word-l2r")

An objective declares a `SpanPrompt` for each kind it can be asked for, and one `TextPrompt`. Here is what several share.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lm.errors import UserError
from lm.objectives.streams import stream, without_ends
from lm.objectives.vocabulary import Vocabulary
from lm.types import WORD, Example, TokenStream

KINDS = ("suffix", "infill", "pll")

# ---------------------------------------------------------------------------------------------------- held-out spans


@dataclass(frozen=True)
class Span:
    """A target of complete words and the tokens around it in its document, all int32 [n]."""

    left: np.ndarray  # from bos on, if the document begins here
    target: np.ndarray
    right: np.ndarray  # up to eos, if the document ends here
    num_bytes: int  # of the target in UTF-8


Ask = Callable[[Span, Vocabulary], list[Example]]


@dataclass(frozen=True)
class SpanPrompt:
    """One way to ask for a span.

    `ask` returns Examples whose targets are the scored tokens alone, at `where`, all of weight 1. The score of an infill is
    asked with the same function as that of a suffix, whose `right` is empty.
    """

    ask: Ask
    normalised: bool  # the probabilities of all targets of one length sum to 1; if not, scores rank but are no code lengths
    note: str  # said beside the score
    aligned: bool = False  # the decoder's positions are those of the encoder's text
    without_ends: bool = False  # training strips a document's bos and eos, and so they are left out of what is asked
    sees_end: bool = False  # an encoder reads the document's eos right behind a suffix, as it does in training
    rate: float | None = None  # share of the tokens that training masks, a mask each; None: it does not mask tokens so


# Notes that several objectives share.
CHAIN = "chain rule, left to right"
JOINT = "log p(target, right | left): an upper bound in nats, the right side's tokens are counted too"
REVEALED = "given its length in masks, revealed left to right"
EACH = "each token given the rest, words left to right"
EACH_WORD = "each word by itself, given the rest"
ONE_SIDED = "it reads left to right, and nothing can be asked of it given what follows; take 'suffix'"


def examples(way: SpanPrompt, kind: str, span: Span, vocabulary: Vocabulary) -> list[Example]:
    """The Examples that score a span; for a suffix its `right` is dropped, but for an eos alone where that is read."""
    left, right = span.left, span.right
    if kind == "suffix" and not (way.sees_end and right.tolist() == [vocabulary.eos_id]):
        right = right[:0]
    if way.without_ends:
        left, right = (without_ends(side, vocabulary.bos_id, vocabulary.eos_id) for side in (left, right))
    return way.ask(replace(span, left=left, right=right), vocabulary)


def join(*parts: np.ndarray | Sequence[int]) -> np.ndarray:
    """The parts concatenated, int32 [n]."""
    return np.concatenate([np.asarray(part, np.int32) for part in parts])


def answer(tokens: np.ndarray, count: int, *, encoder: TokenStream | None = None, prefix: int = 0) -> Example:
    """Scores the last `count` of the tokens that a decoder reads; it sees the first `prefix` tokens from both sides.

    tokens    [5 6 7 8 9], count 2, prefix 3
    decoder   [5 6 7 8]
    prefix    [1 1 1 0]
    where     [2 3]
    targets   [8 9]
    """
    last = len(tokens) - 1
    where = np.arange(last - count, last, dtype=np.int32)
    seen = np.arange(last) < prefix if prefix else None
    return Example(encoder, stream(tokens[:-1], seen), tokens[-count:], np.ones(count, np.float32), where)


def hide(span: Span, first: int, stop: int, v: Vocabulary) -> np.ndarray:
    """The text, int32 [n], with a mask for each of the target's tokens first..stop-1.

    left [5], target [6 7 8], right [9], first 1, stop 3:  [5 6 M M 9]
    """
    return join(span.left, span.target[:first], np.full(stop - first, mask_token(v)), span.target[stop:], span.right)


def mask_token(v: Vocabulary) -> int:
    """UserError if the tokenizer has none."""
    if v.mask_id is None:
        raise UserError("masked scores need a mask token and the tokenizer has none; take another kind of model")
    return v.mask_id


def word_ends(begins: np.ndarray) -> np.ndarray:
    """int64 [n]: for each token the index after the last token of its word. `begins` are the tokens' boundaries, uint8 [n].

    target  [the un believ able .], which is three words
    ends    [  1  4      4    4 5]
    """
    starts, n = np.flatnonzero(begins == WORD), len(begins)
    return np.append(starts, n)[np.searchsorted(starts, np.arange(n), side="right")]


def word_by_word(ask: Ask) -> Ask:
    """Asks for each word of the target separately, with the other words in `left` and `right`."""

    def each(span: Span, v: Vocabulary) -> list[Example]:
        text, n = join(span.left, span.target, span.right), len(span.left)
        ends = np.unique(word_ends(v.boundaries(span.target))).tolist()
        bounds = zip([0, *ends], ends, strict=False)
        words = (Span(text[: n + a], span.target[a:b], text[n + b :], 0) for a, b in bounds)
        return [example for word in words for example in ask(word, v)]

    return each


def without_prefix(span: Span, v: Vocabulary, *, ask: Ask) -> list[Example]:
    """Asks the same of a decoder that reads everything left to right."""
    asked: list[Any] = ask(span, v)
    return [replace(e, decoder=replace(e.decoder, prefix=None)) for e in asked]


# ------------------------------------------------------------------------------------------------------ text prompts

MASK = "[MASK]"  # in a prompt: what the model is to fill in

Render = Callable[[list[np.ndarray], Any, int, np.random.Generator], Sequence[Any]]


@dataclass(frozen=True)
class TextPrompt:
    """How a text prompt is put to a model.

    `render(parts, tokenizer, new_tokens, rng)` returns the ids of the prompt in pieces that are concatenated after bos; `parts`
    are the ids of the texts between its marks, `new_tokens` is how many an answer may have.
    """

    render: Render
    clean: Callable[[str], str] = str  # of the prompt's text, before it is split at its marks and tokenized
    # An encoder, or a decoder's prefix, reads it as a noised text: without bos, with eos at its end; but not where it `fills`.
    noised: bool = False
    sentinels: bool = False  # the answer may contain sentinels: each of them, and behind it what stands at its mark
    middle: bool = False  # the answer to a prompt with one mark is what stands there
    rewrites: bool = False  # an encoder-decoder answers with the whole text, its marks filled in
    fills: bool = False  # masks of its own behind the prompt are filled in, in several steps
    blocks: bool = False  # a decoder fills in blocks of masks behind the prompt, one after another
    at_once: bool = False  # a decoder reads masks behind the prompt, and writes all tokens of the answer in one pass
    from_masks: bool = False  # the decoder starts with a mask token, at the position of the first mask (MASS)

    @property
    def in_order(self) -> bool:
        """Whether a decoder writes the answer token by token, behind what it has read."""
        return not (self.fills or self.blocks or self.at_once or self.from_masks)


def as_is(parts: list[np.ndarray], tokenizer: Any, new_tokens: int, rng: np.random.Generator) -> Sequence[Any]:
    """The prompt's own tokens, which the answer continues."""
    return parts


def with_masks(parts: list[np.ndarray], tokenizer: Any, new_tokens: int, rng: np.random.Generator) -> Sequence[Any]:
    """A mask token at each mark."""
    if len(parts) > 1 and tokenizer.mask_id is None:
        raise UserError(f"a prompt of log.samples has {MASK} in it, and the tokenizer has no mask token: leave it out")
    return interleave(parts, [[tokenizer.mask_id]] * (len(parts) - 1))


def interleave(parts: list[np.ndarray], marks: list[list[int]]) -> list[Any]:
    """The parts with `marks[k]` after part k."""
    return [parts[0], *(piece for pair in zip(marks, parts[1:], strict=True) for piece in pair)]


def as_read(parts: list[str]) -> list[str]:
    """The parts of a text between its marks without a single space before a mark: tokens begin with the space before their
    word, so that it is part of what is filled in. Several spaces are an indentation, and stay."""
    single = lambda part: part.endswith(" ") and not part[-2:-1].isspace()
    return [*(part[:-1] if single(part) else part for part in parts[:-1]), parts[-1]]


def without_marks(prompt: str) -> str:
    """The prompt without its marks and trailing spaces."""
    return prompt.replace(MASK, "").rstrip()
