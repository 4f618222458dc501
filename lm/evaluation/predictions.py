"""What a fine-tuned model says of new texts: a class with its probability, or an answer in words."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from lm import config
from lm.data.examples import ExampleBuilder
from lm.data.rows import blank, pack, stack
from lm.errors import UserError
from lm.evaluation.labelled import Prompts, head_logits
from lm.models.transformer import Transformer
from lm.saved import Saved
from lm.types import Example


@dataclass(frozen=True)
class Prediction:
    text: str  # the class, or the answer
    probabilities: Mapping[str, float] = field(default_factory=dict)  # of each class; none of an answer in words


class Predictor:
    """Opens a fine-tuned run. Its classes are None if it writes its answers in words of its own."""

    def __init__(self, source: Saved, batch_size: int) -> None:
        run = source.run
        if run is None or not isinstance(run.recipe, config.Finetune):
            raise UserError(
                f"{source.folder} was not fine-tuned on labels or answers (recipe.kind=finetune): give a run that was"
            )
        formats = {one.format for one in run.data.sources.values()}
        if "messages" in formats:
            raise UserError(
                f"{source.folder} was trained on conversations: talk to it, python -m lm.chat --from={source.folder}"
            )
        if "tree" in formats or run.recipe.trees != "none":
            raise UserError(f"{source.folder} reads trees, and texts have none: its held-out figures are in summary.json")
        self.how, self.classes, self.batch_size = run.recipe.how, run.recipe.classes, batch_size
        self._builder = ExampleBuilder.of(source.tokenizer(), run.recipe, source.model.architecture)
        self._network, self._params = Transformer(source.model), source.params(device=jax.local_devices()[0])

    def __call__(self, texts: Sequence[str]) -> list[Prediction]:
        """A prediction for each text. One that is longer than a row of the training is shortened as there."""
        ids = self._builder.encode(list(texts))
        if self.how == "head":
            logits = head_logits(self._network, self._params, self._rows(ids), count=len(ids), batch_size=self.batch_size)
            return self._classified(logits)
        prompts = Prompts(self._builder, [self._builder.prompt(text) for text in ids])
        how: dict[str, int] = dict(batch_size=self.batch_size)
        if self.classes:
            return self._classified(prompts.class_log_probs(self._network, self._params, self.classes, **how))
        return [Prediction(text.strip()) for text in prompts.answers(self._network, self._params, **how)]

    def _rows(self, ids: Sequence[np.ndarray]) -> Any:
        """Rows by their numbers; blank past the last."""
        lengths = self._builder.label_lengths
        row = lambda i: pack([self._builder.label_example(ids[i], 0)], lengths) if i < len(ids) else blank(lengths)

        def rows(index: np.ndarray) -> Example:
            return stack([row(i) for i in index.tolist()])

        return rows

    def _classified(self, scores: np.ndarray) -> list[Prediction]:
        """Of logits or log-probabilities [N, C], as probabilities among the classes."""
        assert self.classes
        scores = scores.astype(np.float64) - scores.max(axis=1, keepdims=True)
        shares = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
        return [
            Prediction(self.classes[int(row.argmax())], dict(zip(self.classes, row.tolist(), strict=True))) for row in shares
        ]
