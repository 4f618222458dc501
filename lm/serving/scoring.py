"""Log-probabilities of the tokens of prompts and texts, and of those that fill masks, by a fixed set of compiled programs.

The numbers are those of `python -m lm.score` and of `lm.generation.samples.fill_masks`: the model is asked in the same way. But
rows are padded to buckets, so that no text needs a program of its own.

Axes: B rows, P predicted positions, V vocabulary, K likeliest tokens.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from lm import config
from lm.data.rows import blank, pack
from lm.data.rows import stack as stacked
from lm.errors import UserError
from lm.evaluation import text_scores
from lm.generation.padding import buckets
from lm.generation.samples import ask
from lm.losses.chunked import chunked_map, over_logits
from lm.losses.log_probs import forbid, log_softmax_at
from lm.models.transformer import Transformer, head_params
from lm.objectives import Lengths, of_texts, span_prompts
from lm.objectives.prompts import MASK, Span, examples, join
from lm.objectives.streams import stream
from lm.types import Example

ROWS = 4  # that are read at a time, if there are several
SPARE = 8  # tokens of a row that are kept for what an objective puts beside a text: mode, ends, sentinels


class Found(NamedTuple):
    """Of the targets of a row: P of them, or all."""

    log_probs: Any  # float32 [P], nats
    top: Any  # int32 [P, K], the likeliest tokens in their places
    top_log_probs: Any  # float32 [P, K]


@dataclass(frozen=True)
class _Score:
    """What `lm.evaluation.text_scores` asks of a score of spans."""

    per_span: np.ndarray
    normalised: bool
    note: str


class Scorer:
    """Scores by the model's own probabilities. `length`: tokens of a row; `top`: K."""

    def __init__(
        self, model: Transformer, params: Any, objective: config.Objective, tokenizer: Any, *, length: int, top: int
    ) -> None:
        self.model, self.params, self.objective, self.tokenizer, self.top = model, params, objective, tokenizer, top
        self.length, self.architecture = length, model.config.architecture
        self.kind = text_scores.kind_of(self.architecture, objective)
        self.way = span_prompts(self.architecture, objective)[self.kind]
        a = next(i for i, special in enumerate(tokenizer.special) if not special)
        some, none = np.array([a, a, a], np.int32), np.zeros(0, np.int32)
        begin = np.array([a if tokenizer.bos_id is None else tokenizer.bos_id], np.int32)
        asked = examples(self.way, self.kind, Span(begin, some, none, 0), tokenizer)
        streams: list[Any] = [s for e in asked for s in (e.encoder, e.decoder) if s is not None]
        names = ("prefix", "types", "blocks", "ahead")
        self._has: dict[str, Any] = {name: any(getattr(s, name) is not None for s in streams) for name in names}
        self._single = all(len(e.targets) == 1 for e in asked)  # a row for each token
        first: Any = asked[0].decoder
        alone = len(asked) == 1 and self.architecture == "decoder" and not any(self._has.values())
        # Whether a text is read from left to right, as the engine reads a prompt: then each of its tokens has a probability.
        self.in_order = alone and np.array_equal(first.tokens, join(begin, some)[:-1])
        self._none = np.zeros(model.config.vocab_size, bool)

    def warm(self) -> None:
        for size in buckets(self.length):
            for count in (1, ROWS):
                self._call([blank(self._lengths(size))] * count, self._none)

    # --------------------------------------------------------------------------------------------------------- asking

    def prompts(self, ids: Sequence[np.ndarray]) -> list[Found]:
        """Of each prompt, int32 [n], all tokens but the first, [n - 1]: each given those before it. For models that read
        `in_order`."""
        empty = np.zeros(0, np.int32)
        long = [i for i, prompt in enumerate(ids) if len(prompt) > 1]
        asked = [examples(self.way, self.kind, Span(ids[i][:1], ids[i][1:], empty, 0), self.tokenizer)[0] for i in long]
        found = dict(zip(long, self._found(asked, self._none), strict=True))
        none = Found(np.zeros(0), np.zeros((0, self.top), np.int32), np.zeros((0, self.top)))
        return [found.get(i, none) for i in range(len(ids))]

    def texts(self, texts: Sequence[str]) -> list[text_scores.TextScore]:
        """As `python -m lm.score` scores them, in windows."""
        length = self.length if self.in_order else self.length - SPARE
        settings: dict[str, Any] = dict(length=length, stride=max(1, length // 2), by=self._spans)
        return text_scores.score(self.model, self.params, self.objective, self.tokenizer, texts, **settings)

    def masks(self, prompt: str) -> Found:
        """The likeliest tokens at each mark of a prompt, among those that texts consist of. For encoders."""
        a = ask("encoder", self.tokenizer, self.objective, [prompt], 1, 0)
        read = np.concatenate([a.mode, a.ids[0]]).astype(np.int32)
        at = np.flatnonzero(read == self.tokenizer.mask_id)
        if not len(at):
            raise UserError(f"the text has no {MASK}: put one where a token is to be filled in")
        if len(read) > self.length:
            raise UserError(f"the text takes {len(read)} tokens, and {self.length} are read at once: shorten it")
        one = np.ones(1, np.float32)
        rows = [Example(stream(read), None, np.zeros(1, np.int32), one, np.array([i], np.int32)) for i in at.tolist()]
        found = self._found(rows, ~of_texts(self.tokenizer, self.model.config.vocab_size))
        return Found(*(np.concatenate(parts) for parts in zip(*found, strict=True)))

    def _spans(
        self, model: Any, params: Any, objective: Any, tokenizer: Any, spans: Sequence[Span], *, kind: str, **_: Any
    ) -> _Score:
        """What `lm.evaluation.spans.score` gives, of rows in buckets."""
        asked = [examples(self.way, kind, span, tokenizer) for span in spans]
        owner = np.repeat(np.arange(len(spans)), [len(some) for some in asked])
        found = self._found(list(itertools.chain.from_iterable(asked)), self._none)
        nats = np.bincount(owner, [-float(np.sum(f.log_probs, dtype=np.float64)) for f in found], len(spans))
        return _Score(nats, self.way.normalised, self.way.note)

    # --------------------------------------------------------------------------------------------------------- rows

    def _lengths(self, size: int) -> Lengths:
        c = self.model.config
        return Lengths(size if c.encoder else None, size if c.decoder else None, 1 if self._single else size, **self._has)

    def _found(self, rows: Sequence[Example], forbidden: np.ndarray) -> list[Found]:
        """Of each row its targets; rows of one bucket are read together."""
        sizes = [_size(row, self.length) for row in rows]
        out: list[Any] = [None] * len(rows)
        for size in sorted(set(sizes)):
            lengths, mine = self._lengths(size), [i for i, other in enumerate(sizes) if other == size]
            for some in (mine[at : at + ROWS] for at in range(0, len(mine), ROWS)):
                packed = [pack([rows[i]], lengths) for i in some]
                found = self._call(packed + [blank(lengths)] * (ROWS - len(some) if len(some) > 1 else 0), forbidden)
                for row, i in enumerate(some):
                    out[i] = Found(*(np.asarray(x[row, : len(rows[i].targets)]) for x in found))
        return out

    def _call(self, rows: Sequence[Example], forbidden: np.ndarray) -> Found:
        return jax.device_get(_scores(self.model, self.params, stacked(rows), forbidden, top=self.top))


@partial(jax.jit, static_argnames=("model", "top"))
def _scores(model: Transformer, params: Any, batch: Example, forbidden: jax.Array, *, top: int) -> Found:
    """[B, P], [B, P, K] and [B, P, K]: log-probabilities of the targets, and of the likeliest tokens in their places."""

    def fn(logits: jax.Array, targets: jax.Array) -> Found:
        logits = forbid(logits, forbidden)
        best, tokens = jax.lax.top_k(logits, top)
        rest = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
        return Found(log_softmax_at(logits, targets), tokens, best - rest)

    hidden: Any = model.apply({"params": params}, batch, method="hidden")
    return over_logits(
        chunked_map, fn, head_params(params), model.apply, hidden, (batch.targets,), model.config.vocab_size, None
    )


def _size(row: Example, most: int) -> int:
    """The bucket that a row is padded to. UserError if none has room."""
    needed = max(len(s.tokens) for s in (row.encoder, row.decoder) if s is not None)
    size = next((size for size in buckets(most) if size >= needed), None)
    if size is None:
        raise UserError(f"a text takes {needed} tokens as this model reads it, and {most} are read at once: shorten it")
    return size
