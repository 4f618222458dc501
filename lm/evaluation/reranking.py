"""Texts that were heard, put in order by a language model: a log-linear model of the recogniser's score and the text's."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from lm import config, saved
from lm.data.tokenizer import Tokenizer
from lm.evaluation import text_scores
from lm.evaluation.findings import Interval, bootstrap
from lm.evaluation.span_scores import check_head
from lm.generation.transcriber import Heard
from lm.models.positions import learned
from lm.models.transformer import Transformer
from lm.objectives import usual

LONGEST = 256  # tokens of a text that are read at once
NEVER = -1e4  # nats of a text of less than two tokens, which has no score


@dataclass(frozen=True)
class LanguageModel:
    """A model of texts."""

    model: Transformer
    params: Any
    objective: config.Objective
    tokenizer: Tokenizer
    batch_size: int = 64

    @classmethod
    def open(cls, folder: str, *, name: str = "--from") -> "LanguageModel":
        """The model of a run, or a converted one."""
        source = saved.open(folder, name=name)
        check_head(source)
        objective = source.run.objective if source.run else usual(source.model.architecture)
        params = source.params(device=jax.local_devices()[0])
        return cls(Transformer(source.model), params, objective, source.tokenizer())

    def log_probs(self, texts: Sequence[str]) -> np.ndarray:
        """float64 [N]: the log-probability of each text in nats; equal texts are read once."""
        sizes = {text: len(ids) for text, ids in zip(texts, self.tokenizer.encode_batch(list(texts)), strict=True)}
        asked = [text for text, size in sizes.items() if size >= 2]
        stack = "encoder" if self.model.config.architecture == "encoder" else "decoder"
        length = min(LONGEST, learned(self.model.config, stack) or LONGEST)
        how: dict[str, Any] = dict(length=length, stride=length // 2, batch_size=self.batch_size)
        found = text_scores.score(self.model, self.params, self.objective, self.tokenizer, asked, **how) if asked else []
        nats = {text: one.nats for text, one in zip(asked, found, strict=True)}
        return np.array([-nats[text] if text in nats else NEVER for text in texts])

    def ordered(self, heard: Sequence[list[Heard]], weight: float) -> list[list[Heard]]:
        """Each list with its best text first, by log-probability given the recording + weight * log-probability of the text."""
        prior = iter(self.log_probs([one.text for some in heard for one in some]).tolist())
        total = [[one.log_prob + weight * next(prior) for one in some] for some in heard]
        return [
            [some[i] for i in sorted(range(len(some)), key=lambda i: -of[i])] for some, of in zip(heard, total, strict=True)
        ]


@dataclass(frozen=True)
class Gain:
    """What an order of hypotheses saves: word errors to a word, over utterances, and examples."""

    saved: Interval
    mended: tuple[tuple[str, str, str], ...]  # what was said, what was heard, and what the order makes of it
    broken: int  # utterances with more word errors than before


def gain(hypotheses: Sequence[text_scores.Hypothesis], before: Sequence[int], after: Sequence[int], *, seed: int = 0) -> Gain:
    """Compares the hypotheses that two orders choose, an index for each of the same utterances, all with references. The
    interval is by drawing utterances with replacement."""
    wrong = [np.array([text_scores.errors(hypotheses, [i])[0] for i in some]) for some in (before, after)]
    words = np.array([text_scores.errors(hypotheses, [i])[1] for i in before])
    fewer = wrong[0] - wrong[1]
    found = bootstrap(lambda of: float(fewer[of].sum() / max(words[of].sum(), 1)), len(words), seed=seed)
    right = [(i, j) for i, j, a, b in zip(before, after, *wrong, strict=True) if a and not b]
    mended = tuple((hypotheses[i].reference or "", hypotheses[i].text, hypotheses[j].text) for i, j in right)
    return Gain(found, mended, int((fewer < 0).sum()))
