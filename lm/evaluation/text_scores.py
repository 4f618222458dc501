"""Whole texts of any length under a model: log-probability or pseudo-log-likelihood, perplexity, bits per byte; and the order
of hypotheses by it. For `python -m lm.score`."""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lm import config
from lm.data.tokenizer import Tokenizer
from lm.errors import UserError, nearest
from lm.evaluation import spans
from lm.models.transformer import Transformer
from lm.objectives import span_prompts
from lm.objectives.prompts import Span, join

WEIGHTS = np.concatenate([[0.0], np.geomspace(1e-3, 10, 41)])  # of a model's nats, of which the best is chosen


@dataclass(frozen=True)
class TextScore:
    """Of one text: its negative log-probability in nats, how many tokens and bytes of UTF-8 it has. `normalised`: whether it is
    one; a pseudo-log-likelihood is not, and `note` says so."""

    nats: float
    tokens: int
    bytes: int
    normalised: bool
    note: str

    @property
    def bits_per_byte(self) -> float:
        return self.nats / math.log(2) / max(self.bytes, 1)

    @property
    def perplexity(self) -> float:
        """Of a token; of one that is no probability it is called a pseudo-perplexity."""
        return math.exp(min(self.nats / max(self.tokens, 1), 700.0))


def kind_of(architecture: str, objective: config.Objective, asked: str | None = None) -> str:
    """The kind of score: the one that is asked for, or `suffix` where that is a probability of the text, or else `pll`."""
    known = span_prompts(architecture, objective)
    if asked is not None:
        if asked not in known or asked == "infill":
            raise UserError(
                f"--kind={asked} is not defined for whole texts of this model{nearest(asked, set(known) - {'infill'})}"
            )
        return asked
    suffix = known.get("suffix")
    return "suffix" if suffix is not None and (architecture != "encoder" or "pll" not in known) else "pll"


def windows(text: np.ndarray, inside: slice, *, length: int, stride: int, both: bool) -> list[Span]:
    """Spans of a text, int32 [n], that cover each of its tokens `inside` once, in windows of at most `length` tokens. What fits
    into one window is one span. Otherwise each has `stride` targets, with as much before them as there is room for, or with
    `both` as much on either side; left to right the first window is all targets.

    text [1 5 6 7 8 9], inside 1:6, length 4, stride 2, not both:  1 | 5 6 7    6 7 | 8 9
    """
    first, last = inside.start, inside.stop
    if len(text) <= length:
        cuts = [first, last]
    else:
        cuts = [*(range(first, last, stride) if both else (first, *range(length, last, stride))), last]
    out = []
    for start, stop in itertools.pairwise(cuts):
        room = length - (stop - start)
        before = min(start, max(room - (len(text) - stop), room // 2)) if both else min(start, room)
        after = stop + (room - before if both else 0)
        out.append(Span(text[start - before : start], text[start:stop], text[stop:after], 0))
    return out


def score(
    model: Transformer,
    params: Any,
    objective: config.Objective,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    *,
    length: int,
    stride: int,
    kind: str | None = None,
    batch_size: int = 8,
    by: Callable[..., Any] = spans.score,
) -> list[TextScore]:
    """The scores of the texts, by the model's own probabilities, in windows of `length` tokens (`windows`). A text begins with
    bos where the tokenizer has one, and an encoder sees its end. `by` scores the spans. UserError for a text of less than two
    tokens, and for unusable settings."""
    if not 1 <= stride < length:
        raise UserError(f"--stride={stride} must be 1 or more, and less than the window's --length={length}")
    kind = kind_of(model.config.architecture, objective, kind)
    ends = [[i] for i in (tokenizer.bos_id, tokenizer.eos_id if kind == "pll" else None) if i is not None]
    asked, owner, sizes = [], [], []
    for number, (text, ids) in enumerate(zip(texts, tokenizer.encode_batch(list(texts)), strict=True)):
        if len(ids) < 2:
            raise UserError(f"text {number + 1}, {text[:40]!r}, has {len(ids)} tokens; a score needs two or more: leave it out")
        # Without bos nothing stands before the first token, and a model that reads left to right does not predict it.
        begin = 0 if tokenizer.bos_id is not None or kind == "pll" else 1
        whole = join(*ends[:1], ids, *ends[1:]) if tokenizer.bos_id is not None else join(ids, *ends)
        first = begin + (tokenizer.bos_id is not None)
        some = windows(whole, slice(first, first + len(ids) - begin), length=length, stride=stride, both=kind == "pll")
        asked += some
        owner += [number] * len(some)
        sizes.append(len(ids) - begin)
    how: dict[str, Any] = dict(kind=kind, batch_size=batch_size, cure="lower --length", renormalise=False)
    found = by(model, params, objective, tokenizer, asked, **how)
    nats = np.bincount(owner, found.per_span, len(texts))
    about = found.normalised, found.note
    return [TextScore(float(n), size, len(t.encode()), *about) for n, size, t in zip(nats, sizes, texts, strict=True)]


# --------------------------------------------------------------------------------------------------------- hypotheses


@dataclass(frozen=True)
class Hypothesis:
    """One of several readings of an utterance, with the log-probability that a recogniser gives it."""

    utterance: str
    text: str
    score: float
    reference: str | None = None  # what was really said


def order(hypotheses: Sequence[Hypothesis], log_probs: Sequence[float], weight: float) -> dict[str, list[int]]:
    """For each utterance the indices of its hypotheses, the best first, by score + weight * log-probability of the text."""
    out: dict[str, list[int]] = {}
    for i, h in enumerate(hypotheses):
        out.setdefault(h.utterance, []).append(i)
    total = [h.score + weight * p for h, p in zip(hypotheses, log_probs, strict=True)]
    return {name: sorted(some, key=lambda i: -total[i]) for name, some in out.items()}


def errors(hypotheses: Sequence[Hypothesis], chosen: Iterable[int]) -> tuple[int, int]:
    """Word errors of these hypotheses (insertions, deletions, replacements), and words of their references."""
    wrong = words = 0
    for i in chosen:
        reference = (hypotheses[i].reference or "").split()
        wrong += distance(hypotheses[i].text.split(), reference)
        words += len(reference)
    return wrong, words


def distance(a: Sequence[str], b: Sequence[str]) -> int:
    """The least number of insertions, deletions and replacements that make `b` of `a`."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (x != y))
    return row[-1]


def tuned(hypotheses: Sequence[Hypothesis], log_probs: Sequence[float], utterances: Iterable[str]) -> float:
    """Of WEIGHTS the one with the fewest word errors in these utterances, the smallest of equals."""
    some = set(utterances)

    def wrong(weight: float) -> int:
        best = order(hypotheses, log_probs, weight)
        return errors(hypotheses, (best[name][0] for name in best if name in some))[0]

    return float(min(WEIGHTS, key=lambda weight: (wrong(weight), weight)))
