"""Held-out figures of fine-tuned models: the class from a head, the class whose words are most likely, or a written answer."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lm import distributed, sharding
from lm.config import Sampling
from lm.data.examples import ExampleBuilder
from lm.data.record_rows import RecordRows
from lm.data.records import Labelled, Pair, Record
from lm.evaluation.findings import interval_ends
from lm.evaluation.qa_metrics import Split, classified, exact, qa_metrics, words
from lm.generation.engine import Request
from lm.generation.padding import left_padded
from lm.generation.rank import rank
from lm.generation.text_engine import engine_for
from lm.losses.log_probs import log_probs
from lm.models.transformer import Transformer, head_params
from lm.types import Example, TokenStream

Batch = Callable[[np.ndarray], Example]  # row numbers, int64 [n] -> these rows; blank past the last


@dataclass(frozen=True)
class HeldOutRecords:
    """Call with parameters -> the metrics of held-out records, and `majority`, the baseline that a model has to beat.

    With `classes`: `accuracy`, and `nll` in nats a record, over the classes. Without: `exact` match and `f1` of the answers
    that the model writes, and `nll` in nats a token of the right ones; with conversations only `nll`. `items` is the number of
    tested answers. Of several sources each has its own too, but for `nll`: `<source>/exact`.
    """

    network: Transformer
    rows: RecordRows  # held out
    index: np.ndarray  # int64 [N]: numbers of the rows that are tested
    records: Mapping[str, Sequence[Record]]  # held out, by source
    trained: Sequence[Record]
    classes: tuple[str, ...]
    batch_size: int
    mesh: Mesh
    split: Split = words  # what is compared of written answers
    latest: dict[str, np.ndarray] = field(default_factory=dict)  # values of the latest call

    def __call__(self, params: Any) -> dict[str, float]:
        found = self.values(params)
        self.latest.update(found)
        metrics, answers = {name: float(values.mean()) for name, values in found.items()}, self._answers
        sources = np.array([name for name, _ in self.rows.records(self.index)])
        for source in dict.fromkeys(sources.tolist()) if (sources != sources[0]).any() else ():
            of = {name: values[sources == source] for name, values in found.items() if name != "nll"}
            metrics |= {f"{source}/{name}": float(values.mean()) for name, values in of.items()}
        if None not in answers:
            same = str.__eq__ if self.classes else partial(exact, split=self.split)
            trained = [answer for record in self.trained if (answer := _answer(record)) is not None]
            metrics["majority"] = majority(trained, answers, same)
        return metrics | {"items": len(answers)}

    def intervals(self) -> dict[str, list[float]]:
        """The ends of the 95 % intervals of the latest call's figures, over records."""
        return interval_ends(self.latest)

    def values(self, params: Any) -> dict[str, np.ndarray]:
        """The metrics of each record, float64 [N]. `nll` of written answers is scaled so that its mean is in nats a token."""
        chosen = np.append(self.index, np.full(self.batch_size, self.rows.count))  # past the last row: blank
        batch = lambda numbers: sharding.global_batch(self.rows.rows, chosen[numbers], self.mesh)
        sizes: dict[str, int] = dict(count=len(self.index), batch_size=self.batch_size)
        if self.rows.how == "head":
            return self._classified(head_logits(self.network, params, batch, **sizes))
        if self.classes:
            return self._classified(
                self._prompts.class_log_probs(self.network, params, self.classes, batch_size=self.batch_size)
            )
        nats, tokens = answer_losses(self.network, params, batch, **sizes)
        found = {"nll": nats / tokens.mean()}
        if None in self._answers:
            return found
        written = self._prompts.answers(self.network, params, batch_size=self.batch_size)
        return qa_metrics(written, self._answers, split=self.split) | found

    @property
    def _prompts(self) -> "Prompts":
        return Prompts(self.rows.builder, self.rows.prompts(self.index))

    @property
    def _answers(self) -> list[Any]:
        return [_answer(self.records[name][number]) for name, number in self.rows.records(self.index)]

    def _classified(self, scores: np.ndarray) -> dict[str, np.ndarray]:
        return classified(scores, np.array([self.classes.index(answer) for answer in self._answers]))


def _answer(record: Record) -> Any:
    """The text of a record's one answer; None for a conversation."""
    return record.label if isinstance(record, Labelled) else record.answer if isinstance(record, Pair) else None


def head_logits(network: Transformer, params: Any, batch: Batch, *, count: int, batch_size: int) -> np.ndarray:
    """float32 [count, C]: the head's logits of rows 0 .. count - 1, each of which has one position with logits."""
    found = [distributed.fetched(_logits(network, params, batch(index)))[:, 0] for index in _batches(count, batch_size)]
    return np.concatenate(found)[:count]


def answer_losses(
    network: Transformer, params: Any, batch: Batch, *, count: int, batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """float64 [count] each: nats of the answers in rows 0 .. count - 1, and their tokens."""
    parts = [_losses(network, params, batch(index)) for index in _batches(count, batch_size)]
    nats, tokens = (np.concatenate([distributed.fetched(part[i]) for part in parts]) for i in range(2))
    return np.asarray(nats[:count], float), np.asarray(tokens[:count], float)


@dataclass(frozen=True)
class Prompts:
    """What a model reads before each answer: ids for the encoder (None without one) and for the decoder."""

    builder: ExampleBuilder
    read: Sequence[tuple[np.ndarray | None, np.ndarray]]

    def class_log_probs(self, network: Transformer, params: Any, classes: Sequence[str], *, batch_size: int) -> np.ndarray:
        """float32 [N, C]: the log-probability of each class's words and the eos after them, given each prompt."""
        words = self.builder.answers(list(classes))
        candidates = np.zeros((len(words), max(map(len, words))), np.int32)
        weights = np.zeros(candidates.shape, np.float32)
        for i, ids in enumerate(words):
            candidates[i, : len(ids)], weights[i, : len(ids)] = ids, 1.0
        found = []
        for index in _batches(len(self.read), batch_size):
            prompt, encoder = self._batch(index)
            found.append(distributed.fetched(rank(network, params, prompt, candidates, weights, encoder=encoder)))
        return np.concatenate(found)[: len(self.read)]

    def answers(self, network: Transformer, params: Any, *, batch_size: int) -> list[str]:
        """The model's answer to each prompt: the most likely token at each step, up to eos; `batch_size` at the same time."""
        tokenizer, greedy = self.builder.tokenizer, Sampling(temperature=0.0)
        requests = [Request(decoder, self.builder.answer, greedy, encoder) for encoder, decoder in self.read]
        settings: dict[str, Any] = dict(slots=batch_size, ends=[tokenizer.eos_id], prefix=self.builder.prefix)
        written = engine_for(requests, network, params, tokenizer, **settings).write(requests)
        ids = [[w.token for w in sample if w.token != tokenizer.eos_id] for (sample,) in written]
        return [tokenizer.decode(some) for some in ids]

    def _batch(self, index: np.ndarray) -> tuple[TokenStream, TokenStream | None]:
        """The prompts numbered `index` for the decoder and for the encoder; past the last, the last prompt is repeated."""
        chosen = [self.read[min(i, len(self.read) - 1)] for i in index.tolist()]
        begun, encoded = [decoder for _, decoder in chosen], [encoder for encoder, _ in chosen if encoder is not None]
        if encoded:
            return left_padded(begun), left_padded(encoded, length=self.builder.length)
        return left_padded(begun, prefix=self.builder.prefix, length=self.builder.length), None


def majority(trained: Sequence[str], held_out: Sequence[str], same: Callable[[str, str], bool]) -> float:
    """The share of held-out answers that equal the most common training answer: a baseline for every model."""
    commonest = Counter(trained).most_common(1)[0][0]
    return float(np.mean([same(commonest, answer) for answer in held_out]))


def _batches(count: int, size: int) -> list[np.ndarray]:
    """0 .. count - 1 in arrays int64 [size]; the last one may contain larger numbers."""
    return [np.arange(first, first + size) for first in range(0, count, size)]


@partial(jax.jit, static_argnames="network")
def _logits(network: Transformer, params: Any, example: Example) -> Any:
    return network.apply({"params": params}, example)


@partial(jax.jit, static_argnames="network")
def _losses(network: Transformer, params: Any, example: Example) -> tuple[jax.Array, jax.Array]:
    """float32 [B] each: nats of a row's weighted targets, and their weights."""
    settings: dict[str, Any] = dict(head_params=head_params, vocab_size=network.config.vocab_size)
    found = log_probs(params, network.apply, example, **settings)
    return -jnp.sum(example.weights * found, axis=1), jnp.sum(example.weights, axis=1)
