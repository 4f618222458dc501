"""Rollouts: the model writes answers to the questions of a step, which are graded.

A step's samples are a function of the run's seed, the number of the step and the parameters before it. Ids, mask and
log-probabilities travel together from the engine to the loss, and are never tokenised again.
"""

import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from lm import config, sharding
from lm.data.corpus.prepare import Prepared
from lm.data.loader import Position
from lm.data.record_rows import RecordRows
from lm.data.rows import blank, pack, stack
from lm.generation.engine import Engine, Request, Written
from lm.generation.text_engine import text_engine
from lm.losses.policy import Rollouts
from lm.models.transformer import Transformer
from lm.objectives import Lengths
from lm.objectives.streams import stream
from lm.recipes.graders import Graders, question
from lm.types import Example


class Sampler:
    """A source of `lm.losses.policy.Rollouts`: call with (step, parameters).

    A step has one request for each question, whose samples share its prefill. The engine takes the parameters of each step
    without compiling anew. `latest` are the samples of the last step, with their rewards.
    """

    def __init__(
        self, run: config.Run, data: Prepared, rows: RecordRows, mesh: Mesh, position: Position, graders: Graders
    ) -> None:
        assert isinstance(run.recipe, config.Policy)
        self.run, self.recipe, self.rows, self.mesh, self.position = run, run.recipe, rows, mesh, position
        self.tokenizer, self.eos = data.tokenizer, data.tokenizer.require("eos")
        self.records = {name: data.records(name, "train") for name in data.train}
        self.graders = graders
        self.engine: Engine | None = None
        self.latest: list[dict[str, Any]] = []
        self.seconds, self.tokens = 0.0, 0  # of rollouts, but for the first, which compiles

    def __call__(self, step: int, params: Any) -> Rollouts:
        """The samples of a step, sharded as a batch is; the samples of a question are in consecutive rows."""
        group = self.recipe.group
        numbers = self.position.of(step)[::group] // group  # of questions, counted over the run
        prompts, located = self.rows.prompts(numbers), self.rows.records(numbers)
        jax.block_until_ready(params)  # otherwise, the step before would count as a rollout
        begun = time.perf_counter()
        requests = [self._request(number, *prompt) for number, prompt in zip(numbers.tolist(), prompts, strict=True)]
        written = [sample for of_request in self._engine(params).write(requests) for sample in of_request]
        if self.tokens or self.latest:
            self.seconds += time.perf_counter() - begun
            self.tokens += sum(map(len, written))
        ids = [np.array([each.token for each in sample], np.int32) for sample in written]
        texts = [self.tokenizer.decode([i for i in sample.tolist() if i != self.eos]) for sample in ids]
        records = [self.records[name][number] for name, number in located for _ in range(group)]
        rewards, _ = self.graders(texts, records)
        self.latest = [
            {"prompt": question(record), "text": text, "reward": float(reward)}
            for record, text, reward in zip(records, texts, rewards, strict=True)
        ]
        given = [prompt for prompt in prompts for _ in range(group)]
        batch = gathered(given, written, rewards, self.rows.lengths, eos=self.eos)
        return sharding.global_batch(lambda rows: jax.tree.map(lambda x: x[rows], batch), np.arange(len(ids)), self.mesh)

    def _request(self, number: int, encoder: np.ndarray | None, begun: np.ndarray) -> Request:
        how = config.Sampling(temperature=self.recipe.temperature, seed=seed_of(self.run.train.seed, number))
        return Request(begun, self.recipe.answer, how, encoder, samples=self.recipe.group)

    def _engine(self, params: Any) -> Engine:
        if self.engine is None:
            lengths, recipe = self.rows.lengths, self.recipe
            room: dict[str, Any] = dict(slots=self.run.train.batch_size, length=(lengths.decoder or 0) + 1, steps=recipe.answer)
            room |= dict(source=lengths.encoder or 0, prefix=lengths.prefix, ends=(self.eos,), mesh=self.mesh)
            self.engine = text_engine(Engine, Transformer(self.run.model), params, self.tokenizer, **room)
        self.engine.params = params
        return self.engine


def seed_of(seed: int, number: int) -> int:
    """The seed of the samples of a run's question by its number."""
    return int(np.random.SeedSequence((seed, number)).generate_state(1)[0])


Prompt = tuple[np.ndarray | None, np.ndarray]  # ids that the encoder reads (None without one), and that the decoder begins with


def gathered(
    prompts: Sequence[Prompt], written: Sequence[Sequence[Written]], rewards: np.ndarray, lengths: Lengths, *, eos: int
) -> Rollouts:
    """What was written after each prompt as arrays [B, ...] of the host.

    decoder    [bos 7 8 eos 20]     prompt bos 7 8 eos, written 20 eos
    where      [3 4]
    targets    [20 eos]
    log_probs  [-1.3 -0.2]          as the sampler drew them
    """
    rows, size = [], lengths.predicted or lengths.decoder or 0
    log_probs = np.zeros((len(written), size), np.float32)
    for i, ((encoder, begun), sample) in enumerate(zip(prompts, written, strict=True)):
        ids = np.array([each.token for each in sample], np.int32)
        log_probs[i, : len(sample)] = [each.drawn_log_prob for each in sample]
        decoder = np.concatenate([begun, ids[:-1]]).astype(np.int32)
        where = np.arange(len(begun) - 1, len(decoder), dtype=np.int32)
        prefix = np.arange(len(decoder)) < len(begun) if lengths.prefix else None
        streams = None if encoder is None else stream(encoder), stream(decoder, prefix)
        example = Example(*streams, ids, np.ones(len(ids), np.float32), where if lengths.predicted else None)
        rows.append(pack([example], lengths))
    sizes = np.array([len(sample) for sample in written], np.int32)
    cut = np.array([sample[-1].token != eos for sample in written], np.float32)
    return Rollouts(stack(rows), log_probs, rewards.astype(np.float32), sizes, cut)


def blank_row(lengths: Lengths) -> Rollouts:
    """A row of padding, as host arrays: the shapes of a batch without its leading axis."""
    example = blank(lengths)
    return Rollouts(example, np.zeros_like(example.weights), np.float32(0), np.int32(0), np.float32(0))
