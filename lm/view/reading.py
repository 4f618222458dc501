"""What a run reads, step by step, without its model: the very rows that it trains on."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from lm import config, recipes
from lm.data.corpus.prepare import Prepared
from lm.data.loader import Position
from lm.data.rows import mixture_weights, pack, stack, tokens_of
from lm.errors import UserError
from lm.objectives.streams import stream
from lm.recipes import policy
from lm.recipes.distill_task import on_records
from lm.recipes.graders import answer
from lm.recipes.rollout import question_numbers
from lm.types import Example
from lm.view.pieces import Pieces, names_of
from lm.view.strips import Row, counted, row


@dataclass(frozen=True)
class Reading:
    """One split of a run's data. The data is prepared, or comes from the cache."""

    run: config.Run  # complete
    data: Prepared
    rows: Any  # `lm.data.rows.Rows` or a class with the same methods
    split: str

    @property
    def asks(self) -> bool:
        """Whether the run writes its answers itself, so that its rows begin as questions alone."""
        return isinstance(self.run.recipe, config.Policy)

    @property
    def names(self) -> list[str]:
        """The sources of this split."""
        return list(self.rows.sizes)

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each of them in the mixture."""
        return mixture_weights(self.run.data, tokens_of(self.rows.stores) if of_texts(self.run) else self.rows.sizes)

    @property
    def pieces(self) -> Pieces:
        names = names_of(self.run.objective, self.data.tokenizer) if of_texts(self.run) else {}
        return Pieces(self.data.tokenizer, names)

    def numbers(self, step: int) -> np.ndarray:
        """int64 [B]: the rows that step `step`, from 1, trains on; of a run that answers, the questions that it asks."""
        index, recipe = Position(0, 0, self.run.train.batch_size).of(step - 1), self.run.recipe
        return question_numbers(index, recipe.group, self.draws) if isinstance(recipe, config.Policy) else index

    def step_of(self, number: int) -> int:
        """The step, from 1, that trains on row `number`, or asks it first."""
        return 1 + number // self.draws // len(self.numbers(1))

    @property
    def draws(self) -> int:
        """How many rows stand for one of a step: of a policy, further questions where one teaches nothing."""
        return policy.method_of(self.run.recipe).draws if isinstance(self.run.recipe, config.Policy) else 1

    @property
    def count(self) -> int:
        """How many rows there are: held-out rows, or training rows that the run reads."""
        if self.split != "train":
            return self.rows.count
        steps = self.run.train.steps
        return int(self.numbers(steps)[-1]) + self.draws if steps else 0

    def batch(self, index: np.ndarray) -> Any:
        """Rows `index`, as a batch of the run; of one that answers, an Example of the questions, without predictions."""
        return self._questions(index) if self.asks else self.rows.rows(index)

    def _questions(self, index: np.ndarray) -> Example:
        lengths, none, examples = self.rows.lengths, np.zeros(0, np.int32), []
        for encoder, begun in self.rows.prompts(index):
            prefix = np.ones(len(begun), bool) if lengths.prefix else None
            streams = None if encoder is None else stream(encoder), stream(begun, prefix)
            examples.append(pack([Example(*streams, none, none.astype(np.float32), none)], lengths))
        return stack(examples)

    def shown(self, index: np.ndarray) -> list[Row]:
        """Rows `index`, ready to be shown."""
        batch, pieces, told = self.batch(index), self.pieces, target_text(self.run, self.data, self.pieces)
        sources, facts = self.rows.sources(index).tolist(), self._facts(index)
        return [
            row(batch, i, f"{self._title(number)}, of source {self.names[sources[i]]}", pieces, told, **facts[i])
            for i, number in enumerate(index.tolist())
        ]

    def _title(self, number: int) -> str:
        if self.split != "train":
            return f"held-out row {number:,} of {self.count:,}"
        return f"row {number:,}, of step {self.step_of(number):,} of {self.run.train.steps:,}"

    def _facts(self, index: np.ndarray) -> list[dict[str, str]]:
        recipe = self.run.recipe
        if not isinstance(recipe, config.Policy):
            return [{}] * len(index)
        records = {name: self.data.records(name, self.split) for name in self.names}
        answers = [answer(records[name][number]) for name, number in self.rows.records(index)]
        then = f"the model writes {counted(recipe.group, 'answer')}, and the loss is there"
        return [{"then": then, "right answer": text} for text in answers]


def of_texts(run: config.Run) -> bool:
    """Whether the run's objective makes its rows, of texts; otherwise they are records."""
    return isinstance(run.recipe, config.Pretrain) or (isinstance(run.recipe, config.Distill) and not on_records(run))


def read(run: config.Run, split: str, *, progress: bool = True) -> Reading:
    """Opens what a run reads. UserError where the run could not be trained, as far as its data says so, and if nothing is held
    out."""
    recipe = recipes.recipe(run)
    run = recipe.complete(run, None)
    if isinstance(run.recipe, config.Distill):  # rows are the same; what a teacher makes of them takes its model
        run = replace(run, recipe=replace(run.recipe, top_k=None))
    data = recipe.data(run, progress=progress)
    rows = recipe.rows(run, data)
    if split not in rows:
        raise UserError("nothing is held out: raise data.holdout, give more documents, or take --split=train")
    return Reading(run, data, rows[split], split)


def target_text(run: config.Run, data: Prepared, pieces: Pieces) -> Callable[[int], str]:
    """What a target says: a token, a class, or that a vector or a number is taken there."""
    recipe = run.recipe
    if isinstance(recipe, config.Reward):
        return lambda target: "(its reward)"
    if isinstance(recipe, config.ImageClasses) or (isinstance(recipe, config.Finetune) and recipe.how == "head"):
        classes = recipe.classes or data.classes
        return lambda target: f"class {classes[target]}"
    contrastive = isinstance(recipe, config.Pretrain) and isinstance(run.objective, config.Contrastive)
    if contrastive or isinstance(recipe, config.TwoEncoders):
        return lambda target: "(its vector)"
    return pieces.text


def explained(run: config.Run) -> list[str]:
    """The objective, or the recipe of a run on records, in the words of its config's docstring, and its settings."""
    told = run.objective if of_texts(run) else run.recipe
    first = " ".join((type(told).__doc__ or "").split("\n\n")[0].split())
    lines = [f"{config.kind_of(type(told))}: {first}"]
    if isinstance(told, config.Mixture):
        total = sum(part.weight for part in told.parts.values())
        for name, part in told.parts.items():
            mode = f", mode {part.mode}" if part.mode else ""
            settings = _settings(part.objective)
            lines.append(
                f"  {name}: {part.weight / total:.1%} of the pieces{mode}, {config.kind_of(type(part.objective))}{settings}"
            )
        return lines
    if isinstance(told, config.ReplacedTokens):
        judged = "every token" if told.predict in ("replaced", "all") else "these tokens"
        lines.append(f"predicted below is what the generator fills in; the model then answers for {judged}")
    return [*lines, *filter(None, [_settings(told).strip()])]


def _settings(of: Any) -> str:
    """Its plain settings as `" (rate=0.15, mask=0.8)"`."""
    plain = {f.name: getattr(of, f.name) for f in fields(of)}
    texts = [f"{name}={value}" for name, value in plain.items() if isinstance(value, (bool, int, float, str))]
    return f" ({', '.join(texts)})" if texts else ""


def epochs(reading: Reading) -> Mapping[str, float]:
    """How often the run reads each source."""
    weights = reading.weights
    rows = reading.run.train.steps * len(reading.numbers(1))
    return {name: rows * weights[name] / sum(weights.values()) / max(reading.rows.sizes[name], 1) for name in reading.names}
