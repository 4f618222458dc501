"""Scores answers with a reward model: `Rewarder(saved.open(folder)).scores(prompts, answers)`."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from lm import config, saved, sharding
from lm.data import templates
from lm.data.examples import ExampleBuilder
from lm.data.records import Feedback, InvalidRecord, Message, parse
from lm.data.render import render
from lm.data.rows import blank, pack, stack
from lm.errors import UserError
from lm.losses.reward import rewards
from lm.models.transformer import Transformer

Asked = str | Sequence[Message]  # what an answer is to: the user's words, or a conversation up to the answer


class Rewarder:
    """A reward model and its parameters on a device. UserError for a saved model of another recipe.

    Every call has one shape, so that it is compiled once.
    """

    def __init__(self, source: saved.Saved, *, batch_size: int = 32, device: jax.Device | None = None) -> None:
        if source.run is None or not isinstance(source.run.recipe, config.Reward):
            raise UserError(f"{source.folder} is no reward model: train one with configs/life/reward.py")
        c = source.run.recipe
        self.tokenizer, self.batch_size, self.folder = source.tokenizer(), batch_size, source.folder
        self.template = templates.of(source.run.data.template, self.tokenizer)
        settings: dict[str, Any] = dict(length=c.length, answer=c.answer, prefix=bool(c.prefix))
        self.builder = ExampleBuilder(self.tokenizer, source.model.architecture, **settings)
        self.network = Transformer(source.model)
        device = device or jax.local_devices()[0]
        self.params, self.mesh = source.params(device=device), sharding.make_mesh(config.Mesh(), [device])

    def scores(self, prompts: Sequence[Asked], answers: Sequence[str], *, cut: bool = False) -> np.ndarray:
        """float32 [n]: the reward of each answer to its prompt. The first of two answers is better with probability
        sigmoid(first - second). UserError if one is too long for the model; with `cut`, of a long prompt the end is read, and
        of a long answer the beginning, with its last token behind it."""
        turns = [(Message("user", asked),) if isinstance(asked, str) else tuple(asked) for asked in prompts]
        records = [Feedback(before, answer, True) for before, answer in zip(turns, answers, strict=True)]
        found = [(r.ids, int(np.argmax(r.loss))) for r in render(records, self.tokenizer, self.template)]
        turns_ids = [(ids[:start], ids[start:]) for ids, start in found]
        return self.of_ids([self._cut(*turn) for turn in turns_ids] if cut else turns_ids)

    def _cut(self, before: np.ndarray, answer: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        b, first = self.builder, len(self.builder.bos)
        if len(before) > b.length:
            before = np.concatenate([before[:first], before[len(before) - b.length + first :]])
        return before, answer if len(answer) <= b.answer else np.concatenate([answer[: b.answer - 1], answer[-1:]])

    def of_json(self, values: Sequence[Any]) -> np.ndarray:
        """float32 [n], of objects {"prompt" or "messages", "completion"}. UserError, which names the record's number."""
        records: list[Any] = []
        for number, value in enumerate(values, 1):
            try:
                records.append(parse({**value, "label": True}, "feedback"))
            except InvalidRecord as error:
                raise UserError(f"record {number}: {error}") from None
        return self.scores([record.messages for record in records], [record.completion for record in records])

    def of_ids(self, turns: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
        """float32 [n], from ids before each answer, with bos, and those of the answer with the end of its turn."""
        b, lengths = self.builder, self.builder.reward_lengths
        for before, answer in turns:
            if len(before) > b.length or len(answer) > b.answer:
                raise UserError(
                    f"{len(before)} tokens are before an answer of {len(answer)}, and the reward model in {self.folder} reads "
                    f"{b.length} and {b.answer}: shorten them, or train it with more"
                )
        rows = [pack([b.reward_example(*turn)], lengths) for turn in turns]
        rows += [blank(lengths)] * (-len(rows) % self.batch_size)
        parts = [stack(rows[i : i + self.batch_size]) for i in range(0, len(rows), self.batch_size)]
        with sharding.use(self.mesh):  # a run may have set its own around this call
            found = [np.asarray(_rewards(self.network, self.params, part)) for part in parts]
        return np.concatenate([*found, np.zeros(0, np.float32)])[: len(turns)]


@partial(jax.jit, static_argnames="network")
def _rewards(network: Transformer, params: Any, example: Any) -> jax.Array:
    return rewards(params, network.apply, example)
