"""Held-out figures of speech: the loss, and the word errors of what a model hears."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jax.sharding import Mesh

from lm import sharding
from lm.data.records import Speech
from lm.data.sound_rows import SpeechRows
from lm.evaluation.findings import ENOUGH, interval_ends, ratio, within
from lm.evaluation.reranking import LanguageModel
from lm.evaluation.text_scores import distance
from lm.generation.transcriber import Heard, Transcriber
from lm.types import WeightedMean


@dataclass(frozen=True)
class Transcripts:
    """Call with parameters -> `loss` in nats a token of the right text, `wer` (word errors, which are insertions, deletions and
    replacements, to a word of the right texts), and `sentences`, the share of texts that are right as a whole. Of two or more
    sources each has its own too: `<source>/wer`."""

    rows: SpeechRows  # held out
    records: Mapping[str, Sequence[Speech]]  # of its stores
    score: Callable[[Any, Any], dict[str, WeightedMean]]  # (params, batch), jitted
    transcriber: Transcriber
    batch_size: int
    mesh: Mesh
    limit: int | None = None  # utterances of each source
    prior: LanguageModel | None = None  # that puts what is heard in order, with this weight
    weight: float = 0.0
    latest: dict[str, np.ndarray] = field(default_factory=dict)  # of the latest call, an entry for each utterance

    def __call__(self, params: Any) -> dict[str, float]:
        index = self.index
        said, heard, loss = self.said(index), list[str](), np.zeros(2)
        for first in range(0, len(index), self.batch_size):
            part = index[first : first + self.batch_size]
            chosen = np.append(part, np.full(self.batch_size - len(part), self.rows.count))  # past the end: blank; one shape
            batch = sharding.global_batch(self.rows.rows, chosen, self.mesh)
            mean = self.score(params, batch)["loss"]
            loss += float(mean.total), float(mean.weight)
            heard += [found[0].text if found else "" for found in self.heard(params, batch)[: len(part)]]
        wrong = np.array([distance(b.split(), a.split()) for a, b in zip(said, heard, strict=True)], float)
        words = np.array([len(text.split()) for text in said], float)
        self.latest.update(wrong=wrong, words=words, sentences=np.array(wrong == 0, float))
        sources = np.array([found[0] for found in self.rows.utterances(index) if found])
        figures = {"loss": loss[0] / max(loss[1], 1.0), "wer": wrong.sum() / words.sum(), "sentences": (wrong == 0).mean()}
        for name in dict.fromkeys(sources.tolist()) if (sources != sources[0]).any() else ():
            mine = sources == name
            figures[f"{name}/wer"] = wrong[mine].sum() / words[mine].sum()
        return {name: float(value) for name, value in figures.items()}

    @property
    def index(self) -> np.ndarray:
        """int64 [N]: the rows that are tested, the first ones of each source."""
        ends = np.cumsum([0, *self.rows.sizes.values()])
        most = self.limit or self.rows.count
        return np.concatenate([np.arange(a, min(b, a + most)) for a, b in zip(ends[:-1], ends[1:], strict=True)])

    def heard(self, params: Any, batch: Any) -> list[list[Heard]]:
        """The likeliest texts of each row of a batch of `rows`, the best first."""
        found = self.transcriber(params, getattr(batch, "example", batch).encoder)
        return found if self.prior is None else self.prior.ordered(found, self.weight)

    def said(self, index: np.ndarray) -> list[str]:
        """What is said in each of these rows."""
        return [self.records[found[0]][found[1]].text for found in self.rows.utterances(index) if found]

    def intervals(self) -> dict[str, list[float]]:
        """The ends of the 95 % intervals of the latest call's figures, over utterances; {} where there are too few."""
        if len(self.latest.get("wrong", ())) < ENOUGH:
            return {}
        wrong, words = self.latest["wrong"], self.latest["words"]
        wer = within(ratio(wrong, words), wrong / np.maximum(words, 1))
        return {"wer": wer} | interval_ends({"sentences": self.latest["sentences"]})
