"""Rollouts: the model writes answers to the questions of a step, which are graded.

A step's samples are a function of the run's seed, the number of the step and the parameters before it. Ids, mask and
log-probabilities travel together from the engine to the loss, and are never tokenised again. With tools, an answer has their
outputs too, which the loss passes over.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from lm import config, distributed, sharding
from lm.data import templates
from lm.data.corpus.prepare import Prepared
from lm.data.loader import Position
from lm.data.record_rows import RecordRows
from lm.data.records import Record
from lm.data.render import render_prompt
from lm.data.rows import blank, pack, stack
from lm.generation.engine import Engine, Request
from lm.generation.text_engine import text_engine
from lm.generation.tools import TOOLS, Answer, Calling, write
from lm.losses.policy import Method, Rollouts, varied
from lm.models.transformer import Transformer
from lm.objectives import Lengths
from lm.objectives.streams import stream
from lm.recipes.graders import Graders, question
from lm.types import Example

STEPS = 8  # tokens that are written between two looks for a call of a tool, at most
Prompt = tuple[np.ndarray | None, np.ndarray]  # ids that the encoder reads (None without one), and that the decoder begins with


class Asking:
    """How a run asks its questions, and what answers are: `rows` has the prompts."""

    def __init__(self, run: config.Run, rows: RecordRows) -> None:
        assert isinstance(run.recipe, config.Policy)
        self.recipe, self.tokenizer = run.recipe, rows.builder.tokenizer
        self.ends = ends_of(run.data, self.tokenizer)
        tools = [TOOLS[name] for name in self.recipe.tools]
        self.calling = Calling(self.tokenizer, tools, self.recipe.calls) if tools else None

    def request(self, prompt: Prompt, how: config.Sampling, samples: int = 1) -> Request:
        encoder, begun = prompt
        return Request(begun, self.recipe.answer, how, encoder, samples=samples)

    def text(self, answer: Answer) -> str:
        return self.tokenizer.decode([token for token in answer.tokens if token not in self.ends])


def ends_of(data: config.Data, tokenizer: Any) -> tuple[int, ...]:
    """The tokens that end an answer to a record of any source, whichever a question is from: eos, or the end of a turn."""
    template = templates.of(data.template, tokenizer)
    turn = render_prompt((), tokenizer)[1] if template is None else template.end
    return tuple(sorted({turn if s.format == "messages" else tokenizer.require("eos") for s in data.sources.values()}))


@dataclass(frozen=True)
class Question:
    """A question with the samples of its group and their rewards, float32 [group]; it is number `draws` in its place.
    `teaches`: whether some of the samples are better than others (`lm.losses.policy.varied`)."""

    prompt: Prompt
    record: Record
    answers: list[Answer]
    texts: list[str]
    rewards: np.ndarray
    draws: int
    teaches: bool


class Sampler:
    """A source of `lm.losses.policy.Rollouts`: call with (step, parameters).

    A step has one request for each question, whose samples share its prefill. With `method.draws`, a question that
    teaches nothing gives its place to another one, until so many have been there. The engine takes the parameters of each
    step without compiling anew. `latest` are the samples of the last step, with their rewards.
    """

    def __init__(
        self,
        run: config.Run,
        data: Prepared,
        rows: RecordRows,
        mesh: Mesh,
        position: Position,
        graders: Graders,
        method: Method,
    ) -> None:
        assert isinstance(run.recipe, config.Policy)
        self.run, self.recipe, self.rows, self.mesh, self.position = run, run.recipe, rows, mesh, position
        self.asking = Asking(run, rows)
        self.records = {name: data.records(name, "train") for name in data.train}
        self.graders, self.method = graders, method
        self.engine: Engine | None = None
        self.latest: list[dict[str, Any]] = []
        self.seconds, self.tokens = 0.0, 0  # of rollouts, but for the first, which compiles

    def __call__(self, step: int, params: Any) -> Rollouts:
        """The samples of a step, sharded as a batch is; the samples of a question are in consecutive rows."""
        group = self.recipe.group
        numbers = question_numbers(self.position.of(step), group, self.method.draws)
        jax.block_until_ready(params)  # otherwise, the step before would count as a rollout
        asked, places = {}, np.arange(len(numbers))
        for draw in range(self.method.draws):
            found = self._asked(numbers[places] + draw, params, draws=draw + 1)
            asked |= dict(zip(places.tolist(), found, strict=True))
            places = np.array([place for place in places.tolist() if not asked[place].teaches], np.int64)
            if not len(places):
                break
        questions = [asked[place] for place in range(len(numbers))]
        self.latest = [
            {"prompt": question(q.record), "text": text, "reward": float(reward)}
            for q in questions
            for text, reward in zip(q.texts, q.rewards, strict=True)
        ]
        given = [q.prompt for q in questions for _ in range(group)]
        answers, rewards = [a for q in questions for a in q.answers], np.concatenate([q.rewards for q in questions])
        draws = np.repeat(np.array([q.draws for q in questions], np.float32), group)
        batch = gathered(given, answers, rewards, self.rows.lengths, ends=self.asking.ends, draws=draws)
        return sharding.global_batch(lambda rows: jax.tree.map(lambda x: x[rows], batch), np.arange(len(answers)), self.mesh)

    def _asked(self, numbers: np.ndarray, params: Any, *, draws: int) -> list[Question]:
        """The questions of these numbers, each with the samples of its group."""
        prompts = self.rows.prompts(numbers)
        begun = time.perf_counter()
        requests = [self._request(number, prompt) for number, prompt in zip(numbers.tolist(), prompts, strict=True)]
        answers = write(self._engine(params), requests, self.asking.calling)
        if self.latest:
            self.seconds += time.perf_counter() - begun
            self.tokens += sum(sum(answer.own) for group in answers for answer in group)
        records = [self.records[name][number] for name, number in self.rows.records(numbers)]
        texts = [self.asking.text(answer) for group in answers for answer in group]
        graded, _ = self.graders(texts, [record for record in records for _ in range(self.recipe.group)])
        rewards = distributed.broadcast_array(graded)  # so that all hosts agree which questions give their places away
        n = self.recipe.group
        cut = truncated([answer for group in answers for answer in group], self.asking.ends)
        teaches = varied(rewards, cut, self.method, n)[::n] > 0
        of = lambda values, i: values[i * n : i * n + n]
        return [
            Question(prompts[i], record, answers[i], of(texts, i), of(rewards, i), draws, bool(teaches[i]))
            for i, record in enumerate(records)
        ]

    def _request(self, number: int, prompt: Prompt) -> Request:
        how = config.Sampling(temperature=self.recipe.temperature, seed=seed_of(self.run.train.seed, number))
        return self.asking.request(prompt, how, self.recipe.group)

    def _engine(self, params: Any) -> Engine:
        if self.engine is None:
            lengths, recipe, asking = self.rows.lengths, self.recipe, self.asking
            steps = min(STEPS, recipe.answer) if asking.calling else recipe.answer
            room: dict[str, Any] = dict(slots=self.run.train.batch_size, length=(lengths.decoder or 0) + 1, steps=steps)
            room |= dict(source=lengths.encoder or 0, prefix=lengths.prefix, ends=asking.ends, mesh=self.mesh)
            self.engine = text_engine(Engine, Transformer(self.run.model), params, asking.tokenizer, **room)
        self.engine.params = params
        return self.engine


def question_numbers(rows: np.ndarray, group: int, draws: int) -> np.ndarray:
    """The numbers, counted over the run, of the questions whose samples are these rows of a step, int64 [B / group]. With
    `draws` above 1, those up to the next number may take their places."""
    return rows[::group] // group * draws


def truncated(answers: Sequence[Answer], ends: Sequence[int]) -> np.ndarray:
    """float32 [n]: 1 where an answer was cut off, having none of the tokens that end one."""
    return np.array([answer.tokens[-1] not in ends for answer in answers], np.float32)


def seed_of(seed: int, number: int) -> int:
    """The seed of the samples of a run's question by its number."""
    return int(np.random.SeedSequence((seed, number)).generate_state(1)[0])


def gathered(
    prompts: Sequence[Prompt],
    answers: Sequence[Answer],
    rewards: np.ndarray,
    lengths: Lengths,
    *,
    ends: Sequence[int],
    draws: np.ndarray | None = None,
) -> Rollouts:
    """What was written after each prompt as arrays [B, ...] of the host. `draws`: float32 [B]; None: 1 each.

    decoder    [bos 7 8 eos 20 31 9]     prompt bos 7 8 eos, written 20 31 . eos, with 9 of a tool
    where      [3 4 5 6]
    targets    [20 31 9 eos]
    weights    [1 1 0 1]
    log_probs  [-1.3 -0.2 0 -0.7]        as the sampler drew them
    """
    rows, size = [], lengths.predicted or lengths.decoder or 0
    log_probs = np.zeros((len(answers), size), np.float32)
    for i, ((encoder, begun), answer) in enumerate(zip(prompts, answers, strict=True)):
        ids = np.array(answer.tokens, np.int32)
        log_probs[i, : len(ids)] = answer.log_probs
        decoder = np.concatenate([begun, ids[:-1]]).astype(np.int32)
        where = np.arange(len(begun) - 1, len(decoder), dtype=np.int32)
        prefix = np.arange(len(decoder)) < len(begun) if lengths.prefix else None
        streams = None if encoder is None else stream(encoder), stream(decoder, prefix)
        example = Example(*streams, ids, np.array(answer.own, np.float32), where if lengths.predicted else None)
        rows.append(pack([example], lengths))
    sizes = np.array([sum(answer.own) for answer in answers], np.int32)
    draws = np.ones(len(answers), np.float32) if draws is None else draws
    return Rollouts(stack(rows), log_probs, rewards.astype(np.float32), sizes, truncated(answers, ends), draws=draws)


def blank_row(lengths: Lengths) -> Rollouts:
    """A row of padding, as host arrays: the shapes of a batch without its leading axis."""
    example, zero = blank(lengths), np.float32(0)
    return Rollouts(example, np.zeros_like(example.weights), zero, np.int32(0), zero, draws=zero)
