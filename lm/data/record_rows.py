"""Rows of records by arithmetic: row i is a function of (seed, i), as with windows over texts (`lm.data.rows`)."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Literal

import numpy as np

from lm import config
from lm.data.corpus.store import Store
from lm.data.examples import ExampleBuilder
from lm.data.rows import blank, mixture, pack, permute, stack
from lm.errors import UserError
from lm.objectives import Lengths
from lm.types import Example


class RecordRows:
    """Examples of fixed shape by number, of the records in `stores`. `sources` has the format and weight of each.

    Training rows go on for ever, and each epoch of a source has its own order. Held-out rows (`shuffle=False`) have every
    record once, in the order of the stores; their number is `count`, and rows past it are blank, of weight 0.
    """

    def __init__(
        self,
        stores: Mapping[str, Store],
        sources: Mapping[str, config.Source],
        builder: ExampleBuilder,
        *,
        how: Literal["head", "text"],
        seed: int,
        shuffle: bool = True,
    ) -> None:
        self.stores, self.builder, self.how, self.seed, self.shuffle = stores, builder, how, seed, shuffle
        self.formats = [sources[name].format for name in stores]
        self.weights = [sources[name].weight for name in stores]
        for name, format in zip(stores, self.formats, strict=True):
            self._check(name, format)

    def _check(self, name: str, format: str) -> None:
        if format == "text":
            raise UserError(f"source {name!r} has texts, and a fine-tuning takes records: set its format, or pretrain on it")
        if self.how == "head" and format != "labelled":
            raise UserError(f"source {name!r} has no classes that a head could tell apart: take how='text'")

    @property
    def lengths(self) -> Lengths:
        """Of a row."""
        return self.builder.label_lengths if self.how == "head" else self.builder.answer_lengths

    @property
    def count(self) -> int:
        """Rows that have every record once."""
        return sum(self._sizes)

    @cached_property
    def _sizes(self) -> list[int]:
        """Rows of each source in an epoch."""
        return [store.num_documents for store in self.stores.values()]

    @property
    def bytes_a_row(self) -> float:
        """UTF-8 bytes of text, a mean over the rows of an epoch."""
        return sum(store.num_bytes for store in self.stores.values()) / max(1, self.count)

    # ------------------------------------------------------------------------------------------------------------ rows

    def rows(self, index: np.ndarray) -> Example:
        """Rows `index` (int64 [B]), stacked: every array of the Example with a leading axis B."""
        index = np.asarray(index, np.int64)
        pieces: list[list[Example]] = [[] for _ in index]
        source, number = self._located(index)
        for s in range(len(self._sizes)):
            mine = np.flatnonzero(source == s)
            if len(mine):
                for at, example in zip(mine.tolist(), self._examples(s, number[mine]), strict=True):
                    pieces[at].append(example)
        empty = blank(self.lengths)
        return stack([pack(some, self.lengths) if some else empty for some in pieces])

    def _located(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The source of each row and its number within the source: int64 each. Past the last held-out row the source is
        one more than there are.
        """
        if not self.shuffle:
            ends = np.cumsum(self._sizes)
            source = np.searchsorted(ends, index, side="right")
            return source, index - np.concatenate([[0], ends])[source]
        source, number = mixture(index, self.weights)
        for s, size in enumerate(self._sizes):
            mine = np.flatnonzero(source == s)
            epoch, within = np.divmod(number[mine], size)
            for e in np.unique(epoch):
                of_epoch = epoch == e
                within[of_epoch] = permute(within[of_epoch], size, (self.seed, int(e), s))
            number[mine] = within
        return source, number

    def prompts(self, index: Sequence[int] | np.ndarray) -> list[tuple[np.ndarray | None, np.ndarray]]:
        """What is read before the answers of held-out records `index`: ids for the encoder, if any, and for the decoder."""
        source, number = self._located(np.asarray(index, np.int64))
        stores = list(self.stores.values())
        asked = [self._parts(stores[s], np.array([i]))[0] for s, i in zip(source.tolist(), number.tolist(), strict=True)]
        return [self.builder.prompt(self.builder.shorten(text)) for text, _ in asked]

    # --------------------------------------------------------------------------------------------------------- records

    def _examples(self, s: int, number: np.ndarray) -> list[Example]:
        store, builder = list(self.stores.values())[s], self.builder
        parts = [(builder.shorten(text), answer) for text, answer in self._parts(store, number)]
        if self.how == "head":
            assert store.labels is not None
            labels = store.labels[number].tolist()
            return [builder.label_example(text, label) for (text, _), label in zip(parts, labels, strict=True)]
        return [builder.answer_example(text, answer) for text, answer in parts]

    def _parts(self, store: Store, number: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """Of each record the text without its ends, and the answer with its end.

        ids   [bos 7 8 eos 20 eos]        text    [7 8]
        loss  [  0 0 0   0  1   1]        answer  [20 eos]
        """
        first = len(self.builder.bos)
        both = zip(store.documents(number), store.loss(number), strict=True)
        return [(ids[first : int(np.argmax(loss)) - 1], ids[loss]) for ids, loss in both]
