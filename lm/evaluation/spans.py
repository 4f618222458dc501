"""Scores of the same held-out spans under models of any architecture and objective, in bits per byte of text.

How a model is asked, and whether the answer is a probability, is declared by its objective (`lm.objectives.prompts`).
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm import config
from lm.data.corpus.prepare import Prepared
from lm.data.corpus.store import Store
from lm.data.rows import blank, pack, permute, stack
from lm.data.tokenizer import Tokenizer
from lm.errors import UserError, nearest
from lm.losses.log_probs import token_scores
from lm.models.positions import check_positions
from lm.models.transformer import Transformer, head_params
from lm.objectives import Lengths, Vocabulary, of_texts, span_prompts
from lm.objectives.prompts import KINDS, ONE_SIDED, Span, examples, mask_token
from lm.types import WORD, Example

NOTHING_HELD_OUT = (
    "nothing was held out, so there is nothing to score: set data.holdout=0.05, or give a source with use=holdout"
)
_CHUNK = 4096  # random positions in the held-out data that are tried at a time
_NEAR = 8  # tokens to either side of a mask, in which other masks are counted
_FAR = 0.2  # how far their share is above the trained rate where that is told
_MULTIPLE = 16  # tokens of which a row's length is a multiple

# ------------------------------------------------------------------------------------------------------------ spans


def held_out_spans(prepared: Prepared, *, count: int, left: int, span: int, right: int, seed: int = 0) -> list[Span]:
    """`count` spans of `span` tokens with `left` and `right` tokens around them, each in one held-out document.

    A target is complete words: a word starts at its first token, and another after its last. The spans are drawn uniformly,
    without replacement, from all such positions, and depend only on the prepared data and the arguments.
    """
    if min(count, left, span, right) < 1:
        raise UserError(f"spans={count}, left={left}, span={span}, right={right}: each must be 1 or more")
    if not prepared.holdout:
        raise UserError(NOTHING_HELD_OUT)
    stores = [prepared.holdout[name] for name in sorted(prepared.holdout)]
    ends = np.cumsum([store.num_tokens for store in stores])
    total = int(ends[-1])
    found: list[Span] = []
    for first in range(0, total, _CHUNK):
        positions = permute(np.arange(first, min(first + _CHUNK, total)), total, (seed, 3))
        owner = np.searchsorted(ends, positions, side="right")
        windows = np.zeros((len(positions), left + span + right), np.int32)
        good = np.zeros(len(positions), bool)
        for s, store in enumerate(stores):
            mine = np.flatnonzero(owner == s)
            starts = positions[mine] - (ends[s] - store.num_tokens)
            inside = _inside(store, starts, windows.shape[1])
            windows[mine[inside]] = store.read(starts[inside], windows.shape[1])
            good[mine[inside]] = True
        for window in windows[good]:
            if _whole_words(window, left, span, prepared.tokenizer):
                found.append(_span(window, left, span, prepared.tokenizer))
            if len(found) == count:
                return found
    raise UserError(
        f"the held-out documents have {len(found)} positions for {left}+{span}+{right} tokens, and {count} are needed: "
        "take fewer or shorter spans, or raise data.holdout"
    )


def _inside(store: Store, starts: np.ndarray, length: int) -> np.ndarray:
    """bool [n]: whether the window of `length` tokens from each start is in one document."""
    document = np.searchsorted(store.offsets, starts, side="right")
    return starts + length <= store.offsets[document]


def _whole_words(window: np.ndarray, left: int, span: int, tokenizer: Tokenizer) -> bool:
    """Whether words start at the target and after it, and the window has no special tokens."""
    if tokenizer.special[window].any():
        return False
    return bool((tokenizer.boundaries(window)[[left, left + span]] == WORD).all())


def _span(window: np.ndarray, left: int, span: int, tokenizer: Tokenizer) -> Span:
    # By difference, because some tokenizers drop a leading space of what they decode.
    sizes = [len(tokenizer.decode(window[:n]).encode()) for n in (left, left + span)]
    return Span(window[:left], window[left : left + span], window[left + span :], sizes[1] - sizes[0])


def digest(spans: Sequence[Span]) -> str:
    """SHA-256 of all tokens, 64 hex digits: equal if two models were asked for the same spans."""
    sha256 = hashlib.sha256()
    for span in spans:
        for part in (span.left, span.target, span.right):
            sha256.update(len(part).to_bytes(4, "little") + part.astype("<i4").tobytes())
    return sha256.hexdigest()


# ----------------------------------------------------------------------------------------------------------- scores


@dataclass(frozen=True)
class Score:
    """Figures of one kind over all spans. `tokens`: scored positions; `bytes`: of the targets' text in UTF-8; `accuracy`: the
    share of scored positions whose likeliest token is right. Of each span, float64 [spans]: `per_span` in nats, and `hits`,
    its scored positions whose likeliest token is right.

    `far` says how what is asked differs from what the model was trained on, "" if it does not: a suffix is all masks, where a
    masked model was trained with few."""

    kind: str
    nats: float
    tokens: int
    bytes: int
    bits_per_byte: float
    accuracy: float
    normalised: bool
    note: str
    per_span: np.ndarray
    hits: np.ndarray
    far: str = ""

    def values(self) -> dict[str, np.ndarray]:
        """`bits_per_byte` and `accuracy` by span, float64 [spans], each scaled so that its mean is the figure of all spans."""
        size, tokens, count = max(self.bytes, 1), max(self.tokens, 1), len(self.per_span)
        return {"bits_per_byte": self.per_span * count / math.log(2) / size, "accuracy": self.hits * count / tokens}


def score(
    model: Transformer,
    params: Any,
    objective: config.Objective,
    tokenizer: Vocabulary,
    spans: Sequence[Span],
    *,
    kind: str,
    batch_size: int = 64,
    cure: str = "shorten left, span or right",
    renormalise: bool = True,
) -> Score:
    """The spans' negative log-probability under a model that was trained with `objective`. All rows have one shape.

    Probabilities are renormalised over the tokens of texts: a target's length is known, so special tokens (eos, the next
    sentinel, which a model of short spans soon expects) cannot follow. With `renormalise=False` they are the model's own.

    Raises UserError for an objective or a kind for which no prompt is declared, and for rows longer than the learned positions,
    with what to do (`cure`).
    """
    known = span_prompts(model.config.architecture, objective)
    if kind not in KINDS:
        raise UserError(f"no kind of score '{kind}'{nearest(kind, KINDS)}")
    if kind not in known:
        raise UserError(f"kind '{kind}' is not defined for this model: {ONE_SIDED}")
    asked = [examples(known[kind], kind, span, tokenizer) for span in spans]
    owner = np.repeat(np.arange(len(spans)), [len(of_span) for of_span in asked])
    rows = [example for of_span in asked for example in of_span]
    lengths = row_lengths(rows)
    check_positions(model.config, _reach(rows, "encoder"), _reach(rows, "decoder"), cure=cure)
    forbidden = ~of_texts(tokenizer, model.config.vocab_size) if renormalise else np.zeros(model.config.vocab_size, bool)
    nats, right = np.zeros(len(spans)), np.zeros(len(spans))
    for first in range(0, len(rows), batch_size):
        packed = [pack([example], lengths) for example in rows[first : first + batch_size]]
        packed += [blank(lengths)] * (batch_size - len(packed))  # keeps the shape of the batch
        losses, tops = (np.asarray(x, float) for x in row_scores(model, params, stack(packed), forbidden))
        mine = owner[first : first + batch_size]
        np.add.at(nats, mine, losses[: len(mine)])
        np.add.at(right, mine, tops[: len(mine)])
    tokens, size = sum(len(row.targets) for row in rows), sum(span.num_bytes for span in spans)
    total, prompt = float(nats.sum()), known[kind]
    bits = total / math.log(2) / max(size, 1)
    share = float(right.sum()) / max(tokens, 1)
    far = "" if prompt.rate is None else _far(masks_nearby(rows, mask_token(tokenizer)), prompt.rate)
    return Score(kind, total, tokens, size, bits, share, prompt.normalised, prompt.note, nats, right, far)


@partial(jax.jit, static_argnames="model")
def row_scores(model: Transformer, params: Any, batch: Example, forbidden: jax.Array) -> tuple[jax.Array, jax.Array]:
    """float32 [B] each: nats of a row's weighted targets among the tokens that are not `forbidden` (bool [V]), and how many
    of them are the most likely token."""
    sizes: dict[str, Any] = dict(head_params=head_params, vocab_size=model.config.vocab_size)
    found = token_scores(params, model.apply, batch, forbidden=forbidden, **sizes)
    return -jnp.sum(batch.weights * found.log_probs, axis=1), jnp.sum(batch.weights * found.is_top, axis=1)


def masks_nearby(rows: Sequence[Example], mask_id: int) -> float:
    """The share of masks among the _NEAR tokens to either side of each scored one, in what an encoder reads: a mean.

    encoder   [5 6 M M 9], and the first mask is scored:  1 of 4
    """
    shares = []
    for row in rows:
        assert row.encoder is not None
        masks = row.encoder.tokens == mask_id
        scored = np.flatnonzero(masks) if row.decoder is not None else row.where  # a decoder rewrites all masks
        for place in np.asarray(scored).tolist():
            near = masks[max(0, place - _NEAR) : place + _NEAR + 1]
            shares.append((near.sum() - 1) / max(len(near) - 1, 1))
    return float(np.mean(shares))


def _far(asked: float, trained: float) -> str:
    """Masks that are denser than in training hide what the model is used to seeing; fewer only show more."""
    if asked - trained <= _FAR:
        return ""
    return f"far from training: {asked:.0%} of the tokens near a scored one are masks, and {trained:.0%} were in training"


def row_lengths(rows: Sequence[Example]) -> Lengths:
    """The largest lengths of any row, those of streams rounded up so that calls often share a compiled shape; and which of the
    optional arrays the streams have."""

    def longest(name: str) -> int | None:
        sizes = [len(getattr(row, name).tokens) for row in rows if getattr(row, name) is not None]
        return -(-max(sizes) // _MULTIPLE) * _MULTIPLE if sizes else None

    streams: list[Any] = [stream for row in rows for stream in (row.encoder, row.decoder) if stream is not None]
    has: dict[str, Any] = {
        name: any(getattr(stream, name) is not None for stream in streams) for name in ("prefix", "types", "blocks", "ahead")
    }
    return Lengths(longest("encoder"), longest("decoder"), max(len(row.targets) for row in rows), **has)


def _reach(rows: Sequence[Example], name: str) -> int | None:
    """How many positions a stack needs. For MASS these are more than its decoder's tokens, which keep the text's positions."""
    streams = [stream for row in rows if (stream := getattr(row, name)) is not None]
    return max((int(np.max(stream.positions)) + 1 for stream in streams), default=None)
