"""Rows of judged answers: row i is a function of (seed, i) alone, as in `lm.data.record_rows`.

A preference record gives a pair of Examples, of the chosen and the rejected answer; a record of feedback its answer, and beside
it the answer of another record to the same prompt. Records are never cut: one that has no room stops the run or is left out.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lm import config
from lm.data.corpus.store import Store
from lm.data.examples import ExampleBuilder
from lm.data.rows import blank, located, mixture_weights, pack, stack
from lm.errors import UserError
from lm.objectives import Lengths
from lm.types import Compared, Example, Judged


@dataclass(frozen=True)
class Items:
    """The records of one source that have room in a row: int64 each."""

    record: np.ndarray  # [items]: number in the store
    bounds: np.ndarray  # [items, answers, 3]: where a conversation, its answer, and what follows it begin, in the record
    left_out: int


class PreferenceRows:
    """Batches of fixed shape by number: `Compared` of preferences, `Judged` of feedback.

    Training rows are endless, and each epoch of a source has its own order. Held-out rows (`shuffle=False`) contain every
    record once, in the order of the stores; there are `count` of them, and rows past the last are blank, of weight 0.

    `rewards`: Examples with one position, that of an answer's reward, instead of those of the answer's tokens.
    """

    def __init__(
        self,
        stores: Mapping[str, Store],
        data: config.Data,
        builder: ExampleBuilder,
        *,
        seed: int,
        feedback: bool = False,
        rewards: bool = False,
        shuffle: bool = True,
    ) -> None:
        self.stores, self.data, self.builder, self.seed, self.shuffle = stores, data, builder, seed, shuffle
        self.feedback, self.rewards = feedback, rewards
        self.items = {name: self._items(name, store) for name, store in stores.items()}

    def _items(self, name: str, store: Store) -> Items:
        b, wanted = self.builder, "feedback" if self.feedback else "preference"
        if (given := self.data.sources[name].format) != wanted:
            raise UserError(f"source {name!r} has records of format={given}, and this run learns from {wanted}: set its format")
        ends = store.answers().reshape(store.num_documents, -1, 2) - store.offsets[:-1, None, None]
        begins = np.concatenate([np.zeros_like(ends[:, :1, 1]), ends[:, :-1, 1]], axis=1)  # after the answer before
        bounds = np.concatenate([begins[..., None], ends], axis=2)
        before, answer = np.diff(bounds, axis=2).max(axis=1).T
        fits = (before <= b.length) & (answer <= b.answer)
        left_out = int((~fits).sum())
        if left_out and (self.data.on_long == "fail" or not fits.any()):
            raise UserError(
                f"{left_out} records of source {name!r} have no room in a row: up to {before.max()} tokens are before an "
                f"answer, and an answer has up to {answer.max()} with its end; set --config.recipe.length={before.max()} "
                f"--config.recipe.answer={answer.max()}, or leave them out and count them with --config.data.on_long=skip"
            )
        if self.feedback and fits.sum() < 2:
            raise UserError(
                f"source {name!r} has one record, or data.holdout leaves it one in a split, and each is compared with "
                "another's answer: give more, or change data.holdout"
            )
        return Items(np.flatnonzero(fits), bounds[fits], left_out)

    @property
    def sizes(self) -> dict[str, int]:
        """Rows of each source in an epoch."""
        return {name: len(items.record) for name, items in self.items.items()}

    @property
    def count(self) -> int:
        """How many rows contain every record once: an epoch of all sources."""
        return sum(self.sizes.values())

    @property
    def lengths(self) -> Lengths:
        """Of each Example of a row."""
        return self.builder.reward_lengths if self.rewards else self.builder.answer_lengths

    @property
    def bytes_a_row(self) -> float:
        """UTF-8 bytes of text, a mean over the rows of an epoch."""
        return sum(store.num_bytes for store in self.stores.values()) / max(1, self.count)

    @property
    def blank(self) -> Any:
        """A row of padding only, of weight 0."""
        row = blank(self.lengths)
        return (Judged if self.feedback else Compared)(row, row, np.zeros((), np.float32))

    def report(self) -> dict[str, dict[str, int]]:
        """Counts by source: records, those left out because they do not fit (`data.on_long=skip`), and rows of an epoch."""
        return {
            name: {"records": self.stores[name].num_documents, "left_out": items.left_out, "rows": len(items.record)}
            for name, items in self.items.items()
        }

    def left_out(self, index: np.ndarray) -> float:
        """The share of the tokens of the records in rows `index` that is in no row: none."""
        return 0.0

    def rows(self, index: np.ndarray) -> Any:
        """Rows `index` (int64 [B]), stacked: every array with a leading axis B."""
        index = np.asarray(index, np.int64)
        empty = blank(self.lengths)
        pairs, about = [(empty, empty)] * len(index), np.zeros(len(index), np.float32)
        source, number = self._located(index)
        for s, name in enumerate(self.stores):
            for i in np.flatnonzero(source == s).tolist():
                pairs[i] = self._pair(s, name, int(number[i]))
                about[i] = self._labels(name)[self.items[name].record[number[i]]]
        first, second = (
            stack([pack([e], self.lengths) if e is not empty else e for e in es]) for es in zip(*pairs, strict=True)
        )
        return (Judged if self.feedback else Compared)(first, second, about)

    def sources(self, index: np.ndarray) -> np.ndarray:
        """int64 [B]: the number of each row's source in `stores`."""
        return self._located(np.asarray(index, np.int64))[0]

    def _labels(self, name: str) -> np.ndarray:
        labels = self.stores[name].labels
        assert labels is not None  # the store of these formats has them
        return labels

    def _located(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The source of each row, and the number of its item in that source: int64 each."""
        weights = mixture_weights(self.data, self.sizes)
        return located(index, [*self.sizes.values()], [*weights.values()], self.seed, shuffle=self.shuffle)

    def _pair(self, s: int, name: str, number: int) -> tuple[Example, Example]:
        make = self.builder.reward_example if self.rewards else self.builder.last_turn_example
        if not self.feedback:
            first, second = (make(*turns) for turns in self._turns(name, number))
            return first, second
        ((before, answer),) = self._turns(name, number)
        return make(before, answer), make(before, self._other(s, name, number, before))

    def _turns(self, name: str, number: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """(ids before the answer, ids of the answer) of each conversation of an item."""
        items = self.items[name]
        ids = self.stores[name].document(int(items.record[number]))
        return [(ids[begin:start], ids[start:stop]) for begin, start, stop in items.bounds[number].tolist()]

    def _other(self, s: int, name: str, number: int, before: np.ndarray) -> np.ndarray:
        """An answer to another prompt; where the records have only one prompt, another record's answer. Each record has the
        same one in all epochs."""
        size = len(self.items[name].record)
        first = int(np.random.default_rng((self.seed, s, number, 3)).integers(size - 1))
        for i in range(size - 1):
            ((prompt, answer),) = self._turns(name, (number + 1 + (first + i) % (size - 1)) % size)
            if not np.array_equal(prompt, before):
                break
        return answer
