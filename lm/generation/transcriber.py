"""What is said in recordings, by a model that was trained with `lm.recipes.transcribe`: the likeliest texts of each."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm import distributed
from lm.config import Sampling
from lm.generation import beam, ctc
from lm.generation.engine import Request
from lm.generation.text_engine import engine_for, never_written
from lm.models.transformer import Transformer
from lm.types import Example, TokenStream

BLANK = 0  # of CTC: the tokenizer's <pad>, which no text has


@dataclass(frozen=True)
class Heard:
    """A text, and its log-probability in nats given the recording."""

    text: str
    log_prob: float


@dataclass(frozen=True)
class Transcriber:
    """Call with parameters and recordings, rows of a stream [B, T] -> the likeliest texts of each, the best first: one, or as
    many as `beams` finds."""

    model: Transformer
    tokenizer: Any
    answer: int  # tokens of a text with its end, at most
    beams: int = 1
    candidates: int = 16  # tokens that a search under CTC tries at each vector

    def __call__(self, params: Any, recordings: TokenStream) -> list[list[Heard]]:
        return (self._written if self.model.config.decoder else self._of_paths)(params, recordings)

    def _of_paths(self, params: Any, recordings: TokenStream) -> list[list[Heard]]:
        log_probs = distributed.fetched(outputs(self.model, params, recordings))
        sizes = distributed.fetched(recordings.segments).astype(bool).sum(axis=1)
        readings = []
        for row, size in zip(log_probs, sizes, strict=True):
            if self.beams == 1:
                readings.append([ctc.Reading(ctc.greedy(row[:size], BLANK), float(row[:size].max(axis=-1).sum()))])
            else:
                readings.append(ctc.search(row[:size], BLANK, beams=self.beams, candidates=self.candidates))
        return [[Heard(self._text(one.tokens), one.log_prob) for one in some] for some in readings]

    def _written(self, params: Any, recordings: TokenStream) -> list[list[Heard]]:
        tokenizer, size = self.tokenizer, len(recordings.tokens)
        heard = jax.tree.map(distributed.fetched, recordings)
        start = [i for i in [tokenizer.bos_id] if i is not None] or [tokenizer.require("pad")]
        prompt, streams = np.array(start, np.int32), [_row(heard, i) for i in range(size)]
        if self.beams > 1:
            never = never_written(tokenizer, self.model.config.vocab_size, [tokenizer.eos_id])
            how: dict[str, Any] = dict(beams=self.beams, new_tokens=self.answer, eos=[tokenizer.eos_id], forbidden=never)
            found = [beam.search(self.model, params, prompt, encoder=stream, penalty=0.0, **how) for stream in streams]
            return [[Heard(self._text(one.tokens), one.log_prob) for one in some] for some in found]
        requests = [Request(prompt, self.answer, Sampling(temperature=0.0), stream) for stream in streams]
        engine = engine_for(requests, self.model, params, tokenizer, slots=min(size, 16), ends=[tokenizer.eos_id])
        return [
            [Heard(self._text([w.token for w in said]), sum(w.log_prob for w in said))] for (said,) in engine.write(requests)
        ]

    def _text(self, tokens: Sequence[int]) -> str:
        return self.tokenizer.decode([token for token in tokens if token != self.tokenizer.eos_id])


def _row(stream: TokenStream, i: int) -> TokenStream:
    """Row i as a stream [1, T]."""
    return jax.tree.map(lambda x: x[i : i + 1], stream)


@partial(jax.jit, static_argnames="model")
def outputs(model: Transformer, params: Any, recordings: TokenStream) -> jax.Array:
    """Log-probabilities of tokens and the blank, float32 [B, T, V]."""
    example = Example(recordings, None, None, None)
    logits: Any = model.apply({"params": params}, example)
    return jax.nn.log_softmax(logits.astype(jnp.float32))
