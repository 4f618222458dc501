"""Rows of records: row i is a function of (seed, i) alone, as for windows over texts (`lm.data.rows`)."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from lm import config
from lm.config.data import LABELLED
from lm.data import trees
from lm.data.corpus.store import Store
from lm.data.examples import ExampleBuilder
from lm.data.rows import blank, located, mixture_weights, pack, permute, stack
from lm.data.tree_reader import TreeReader
from lm.errors import UserError
from lm.objectives import Lengths
from lm.types import Example, TreeSizes

_OPEN = 64  # how many unfinished rows, the latest ones, packing chooses from
_TOKENS_A_LABEL = 4  # a packed row has room for one label per this many tokens


@dataclass(frozen=True)
class Items:
    """The items of one source, from which rows are made: one answer of a record each, or all of its answers. int64 [items]
    each."""

    record: np.ndarray  # number in the store
    start: np.ndarray  # of the first token with loss, within the record
    stop: np.ndarray  # after the last one
    encoder: np.ndarray  # tokens in the encoder's stream
    decoder: np.ndarray  # tokens in the decoder's stream
    tokens: np.ndarray  # of the record
    lost: np.ndarray  # tokens of the record that are in no stream
    report: Mapping[str, int]


class RecordRows:
    """Examples of fixed shape by number, made from the records in `stores`. `data` has the format and weight of each source.

    Training rows are endless, and each epoch of a source has its own order. Held-out rows (`shuffle=False`) contain every
    record once, in the order of the stores; there are `count` of them, and rows past the last are blank, of weight 0.

    With `data.packing` a training row holds as many records as fit, each a segment of its own. Which records share a row
    depends on their lengths and the seed and is the same in all epochs; epochs differ in the order of the rows.

    how: a class by a `head`; an answer in words as `text`, or all answers of a conversation; the last `answer` of each record
    """

    def __init__(
        self,
        stores: Mapping[str, Store],
        data: config.Data,
        builder: ExampleBuilder,
        *,
        how: Literal["head", "text", "answer"],
        seed: int,
        shuffle: bool = True,
        reader: TreeReader | None = None,
    ) -> None:
        self.stores, self.data, self.builder, self.how, self.seed, self.shuffle = stores, data, builder, how, seed, shuffle
        self.packing, self.reader = data.packing and shuffle, reader
        self.formats = {name: data.sources[name].format for name in stores}
        for name, format in self.formats.items():
            self._check(name, format)
        # A decoder gives logits only at the answer if a row has one, and otherwise at every position.
        turns = self.packing or "messages" in self.formats.values()
        self.everywhere = how == "text" and builder.architecture == "decoder" and turns
        self.lengths = self._lengths()
        self._levels, self._lost, self._most = dict[str, list[np.ndarray]](), dict[str, list[int]](), 1
        self.items = {name: self._items(name, store) for name, store in stores.items()}
        self._packed = [self._pack(s, items) for s, items in enumerate(self.items.values())]
        if self._nested:
            self.lengths = replace(self.lengths, tree=self._tree_sizes())

    def _check(self, name: str, format: str) -> None:
        if format == "text":
            raise UserError(f"source {name!r} has texts, and a fine-tuning takes records: set its format, or pretrain on it")
        if format == "speech":
            raise UserError(f"source {name!r} has recordings: set recipe.kind=transcribe")
        if format in ("preference", "feedback"):
            raise UserError(
                f"source {name!r} has records of format={format}, and a fine-tuning has one answer to learn: set "
                "recipe.kind=preference or reward, or its format"
            )
        if format == "tree" and self.reader is None:
            raise UserError(f"source {name!r} has trees, which are for recipe.kind=finetune: set that, or another format")
        if self.how == "head" and format not in LABELLED:
            raise UserError(f"source {name!r} has no classes that a head could tell apart: set --config.recipe.how=text")

    @property
    def count(self) -> int:
        """How many rows contain every record once: an epoch of all sources."""
        return sum(self.sizes.values())

    @property
    def sizes(self) -> dict[str, int]:
        """Rows of each source in an epoch."""
        return {name: len(starts) - 1 for name, (_, starts) in zip(self.stores, self._packed, strict=True)}

    @property
    def documents(self) -> int:
        """How many records a row holds, at most."""
        return int(max(np.diff(starts).max(initial=1) for _, starts in self._packed))

    @property
    def bytes_a_row(self) -> float:
        """UTF-8 bytes of text, a mean over the rows of an epoch."""
        return sum(store.num_bytes for store in self.stores.values()) / max(1, self.count)

    def report(self) -> dict[str, dict[str, int]]:
        """Counts by source: records, answers, texts shortened to both ends, answers left out because they do not fit
        (`data.on_long=skip`), and rows of an epoch.
        """
        return {name: {**items.report, "rows": self.sizes[name]} for name, items in self.items.items()}

    # ------------------------------------------------------------------------------------------------ lengths and items

    def _lengths(self) -> Lengths:
        """The lengths of a row: those of one record; of packed rows `data.encoder_length` and `data.decoder_length`, which must
        have room for one record.
        """
        b = self.builder
        one = b.label_lengths if self.how == "head" else b.answer_lengths
        if self.everywhere:
            one = Lengths(None, one.decoder, None, prefix=b.prefix)
        if not self.packing:
            return one
        given: dict[str, Any] = {}
        for name in ("encoder", "decoder"):
            size, room = getattr(one, name), getattr(self.data, f"{name}_length")
            given[name] = None if size is None else size if room is None else room
            if size is not None and room is not None and room < size:
                raise UserError(
                    f"data.{name}_length={room} has no room for one record, which takes up to {size} tokens: "
                    f"set data.{name}_length={size} or more, or shorten recipe.length"
                )
        predicted = None
        if self.how == "head":
            predicted = max(1, max(filter(None, given.values())) // _TOKENS_A_LABEL)
        return Lengths(given["encoder"], given["decoder"], predicted, prefix=one.prefix)

    def _items(self, name: str, store: Store) -> Items:
        b = self.builder
        answers = store.answers()
        record = np.searchsorted(store.offsets, answers[:, 0], side="right") - 1
        if self.how == "answer":
            last = np.append(record[1:] != record[:-1], True)
            answers, record = answers[last], record[last]
        tokens = np.diff(store.offsets)[record]
        start, stop = (answers - store.offsets[record][:, None]).T
        begun = len(b.bos)
        if self.formats[name] == "messages":
            if b.architecture == "decoder":  # all answers of a conversation are in one stream
                encoder, decoder = np.zeros_like(stop), stop - 1
                fits = decoder < b.length + b.answer
                if self.how == "answer":
                    fits = (start <= b.length) & (stop - start <= b.answer)
            else:
                first = store.document(0)
                encoder, decoder = start - len(first) + len(b.after_bos(first)), len(b.start) + stop - start - 1
                fits = (encoder <= b.length) & (stop - start <= b.answer)
            lost = tokens - stop if b.architecture == "decoder" else np.zeros_like(stop)
        else:
            whole, room = start - begun - 1, b.length - 2
            if self.formats[name] == "tree" or self._nested:
                read = zip(store.documents(record), start, strict=True)
                whole = np.array([self._size(name, ids[begun : begin - 1]) for ids, begin in read], np.int64)
            text = np.minimum(whole, room)
            lost = whole - text
            fits = (stop - start <= b.answer) | (self.how == "head")
            if self._nested:
                encoder, decoder = whole, np.zeros_like(stop)
                fits, lost = whole <= b.length, np.array(self._lost.get(name, []), np.int64)
            elif self.how == "head":
                encoder = decoder = begun + text + 1
            elif b.architecture == "decoder":
                encoder, decoder = np.zeros_like(stop), begun + text + stop - start
            else:
                encoder, decoder = text + 1, len(b.start) + stop - start - 1
        left_out = int((~fits).sum())
        if left_out and self.data.on_long == "fail":
            raise UserError(self._too_long(name, left_out, int((stop - start)[~fits].max()), int(start[~fits].max())))
        keep = fits
        if self._in_one_stream(name):  # one item: up to the last answer that fits
            keep = fits & ~(np.roll(fits, -1) & (np.roll(record, -1) == record) & (np.arange(len(record)) < len(record) - 1))
            first = np.searchsorted(record, record)  # the record's first answer
            start = start[first]
        if not keep.any():
            raise UserError(f"no answer of source {name!r} has room in a row: raise recipe.length and recipe.answer")
        report = {
            "records": store.num_documents,
            "answers": len(answers),
            "texts_shortened": 0 if self.formats[name] == "messages" else int((lost > 0).sum()),
            "answers_left_out": left_out,
        }
        return Items(*(array[keep] for array in (record, start, stop, encoder, decoder, tokens, lost)), report)

    @property
    def _nested(self) -> bool:
        """Whether rows are trees."""
        return self.reader is not None and self.reader.how != "none"

    def _size(self, name: str, ids: np.ndarray) -> int:
        """How many nodes, or tokens of a sequence, the text of a record has, which is stored as `ids`. Of trees it also keeps
        how many tokens are in none, and, for `_tree_sizes`, the levels and the most children of a node."""
        assert self.reader is not None
        if not self._nested:
            return len(self.reader.sequence(ids))
        nodes, lost = self.reader.nodes(ids, self.formats[name])
        children = trees.arrays(nodes).children
        self._lost.setdefault(name, []).append(lost)
        self._levels.setdefault(name, []).append(trees.levels(children))
        self._most = max(self._most, children.shape[1])
        return len(children)

    def _tree_sizes(self) -> TreeSizes:
        """The sizes that the trees of all rows fit in."""
        assert self.reader is not None
        rows = [np.zeros(0, np.int64)]
        for name, (order, starts) in zip(self.stores, self._packed, strict=True):
            levels = [self._levels[name][record] for record in self.items[name].record[order].tolist()]
            rows += [trees.together(levels[a:b]) for a, b in itertools.pairwise(starts.tolist())]
        return trees.fitting(rows, self.reader.children or self._most)

    def _in_one_stream(self, name: str) -> bool:
        """Whether a row has all answers of a record."""
        return self.formats[name] == "messages" and self.builder.architecture == "decoder" and self.how != "answer"

    def _too_long(self, name: str, count: int, answer: int, before: int) -> str:
        """The error for answers that do not fit. `answer`: tokens of the longest of them; `before`: the most tokens that
        precede one."""
        b = self.builder
        if self._nested:
            return (
                f"{count} trees of source {name!r} have more nodes than the {b.length} of a row: raise --config.recipe.length, "
                "or leave them out and count them with --config.data.on_long=skip"
            )
        what = f"{count} answers of source {name!r} have no room in a row"
        if self._in_one_stream(name):
            what += f": with what is before them they have up to {before + answer} tokens, and the row {b.length + b.answer}"
            cure = "raise --config.recipe.length"
        elif answer > b.answer:
            what += f": they have up to {answer} tokens with their end, and recipe.answer is {b.answer}"
            cure = "raise --config.recipe.answer"
        else:
            what += f": up to {before} tokens are read before them, and recipe.length is {b.length}"
            cure = "raise --config.recipe.length"
        return f"{what}; {cure}, or leave them out and count them with --config.data.on_long=skip"

    def _pack(self, s: int, items: Items) -> tuple[np.ndarray, np.ndarray]:
        """Items sorted by row, int64 [items], and where each row begins among them, int64 [rows + 1].

        Items are taken in random order, and each goes into the fullest of the latest rows that has room for it. A
        million items take about 16 s.
        """
        count = len(items.record)
        if not self.packing:
            return np.arange(count), np.arange(count + 1)
        most = [self.lengths.encoder or 0, self.lengths.decoder or 0, self.lengths.predicted or count]
        sizes = np.stack([items.encoder * (most[0] > 0), items.decoder * (most[1] > 0), np.ones(count, np.int64)], axis=1)
        order = permute(np.arange(count), count, (self.seed, 0, s, 1))
        row = np.empty(count, np.int64)
        free, number, rows = np.zeros((0, 3), np.int64), np.zeros(0, np.int64), 0
        for i in order.tolist():
            fits = np.flatnonzero((free >= sizes[i]).all(axis=1))
            if not len(fits):
                free, number = np.append(free, [most], axis=0)[-_OPEN:], np.append(number, rows)[-_OPEN:]
                fits, rows = np.array([len(free) - 1]), rows + 1
            best = fits[np.argmin(free[fits, :2].sum(axis=1))]
            free[best] -= sizes[i]
            row[i] = number[best]
        together = np.argsort(row, kind="stable")
        return together, np.searchsorted(row[together], np.arange(rows + 1))

    # ------------------------------------------------------------------------------------------------------------ rows

    def rows(self, index: np.ndarray) -> Example:
        """Rows `index` (int64 [B]), stacked: every array of the Example with a leading axis B."""
        index = np.asarray(index, np.int64)
        pieces: list[list[Example]] = [[] for _ in index]
        source, number = self._located(index)
        for s, (name, (order, starts)) in enumerate(zip(self.stores, self._packed, strict=True)):
            mine = np.flatnonzero(source == s)
            of_rows = [order[starts[n] : starts[n + 1]] for n in number[mine].tolist()]
            if of_rows:
                row = np.repeat(mine, [len(items) for items in of_rows]).tolist()
                for i, example in zip(row, self._examples(name, np.concatenate(of_rows)), strict=True):
                    pieces[i].append(example)
        empty = blank(self.lengths)
        return stack([pack(examples, self.lengths) if examples else empty for examples in pieces])

    def left_out(self, index: np.ndarray) -> float:
        """The share of tokens of the records in rows `index` that is in no row: the middles of shortened texts, and what
        follows the last answer of a conversation that fits."""
        tokens = lost = 0
        source, number = self._located(np.asarray(index, np.int64))
        for s, (items, (order, starts)) in enumerate(zip(self.items.values(), self._packed, strict=True)):
            for n in number[source == s].tolist():
                packed = order[starts[n] : starts[n + 1]]
                tokens, lost = tokens + int(items.tokens[packed].sum()), lost + int(items.lost[packed].sum())
        return lost / max(tokens, 1)

    def sources(self, index: np.ndarray) -> np.ndarray:
        """int64 [B]: the number of each row's source in `stores`."""
        return self._located(np.asarray(index, np.int64))[0]

    def _located(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The source of each row and its number in that source's order: int64 each, as in `mixture`."""
        weights = mixture_weights(self.data, self.sizes)
        return located(index, [*self.sizes.values()], [*weights.values()], self.seed, shuffle=self.shuffle)

    def records(self, index: Sequence[int] | np.ndarray) -> list[tuple[str, int]]:
        """The source of each held-out row of `index`, and the number of its record in that source's store."""
        source, number = self._located(np.asarray(index, np.int64))
        names = list(self.stores)
        pairs = zip(source.tolist(), number.tolist(), strict=True)
        return [(names[s], int(self.items[names[s]].record[n])) for s, n in pairs]

    def prompts(self, index: Sequence[int] | np.ndarray) -> list[tuple[np.ndarray | None, np.ndarray]]:
        """For each held-out row of `index`, the ids that encoder (None without one) and decoder read before the answer."""
        source, number = self._located(np.asarray(index, np.int64))
        names = list(self.stores)
        return [self._prompt(names[s], n) for s, n in zip(source.tolist(), number.tolist(), strict=True)]

    def unknown(self) -> dict[str, int]:
        """By source, how many answers have a word that the tokenizer does not know, so that no model writes them right."""
        unknown, found = self.builder.tokenizer.unk_id, dict[str, int]()
        for name, items in self.items.items():
            read = self._read(name, np.arange(len(items.record)))
            found[name] = sum(bool((ids[start:stop] == unknown)[loss[start:stop] > 0].any()) for ids, loss, start, stop in read)
        return found

    # -------------------------------------------------------------------------------------------------------- examples

    def _prompt(self, name: str, item: int) -> tuple[np.ndarray | None, np.ndarray]:
        ((ids, _, start, _),) = self._read(name, np.array([item]))
        b, first = self.builder, len(self.builder.bos)
        if self.formats[name] != "messages":
            return b.prompt(self._text(name, ids[first : start - 1]))
        return (None, ids[:start]) if b.architecture == "decoder" else (b.after_bos(ids[:start]), b.start)

    def _text(self, name: str, ids: np.ndarray) -> np.ndarray:
        """What is read before an answer, which is stored as `ids`: of a tree its sequence; of a long text both ends."""
        if self.formats[name] == "tree":
            assert self.reader is not None
            ids = self.reader.sequence(ids)
        return self.builder.shorten(ids)

    def _read(self, name: str, item: np.ndarray) -> list[tuple[np.ndarray, np.ndarray, int, int]]:
        """For each item of a source: ids and loss up to the end of its answer, and where the answer starts and stops."""
        items, store = self.items[name], self.stores[name]
        record, start, stop = items.record[item], items.start[item].tolist(), items.stop[item].tolist()
        every = zip(store.documents(record), store.loss(record), start, stop, strict=True)
        return [(ids[:end], loss[:end], begin, end) for ids, loss, begin, end in every]

    def _examples(self, name: str, item: np.ndarray) -> list[Example]:
        b, first = self.builder, len(self.builder.bos)
        labels = self.stores[name].labels
        out = []
        for record, (ids, loss, start, stop) in zip(self.items[name].record[item], self._read(name, item), strict=True):
            answer = ids[start:stop]
            if self._in_one_stream(name):
                out.append(b.turns_example(ids, loss))
                continue
            if self.formats[name] == "messages":
                out.append(b.last_turn_example(ids[:start], answer))
                continue
            given, label = ids[first : start - 1], 0 if labels is None else int(labels[record])
            if self._nested:
                assert self.reader is not None
                out.append(b.tree_example(self.reader.nodes(given, self.formats[name])[0], label))
                continue
            text = self._text(name, given)
            if self.how == "head":
                out.append(b.label_example(text, label))
            elif self.everywhere:
                begun = b.prompt(text)[1]
                mask = np.arange(len(begun) + len(answer)) >= len(begun)
                out.append(b.turns_example(np.concatenate([begun, answer]), mask))
            else:
                out.append(b.answer_example(text, answer))
        return out
