"""How each model is asked for the tokens of a held-out span, so that scores compare across architectures and objectives.

Three kinds of score of a target that stands between `left` and `right` in its document:

    suffix   the target given what stands left of it
    infill   the target given both sides
    pll      pseudo-log-likelihood: each token given all the others (arXiv 1910.14659). The later tokens of a word are
             hidden with it, so that a word cannot be guessed from its own end (arXiv 2305.10588, "PLL-word-l2r")

`SPAN_PROMPTS` is the table of what is asked of which model. A way is a pure function `(Span, Vocabulary) -> [Example]` with its
targets at the counted places alone (`where`), every weight 1. An infill's way is also that of a suffix: with no `right`.
A new objective gets its rows here.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from lm import config
from lm.errors import UserError, nearest
from lm.objectives import Vocabulary, reads_prefix, special_tokens
from lm.objectives.causal import stream
from lm.objectives.mixture import in_front, moved
from lm.types import WORD, Example, TokenStream

KINDS = ("suffix", "infill", "pll")


@dataclass(frozen=True)
class Span:
    """A target of whole words and what surrounds it in its document, all int32 [n]; `num_bytes` of the target in UTF-8."""

    left: np.ndarray
    target: np.ndarray
    right: np.ndarray
    num_bytes: int


Ask = Callable[[Span, Vocabulary], list[Example]]


@dataclass(frozen=True)
class SpanPrompt:
    """`normalised`: the probabilities of all targets of that many tokens sum to 1. If not, the score ranks targets of the
    same kind and model, and is no code length. `aligned`: the decoder's positions are those of the encoder's text."""

    ask: Ask
    normalised: bool
    note: str
    aligned: bool = False


# ------------------------------------------------------------------------------------------------------- how to ask


def join(*parts: np.ndarray | Sequence[int]) -> np.ndarray:
    """int32 [n], the parts one behind the other."""
    return np.concatenate([np.asarray(part, np.int32) for part in parts])


def answer(tokens: np.ndarray, count: int, *, encoder: TokenStream | None = None, prefix: int = 0) -> Example:
    """The last `count` tokens of what a decoder reads; the first `prefix` tokens are seen from both sides.

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


def hidden(span: Span, first: int, stop: int, mask: int) -> np.ndarray:
    """int32 [n]: the whole text, with the mask token at places first..stop-1 of the target.

    left [5], target [6 7 8], right [9], first 1, stop 3:  [5 6 M M 9]
    """
    return join(span.left, span.target[:first], np.full(stop - first, mask), span.target[stop:], span.right)


def word_ends(begins: np.ndarray) -> np.ndarray:
    """int64 [n]: for each token the place behind the last token of its word. `begins` are the tokens' boundaries, uint8 [n].

    target  [the un believ able .], which is three words
    ends    [  1  4      4    4 5]
    """
    starts, n = np.flatnonzero(begins == WORD), len(begins)
    return np.append(starts, n)[np.searchsorted(starts, np.arange(n), side="right")]


def causal_decoder(span: Span, v: Vocabulary) -> list[Example]:
    """`left target right`, all behind `left` counted."""
    return [answer(join(span.left, span.target, span.right), len(span.target) + len(span.right))]


def prefix_decoder(span: Span, v: Vocabulary) -> list[Example]:
    """The same, with `left` as the prefix."""
    count = len(span.target) + len(span.right)
    return [answer(join(span.left, span.target, span.right), count, prefix=len(span.left))]


def prefix_both(span: Span, v: Vocabulary) -> list[Example]:
    """encoder `left`, decoder `bos target right`."""
    count = len(span.target) + len(span.right)
    return [answer(join([v.bos_id], span.target, span.right), count, encoder=stream(span.left))]


def spans_decoder(span: Span, v: Vocabulary) -> list[Example]:
    """`left s0 right eos s0 target`; the prefix goes to eos, the target counts."""
    s0 = v.sentinel_ids[:1]
    given = join(span.left, s0, span.right, [v.eos_id])
    return [answer(join(given, s0, span.target), len(span.target), prefix=len(given))]


def spans_both(span: Span, v: Vocabulary) -> list[Example]:
    """encoder `left s0 right eos`, decoder `bos s0 target`; the target counts."""
    s0 = v.sentinel_ids[:1]
    given = stream(join(span.left, s0, span.right, [v.eos_id]))
    return [answer(join([v.bos_id], s0, span.target), len(span.target), encoder=given)]


def words(ask: Ask) -> Ask:
    """The same question of each word of the target by itself, with the other words on its sides."""

    def every(span: Span, v: Vocabulary) -> list[Example]:
        text, n = join(span.left, span.target, span.right), len(span.left)
        ends = np.unique(word_ends(v.boundaries(span.target))).tolist()
        pairs = zip([0, *ends], ends, strict=False)
        parts = (Span(text[: n + a], span.target[a:b], text[n + b :], 0) for a, b in pairs)
        return [example for part in parts for example in ask(part, v)]

    return every


def masked_both(span: Span, v: Vocabulary) -> list[Example]:
    """encoder `left M..M right eos`, decoder `bos left target`; the target counts."""
    n = len(span.target)
    encoder = stream(join(hidden(span, 0, n, _mask(v)), [v.eos_id]))
    return [answer(join([v.bos_id], span.left, span.target), n, encoder=encoder)]


def masked_both_pll(span: Span, v: Vocabulary) -> list[Example]:
    """For each token: the encoder lacks it and the rest of its word, the decoder has read all before it."""
    out = []
    for i, stop in enumerate(word_ends(v.boundaries(span.target)).tolist()):
        encoder = stream(join(hidden(span, i, stop, _mask(v)), [v.eos_id]))
        out.append(answer(join([v.bos_id], span.left, span.target[: i + 1]), 1, encoder=encoder))
    return out


def fim_decoder(span: Span, v: Vocabulary) -> list[Example]:
    """`P left S right M target`: prefix, suffix, middle, as the objective marks them; the target counts."""
    p, s, m = ([mark] for mark in special_tokens.fill_in_middle(v.sentinel_ids))
    return [answer(join(p, span.left, s, span.right, m, span.target), len(span.target))]


def infilled_both(span: Span, v: Vocabulary) -> list[Example]:
    """encoder `left M right eos`, one mask token for all of the target; decoder `bos left target`; the target counts."""
    encoder = stream(join(span.left, [_mask(v)], span.right, [v.eos_id]))
    return [answer(join([v.bos_id], span.left, span.target), len(span.target), encoder=encoder)]


def mass_both(span: Span, v: Vocabulary) -> list[Example]:
    """encoder `left M..M right eos`, decoder `M target` at the target's positions in the text; all of it counts."""
    n = len(span.target)
    e = answer(join([_mask(v)], span.target), n, encoder=stream(join(hidden(span, 0, n, _mask(v)), [v.eos_id])))
    decoder: Any = e.decoder
    return [replace(e, decoder=replace(decoder, positions=decoder.positions + len(span.left)))]


def masked_encoder(span: Span, v: Vocabulary) -> list[Example]:
    """For each token: it and the rest of the target are masked. The chain of these is a probability of the target."""
    n = len(span.target)
    return [_at(span, i, hidden(span, i, n, _mask(v))) for i in range(n)]


def masked_encoder_pll(span: Span, v: Vocabulary) -> list[Example]:
    """For each token: it and the rest of its word are masked."""
    ends = word_ends(v.boundaries(span.target)).tolist()
    return [_at(span, i, hidden(span, i, stop, _mask(v))) for i, stop in enumerate(ends)]


def between_ends(ask: Ask) -> Ask:
    """The same question of an encoder with bos and eos around the text, as a model of pairs reads one."""

    def framed(span: Span, v: Vocabulary) -> list[Example]:
        asked: list[Any] = ask(span, v)
        whole = [stream(join([v.bos_id], e.encoder.tokens, [v.eos_id])) for e in asked]
        return [replace(e, encoder=s, where=e.where + 1) for e, s in zip(asked, whole, strict=True)]

    return framed


def _at(span: Span, i: int, tokens: np.ndarray) -> Example:
    where = np.array([len(span.left) + i], np.int32)
    return Example(stream(tokens), None, span.target[i : i + 1], np.ones(1, np.float32), where)


def _mask(v: Vocabulary) -> int:
    if v.mask_id is None:
        raise UserError("masked scores need a mask token and the tokenizer has none; take another kind of model")
    return v.mask_id


# ------------------------------------------------------------------------------------------------------- the tables

CHAIN = "chain rule, left to right"
JOINT = "log p(target, right | left): an upper bound in nats, the right side's tokens are counted too"
ANSWER = "behind its sentinel; the answer's end mark is not counted"
TWO_SIDED = "behind its sentinel, which never ended an input in training as `right` does; the end mark is not counted"
REVEALED = "given its length in masks, revealed left to right"
REWRITTEN = "given its length in masks, the decoder rewriting the text up to it"
GAP = "given a gap of unknown length, the decoder rewriting the text up to it"
FIM = "behind the mark of the middle; where it ends is not counted"
MASS = "given its length in masks, left to right"
EACH = "each token given the rest, words left to right"
EACH_WORD = "each word by itself, given the rest"

SPAN_PROMPTS: dict[tuple[str, type], Mapping[str, SpanPrompt]] = {
    ("decoder", config.Causal): {
        "suffix": SpanPrompt(causal_decoder, True, CHAIN),
        "infill": SpanPrompt(causal_decoder, False, JOINT),
    },
    ("decoder", config.Prefix): {
        "suffix": SpanPrompt(prefix_decoder, True, CHAIN),
        "infill": SpanPrompt(prefix_decoder, False, JOINT),
    },
    ("decoder", config.SpanCorruption): {
        "suffix": SpanPrompt(spans_decoder, True, ANSWER),
        "infill": SpanPrompt(spans_decoder, True, TWO_SIDED),
        "pll": SpanPrompt(words(spans_decoder), False, EACH_WORD),
    },
    ("decoder", config.FillInMiddle): {
        "suffix": SpanPrompt(causal_decoder, True, CHAIN),
        "infill": SpanPrompt(fim_decoder, True, FIM),
        "pll": SpanPrompt(words(fim_decoder), False, EACH_WORD),
    },
    ("encoder", config.Masked): {
        "suffix": SpanPrompt(masked_encoder, True, REVEALED),
        "infill": SpanPrompt(masked_encoder, True, REVEALED),
        "pll": SpanPrompt(masked_encoder_pll, False, EACH),
    },
    ("encoder", config.NextSentence): {
        "suffix": SpanPrompt(between_ends(masked_encoder), True, REVEALED),
        "infill": SpanPrompt(between_ends(masked_encoder), True, REVEALED),
        "pll": SpanPrompt(between_ends(masked_encoder_pll), False, EACH),
    },
    ("encoder_decoder", config.Prefix): {
        "suffix": SpanPrompt(prefix_both, True, CHAIN),
        "infill": SpanPrompt(prefix_both, False, JOINT),
    },
    ("encoder_decoder", config.Masked): {
        "suffix": SpanPrompt(masked_both, True, REWRITTEN),
        "infill": SpanPrompt(masked_both, True, REWRITTEN),
        "pll": SpanPrompt(masked_both_pll, False, EACH),
    },
    ("encoder_decoder", config.Denoise): {
        "suffix": SpanPrompt(infilled_both, True, GAP),
        "infill": SpanPrompt(infilled_both, True, GAP),
        "pll": SpanPrompt(words(infilled_both), False, EACH_WORD),
    },
    ("encoder_decoder", config.Mass): {
        "suffix": SpanPrompt(mass_both, True, MASS, aligned=True),
        "infill": SpanPrompt(mass_both, True, MASS, aligned=True),
        "pll": SpanPrompt(words(mass_both), False, EACH_WORD, aligned=True),
    },
    ("encoder_decoder", config.SpanCorruption): {
        "suffix": SpanPrompt(spans_both, True, ANSWER),
        "infill": SpanPrompt(spans_both, True, TWO_SIDED),
        "pll": SpanPrompt(words(spans_both), False, EACH_WORD),
    },
}

NO_WAY: dict[tuple[str, type], str] = {
    # Its generator read the masks.
    ("encoder", config.ReplacedTokens): "this model never saw a mask token, as it read what another had filled in: no span "
    "can be hidden from it",
}

ONE_SIDED = "it reads left to right, and nothing can be asked of it given what follows; take 'suffix'"


def span_prompts(architecture: str, objective: config.Objective) -> Mapping[str, SpanPrompt]:
    """What may be asked of a model, by kind; UserError for an objective that the table does not know."""
    key = (architecture, type(objective))
    if isinstance(objective, config.Mixture):
        return _of_a_part(architecture, objective)
    if key in NO_WAY:
        raise UserError(NO_WAY[key])
    if key not in SPAN_PROMPTS:
        known = [config.kind_of(o) for a, o in SPAN_PROMPTS if a == architecture]
        kind = config.kind_of(key[1])
        raise UserError(f"no way to score spans under a model of '{kind}' ({architecture}){nearest(kind, known)}")
    if architecture == "decoder" and not reads_prefix(architecture, objective):
        return {kind: replace(way, ask=partial(_left_to_right, ask=way.ask)) for kind, way in SPAN_PROMPTS[key].items()}
    return SPAN_PROMPTS[key]


def _of_a_part(architecture: str, mixture: config.Mixture) -> Mapping[str, SpanPrompt]:
    """Each kind as the first part by name that has it is asked, its mode's token in front."""
    found: dict[str, SpanPrompt] = {}
    for name, part in sorted(mixture.parts.items()):
        try:
            known = span_prompts(architecture, part.objective)
        except UserError:
            continue
        for kind, way in known.items():
            settings: dict[str, Any] = dict(mixture=mixture, mode=part.mode, aligned=way.aligned)
            ask = way.ask if part.mode is None else partial(_in_mode, ask=way.ask, **settings)
            better = kind not in found or (way.normalised and not found[kind].normalised)
            if better:
                found[kind] = replace(way, ask=ask, note=f"as part '{name}': {way.note}")
    if not found:
        raise UserError("no part of this mixture has a way to score spans")
    return found


def _in_mode(span: Span, v: Vocabulary, *, ask: Ask, mixture: config.Mixture, mode: str, aligned: bool) -> list[Example]:
    """Behind the mode's token; `aligned` as in `lm.objectives.mixture.with_mode`."""
    token, out = special_tokens.modes(mixture, v.sentinel_ids)[mode], []
    asked: list[Any] = ask(span, v)
    for e in asked:
        read = "encoder" if e.encoder is not None else "decoder"
        where = e.where if e.encoder is not None and e.decoder is not None else e.where + 1
        e = replace(e, decoder=moved(e.decoder)) if aligned else e
        out.append(replace(e, **{read: in_front(getattr(e, read), token)}, where=where))
    return out


def _left_to_right(span: Span, v: Vocabulary, *, ask: Ask) -> list[Example]:
    """The same question, no part of it seen from both sides."""
    asked: list[Any] = ask(span, v)
    return [replace(e, decoder=replace(e.decoder, prefix=None)) for e in asked]


def examples(way: SpanPrompt, kind: str, span: Span, vocabulary: Vocabulary) -> list[Example]:
    """What is asked about a span: a suffix has nothing on its right."""
    return way.ask(replace(span, right=span.right[:0]) if kind == "suffix" else span, vocabulary)
