"""Masked language modelling (BERT, arXiv 1810.04805, section 3.1 and appendix A.1)."""

from collections.abc import Callable
from functools import partial

import numpy as np

from lm import config
from lm.objectives.declaration import Declaration, Lengths, Objective, Suit, both_lengths, required_length
from lm.objectives.prompts import (
    EACH,
    REVEALED,
    Span,
    SpanPrompt,
    TextPrompt,
    answer,
    hide,
    join,
    with_masks,
    word_ends,
)
from lm.objectives.spans import noise_mask
from lm.objectives.streams import reconstruct, stream, without_ends
from lm.objectives.vocabulary import Vocabulary, decoder_start, ends, of_texts, required_mask
from lm.types import CHARACTER, WORD, Example

_LONGEST = 24  # a word of more tokens is split into its characters, unless the budget is twice as large

Noise = Callable[[np.ndarray, np.random.Generator], tuple[np.ndarray, np.ndarray]]


def noise(
    tokens: np.ndarray,
    rng: np.random.Generator,
    *,
    rate: float,
    mask: float,
    random: float,
    mask_id: int,
    text: np.ndarray,
    ids: np.ndarray,
    independent: bool = False,
    mean_span: float = 1.0,
    boundaries: Callable[[np.ndarray], np.ndarray] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the corrupted tokens, int32 [n], and the sorted indices of the chosen ones, int32 [k].

    Chooses a share `rate` of the tokens that are text: `text` (bool [V]) has the ids that are, and `ids` (int64) lists them.
    The share holds on average, so a short text often has none; its number of chosen tokens is one of the two next to the
    share, or, if `independent`, any: each token is chosen with probability `rate`. With `mean_span` above 1 they are chosen in
    spans of that mean length, or of a greater one where the text between them runs out. With `boundaries` (a tokenizer's),
    complete words are chosen. Each chosen token becomes the mask token with probability `mask`, a random text token with
    probability `random`, or stays.

    tokens      [bos 20 21 22 23 24 25]
    corrupted   [bos 20  M 22 23  7 25]
    chosen      [2 5]
    """
    tokens = np.asarray(tokens, np.int32)
    candidates = np.flatnonzero(text[tokens])
    if len(candidates) == 0:
        return tokens, candidates.astype(np.int32)
    budget = rate * len(candidates)
    if independent:
        chosen = candidates[rng.random(len(candidates)) < rate]
    elif mean_span > 1:
        chosen = candidates[_in_spans(len(candidates), rounded(budget, rng), mean_span, rng)]
    elif boundaries is None:
        chosen = rng.choice(candidates, rounded(budget, rng), replace=False)
    else:
        chosen = _whole_words(candidates, boundaries(tokens)[candidates], budget, rng)
    chosen = np.sort(chosen).astype(np.int32)
    draw = rng.random(len(chosen))
    corrupted = tokens.copy()
    corrupted[chosen[draw < mask]] = mask_id
    swapped = chosen[(draw >= mask) & (draw < mask + random)]
    if len(swapped):  # pieces of a few words mostly have none, and an empty draw takes a fifth of the time
        corrupted[swapped] = ids[rng.integers(0, len(ids), len(swapped))]
    return corrupted, chosen


def rounded(amount: float, rng: np.random.Generator) -> int:
    """Rounds up or down at random with the mean `amount`, so that a rate holds for short texts too."""
    floor = int(amount)
    return floor + int(rng.random() < amount - floor)


def _in_spans(n: int, count: int, mean_span: float, rng: np.random.Generator) -> np.ndarray:
    """bool [n]: `count` of n tokens in spans of this mean length, at places that are all alike."""
    if not 0 < count < n:
        return np.full(n, count > 0)
    return noise_mask(n, rng, rate=count / n, mean_span=mean_span, roll=True)


def _whole_words(candidates: np.ndarray, begins: np.ndarray, budget: float, rng: np.random.Generator) -> np.ndarray:
    """Indices of complete words, `budget` on average, out of `candidates` (indices of text tokens, int [n]).

    Takes words in random order until one does not fit the rest of the budget, and takes that one with the probability that
    makes the expected number exact.

    `begins` (uint8 [n], see `lm.data.word_boundaries`) says what begins at each candidate. A word that is over half of the
    text, or longer than words usually are (text without spaces, an address, base 64), is split into its characters.
    """
    gap = np.diff(candidates, prepend=candidates[0] - 2) > 1
    words = np.split(candidates, np.flatnonzero((begins == WORD) | gap)[1:])
    longest = min(max(_LONGEST, int(budget) // 2), max(1, len(candidates) // 2))
    inner = np.split(begins >= CHARACTER, np.cumsum([len(word) for word in words])[:-1])
    parts: list[np.ndarray] = []
    for word, splits in zip(words, inner, strict=True):
        parts += np.split(word, np.flatnonzero(splits[1:]) + 1) if len(word) > longest else [word]
    chosen = [candidates[:0]]
    for i in rng.permutation(len(parts)):
        if len(parts[i]) > budget:
            chosen += [parts[i]] if rng.random() * len(parts[i]) < budget else []
            break
        chosen.append(parts[i])
        budget -= len(parts[i])
    return np.concatenate(chosen)


def encoder(tokens: np.ndarray, rng: np.random.Generator, *, noise: Noise) -> Example:
    """Predicts the chosen tokens from both sides. `where` has their indices; no logits are computed elsewhere.

    tokens    [bos 20 21 22 23 24 25]
    encoder   [bos 20  M 22 23  7 25]
    where     [ 2  5]
    targets   [21 24]
    weights   [ 1  1]
    """
    corrupted, chosen = noise(tokens, rng)
    targets = np.asarray(tokens, np.int32)[chosen]
    return Example(stream(corrupted), None, targets, np.ones(len(chosen), np.float32), chosen)


def encoder_decoder(tokens: np.ndarray, rng: np.random.Generator, *, noise: Noise, bos: int, eos: int) -> Example:
    """BERT-style denoising (T5, section 3.3.1): the decoder predicts the complete text.

    tokens    [20 21 22 23]
    encoder   [20  M 22 23 eos]
    decoder   [bos 20 21 22 23]
    targets   [20 21 22 23 eos]
    weights   [ 1  1  1  1  1]
    """
    tokens = without_ends(tokens, bos, eos)
    return reconstruct(tokens, noise(tokens, rng)[0], bos=bos, eos=eos)


def noise_of(c: config.Masked, v: Vocabulary) -> Noise:
    """`noise` with the settings of a config and a vocabulary; UserError if that has no mask token."""
    text = of_texts(v, v.vocab_size)
    return partial(
        noise,
        rate=c.rate,
        mask=c.mask,
        random=c.random,
        mask_id=required_mask(v, c),
        text=text,
        ids=np.flatnonzero(text),
        independent=c.independent,
        mean_span=c.mean_span,
        boundaries=v.boundaries if c.whole_word else None,
    )


def predicted(length: int, c: config.Masked, extra: int = 8) -> int:
    """Predictions in a row of this length: the expected number and some `extra`, as every document of a row rounds its own
    share, and four standard deviations of tokens that are chosen independently; rounded up to a multiple of 8."""
    spread = 4 * (length * c.rate * (1 - c.rate)) ** 0.5 if c.independent else 0.0
    return min(length, 8 * int(np.ceil((length * c.rate + spread + extra) / 8)))


def build_encoder(c: config.Masked, data: config.Data, v: Vocabulary) -> Objective:
    """Windows as long as the row."""
    length = required_length(data, "encoder_length")
    lengths = Lengths(length, None, predicted(length, c))
    return Objective(partial(encoder, noise=noise_of(c, v)), lengths, length, length, c.dynamic, shortest=1)


def build_encoder_decoder(c: config.Masked, data: config.Data, v: Vocabulary) -> Objective:
    """Windows one shorter than the shorter row, for eos or bos."""
    rows = both_lengths(data)
    make = partial(encoder_decoder, noise=noise_of(c, v), bos=v.bos_id, eos=v.eos_id)
    window = min(rows) - 1
    return Objective(make, Lengths(*rows), window, window, c.dynamic, shortest=1, ends=ends(v))


def ask_encoder(span: Span, v: Vocabulary) -> list[Example]:
    """For each token: it and the rest of the target are masked. The chain of these is a probability of the target."""
    n = len(span.target)
    return [_at(span, i, hide(span, i, n, v)) for i in range(n)]


def ask_encoder_pll(span: Span, v: Vocabulary) -> list[Example]:
    """For each token: it and the rest of its word are masked."""
    stops = word_ends(v.boundaries(span.target)).tolist()
    return [_at(span, i, hide(span, i, stop, v)) for i, stop in enumerate(stops)]


def _at(span: Span, i: int, tokens: np.ndarray) -> Example:
    """Scores token i of the target, at its own position in the encoder."""
    where = np.array([len(span.left) + i], np.int32)
    return Example(stream(tokens), None, span.target[i : i + 1], np.ones(1, np.float32), where)


def ask_encoder_decoder(span: Span, v: Vocabulary) -> list[Example]:
    """encoder `left M..M right eos`, decoder `bos left target`; the target is scored."""
    n = len(span.target)
    encoder = stream(join(hide(span, 0, n, v), [v.eos_id]))
    return [answer(join([decoder_start(v)], span.left, span.target), n, encoder=encoder)]


def ask_encoder_decoder_pll(span: Span, v: Vocabulary) -> list[Example]:
    """For each token: it and the rest of its word are masked in the encoder, and the decoder has read all before it."""
    out = []
    for i, stop in enumerate(word_ends(v.boundaries(span.target)).tolist()):
        encoder = stream(join(hide(span, i, stop, v), [v.eos_id]))
        out.append(answer(join([decoder_start(v)], span.left, span.target[: i + 1]), 1, encoder=encoder))
    return out


_REWRITTEN = "given its length in masks, the decoder rewriting the text up to it"

OBJECTIVE = Declaration(
    config.Masked,
    suits={
        "encoder": Suit(
            build_encoder,
            factors=False,
            reads_prefix=False,
            spans={
                "suffix": SpanPrompt(ask_encoder, True, REVEALED, sees_end=True),
                "infill": SpanPrompt(ask_encoder, True, REVEALED),
                "pll": SpanPrompt(ask_encoder_pll, False, EACH),
            },
        ),
        "encoder_decoder": Suit(
            build_encoder_decoder,
            factors=False,
            reads_prefix=False,
            spans={
                "suffix": SpanPrompt(ask_encoder_decoder, True, _REWRITTEN, without_ends=True),
                "infill": SpanPrompt(ask_encoder_decoder, True, _REWRITTEN, without_ends=True),
                "pll": SpanPrompt(ask_encoder_decoder_pll, False, EACH, without_ends=True),
            },
        ),
    },
    refused={
        "decoder": "a causal decoder does not see what follows a mask; take 'masked_diffusion', under which it does, "
        "'span_corruption', which asks for the same tokens after the text, or an encoder",
    },
    prompt=TextPrompt(with_masks, noised=True, rewrites=True),
    rate=lambda c: c.rate,
)
