"""The stages of a preparation as pure functions of shards: what a task reads and writes is in the folder of work.

Each class is a stage of one source, and a call of it does one shard, span or range. A task that was finished before is not done
again.

    clean/7.json ...        `Clean`: documents and signatures of a shard (see `lm.data.corpus.shards`)
    split/7.npy             `Split`: uint8 [documents], TRAIN, HOLDOUT or GONE (`lm.data.corpus.splitting`)
    dropped/2.jsonl         `Dropped`: a line for each duplicate in a span of shards
    train/7.tokens          `Encode`: the tokens of a shard; 7.loss, 7.lengths.npy, 7.sizes.npy, 7.labels.npy
    fill-train/0.json       `Fill`: a range of the store's chunks is written
    texts-train/0.gz        `Texts`: the documents as text
"""

import functools
import gzip
import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lm import config
from lm.config.data import OWN_SPLIT, TURNS
from lm.data import records, templates
from lm.data.corpus import clean, dedup, executors, groups, quality, shards, stages, store
from lm.data.corpus.documents import SKIP, CorruptRecord, Document
from lm.data.render import check, render
from lm.data.tokenizer import Tokenizer, from_bytes
from lm.errors import UserError

SPLITS = ("train", "holdout")
TRAIN, HOLDOUT, GONE = 0, 1, 2  # where a document is; the first two are indices of SPLITS
EXAMPLES = 5  # of dropped documents and corrupt records, shown in the report; dropped.jsonl has all
RANGE = 64 * store.CHUNK  # tokens that a task copies into the store
_ENCODE_BYTES = 1 << 22  # of text in one call of the tokenizer
_OPEN = 64  # files of documents that are mapped at a time, to look up keys


@dataclass(frozen=True)
class Stage:
    """A stage of the source `source`; `work` is the folder of work."""

    work: Path
    data: config.Data
    source: str

    def __call__(self, task: Any) -> Any:
        return shards.once(self.folder / f"{self.number(task)}.json", lambda: self.do(task))

    def do(self, task: Any) -> Any:
        raise NotImplementedError

    def number(self, task: Any) -> int:
        return task

    @property
    def folder(self) -> Path:
        return self.work / self.source / type(self).__name__.lower()

    @property
    def about(self) -> config.Source:
        return self.data.sources[self.source]

    @property
    def texts(self) -> bool:
        return self.about.format == "text"

    @property
    def plan(self) -> groups.Plan:
        return groups.plan(self.work / "plan.done.json")

    def side(self, number: int) -> np.ndarray:
        """uint8 [documents]: what `Split` made of a shard."""
        return np.load(self.work / self.source / "split" / f"{number}.npy")

    def cleaned(self, number: int) -> shards.Cleaned:
        return shards.Cleaned(self.work, self.source, number)


# ---------------------------------------------------------------------------------------------------------- cleaning


class Clean(Stage):
    """Cleans, judges and signs the documents of a shard. Returns counts, and examples of what could not be read."""

    def number(self, task: shards.Shard) -> int:
        return task.number

    def do(self, task: shards.Shard) -> dict[str, Any]:
        documents = shards.unpickled(self.work / self.source / "documents.pkl")
        judge = None  # of what is held out whole: models are measured on the same texts, however trained
        if self.texts and self.about.use != "holdout":
            judge = shards.unpickled(self.work / "judge.pkl")
        how = clean.resolved(self.data.clean, transcripts=documents.transcripts)
        counts: Counter[str] = Counter()
        unreadable: list[str] = []
        ends, exact, order, held, near = [], [], [], [], []
        size = lost = 0
        files = self.cleaned(task.number)
        rejects = shards.written(files.file("rejected.jsonl")) if self.data.quality != config.Quality() else nullcontext()
        with shards.written(files.file("jsonl")) as out, rejects as rejected:
            for index in range(task.start, task.stop):
                try:
                    document = self._accepted(documents[index])
                except CorruptRecord as error:
                    if self.data.on_corrupt != "skip":
                        raise
                    lost += 1
                    unreadable += [str(error)][: EXAMPLES - len(unreadable)]
                    continue
                reason = None
                if self.texts:
                    document, signature, found, reason = stages.cleaned(document, how, self.data.dedup, judge)
                    counts += found
                else:
                    signature = self._signature(document)
                counts["documents"] += 1
                if reason is not None and rejected is not None:
                    line = json.dumps(quality.line(self.source, document, reason), ensure_ascii=False)
                    rejected.write((line + "\n").encode())
                    continue
                if self.texts and len(document.text.strip()) < self.data.clean.min_chars:
                    counts["short"] += 1
                    continue
                line = shards.line(document)
                out.write(line)
                size += len(line)
                ends.append(size)
                exact.append(signature.exact)
                order.append(self._order(document))
                held.append(document.key.startswith("holdout/"))
                if signature.near is not None:
                    near.append(signature.near)
        rows = np.zeros(len(ends), shards.ROW)
        rows["end"], rows["exact"], rows["order"], rows["held"] = ends, shards.digests(exact), shards.digests(order), held
        shards.save(files.file("rows.npy"), rows)
        shards.save(files.file("near.npy"), np.stack(near) if near else np.zeros((0, 0), np.uint32))
        return {"counts": counts, "lost": lost, "unreadable": unreadable, "keys": len(ends), "bytes": size}

    def _accepted(self, document: Document) -> Document:
        """The document. CorruptRecord if it is a conversation that the chat template refuses."""
        if self.data.template is not None and self.about.format in TURNS:
            template = _template(self.work / "template.model", self.data.template)
            assert template is not None
            try:
                check(record(document, self.about.format), template)
            except UserError as error:
                raise CorruptRecord(f"{self.source}/{document.key}: {error}; {SKIP}") from None
        return document

    def _signature(self, document: Document) -> dedup.Signature:
        """Equal records are duplicates, but for those of a set that comes with a split: its key makes each unique."""
        key = f"{self.about.path}/{document.key}" if self.about.kind in OWN_SPLIT else ""
        return dedup.Signature(_sha256(f"{self.about.format} {key} {document.text}".encode()), None)

    def _order(self, document: Document) -> bytes:
        """The digest that decides whether a document is held out. Records with the same question have the same."""
        if self.texts:
            return _sha256(document.key.encode("utf-8", "surrogatepass"))
        return records.question_digest(record(document, self.about.format))


# -------------------------------------------------------------------------------------------------------- duplicates


class Dropped(Stage):
    """Lists the duplicates of a span. Returns how many there are, by reason, and the first of them."""

    def do(self, task: int) -> dict[str, Any]:
        outcome, keys, plan = groups.Outcome.at(self.work), _Keys(self.work, self.plan), self.plan
        counts: Counter[str] = Counter()
        examples: list[dict[str, str]] = []
        with shards.written(self.folder / f"{task}.jsonl") as out:
            for _, first, count in plan.of_span(task, self.work):
                state, target = (array[first : first + count] for array in (outcome.state, outcome.target))
                for row in np.flatnonzero(state != groups.KEPT).tolist():
                    reason = "exact" if state[row] == groups.EXACT else "near"
                    other, key = plan.located(int(target[row]))[0], keys(int(target[row]))
                    line = {"source": self.source, "key": keys(first + row), "reason": reason, "kept": f"{other}/{key}"}
                    out.write((json.dumps(line, ensure_ascii=False) + "\n").encode())
                    counts[reason] += 1
                    examples += [line][: EXAMPLES - len(examples)]
        return {"counts": counts, "examples": examples}


class _Keys:
    """Keys of documents by number."""

    def __init__(self, work: Path, plan: groups.Plan) -> None:
        self._work, self._plan = work, plan
        self._opened = functools.lru_cache(maxsize=_OPEN)(self._open)

    def _open(self, source: str, number: int) -> tuple[np.ndarray, np.ndarray]:
        files = shards.Cleaned(self._work, source, number)
        return np.concatenate([[0], files.rows()["end"]]), np.memmap(files.file("jsonl"), np.uint8, "r")

    def __call__(self, doc: int) -> str:
        source, number, row = self._plan.located(doc)
        ends, lines = self._opened(source, number)
        return json.loads(lines[ends[row] : ends[row + 1]].tobytes())["key"]


# ------------------------------------------------------------------------------------------------------------ tokens


@dataclass(frozen=True)
class _OfSplit(Stage):
    """A stage of one split."""

    split: str

    def rows(self, number: int) -> np.ndarray:
        """int64 [n]: a shard's documents in the split."""
        return np.flatnonzero(self.side(number) == SPLITS.index(self.split))


@dataclass(frozen=True)
class Encode(_OfSplit):
    """Encodes a shard's documents as the store holds them. Returns counts."""

    classes: tuple[str, ...]

    @property
    def folder(self) -> Path:
        return self.work / self.source / self.split

    def do(self, task: int) -> dict[str, int]:
        tokenizer = _tokenizer(self.work.parent / "tokenizer.model")
        template = _template(self.work.parent / "tokenizer.model", self.data.template)
        total: Counter[str] = Counter()
        lengths, sizes, labels = [], [], []
        dtype, name = store.dtype(tokenizer.vocab_size), self.folder / str(task)
        documents = self.cleaned(task).documents(self.rows(task))
        with shards.written(name.with_suffix(".tokens")) as tokens, shards.written(name.with_suffix(".loss")) as loss:
            for batch in stages.batches(documents, _ENCODE_BYTES):
                every = [record(document, self.about.format) for document in batch]
                for entry in encoded(every, tokenizer, self.classes, template):
                    tokens.write(entry.ids.astype(dtype).tobytes())
                    total.update(documents=1, tokens=len(entry.ids), bytes=entry.num_bytes)
                    lengths.append(len(entry.ids))
                    sizes.append(entry.num_bytes)
                    if entry.loss is not None:
                        loss.write(entry.loss.astype(np.uint8).tobytes())
                        total["tokens_with_loss"] += int(entry.loss.sum())
                    if entry.label is not None:
                        labels.append(entry.label)
        shards.save(name.with_suffix(".lengths.npy"), np.array(lengths, np.int64))
        shards.save(name.with_suffix(".sizes.npy"), np.array(sizes, np.int64))
        of = np.float64 if labels and isinstance(labels[0], float) else np.int64
        shards.save(name.with_suffix(".labels.npy"), np.array(labels, of))
        return dict(total)


@dataclass(frozen=True)
class Fill(_OfSplit):
    """Copies a range of the tokens of all shards into the store, and of the loss mask if there is one."""

    dtype: str
    loss: bool

    @property
    def folder(self) -> Path:
        return self.work / self.source / f"fill-{self.split}"

    def do(self, task: int) -> None:
        starts = np.load(self.folder / "starts.npy")  # int64 [shards + 1]: the first token of each
        start, stop = task * RANGE, min((task + 1) * RANGE, int(starts[-1]))
        for name, dtype in (("tokens", self.dtype), *([("loss", "uint8")] if self.loss else [])):
            found = []
            for number in range(int(np.searchsorted(starts, start, side="right")) - 1, len(starts) - 1):
                first = int(starts[number])
                if first >= stop:
                    break
                low, high = max(start, first) - first, min(stop, int(starts[number + 1])) - first
                file = self.work / self.source / self.split / f"{number}.{name}"
                item = np.dtype(dtype).itemsize
                part = np.fromfile(file, dtype, high - low, offset=low * item)
                if len(part) < high - low:
                    raise UserError(f"{file} is cut short: delete {self.work.parent}, and the same command prepares it again")
                found.append(part)
            store.fill(str(self.work.parent / self.source / self.split), name, start, np.concatenate(found))


class Texts(_OfSplit):
    """Writes the documents of a range of shards, compressed."""

    @property
    def folder(self) -> Path:
        return self.work / self.source / f"texts-{self.split}"

    def number(self, task: tuple[int, int, int]) -> int:
        return task[0]

    def do(self, task: tuple[int, int, int]) -> None:
        number, first, last = task
        with shards.written(self.folder / f"{number}.gz") as out:
            with gzip.GzipFile(filename="", mode="wb", fileobj=out, mtime=0, compresslevel=6) as compressed:
                for shard in range(first, last):
                    compressed.writelines(self.cleaned(shard).lines(self.rows(shard)))


# --------------------------------------------------------------------------------------------------------- documents


def record(document: Document, format: str) -> records.Record:
    """The record in a document that `sources` made."""
    return records.Text(document.text) if format == "text" else records.parse(json.loads(document.text), format)


def encoded(
    every: list[records.Record], tokenizer: Tokenizer, classes: tuple[str, ...], template: templates.Template | None
) -> Iterator[store.Entry]:
    """Records as the store holds them; a text has no loss mask, because every token of it has loss."""
    index = {name: i for i, name in enumerate(classes)}
    for one, rendered in zip(every, render(every, tokenizer, template), strict=True):
        loss = None if isinstance(one, records.Text) else rendered.loss
        label = index[one.label] if isinstance(one, records.Labelled) else _judgement(one)
        yield store.Entry(rendered.ids, len(records.texts(one).encode()), loss, label)


def _judgement(one: records.Record) -> int | float | None:
    """What is stored beside the tokens of two answers, their margin, and of a judged one, 1 if it is good, else 0."""
    if isinstance(one, records.Feedback):
        return int(one.label)
    return one.margin if isinstance(one, records.Preference) else None


def _tokenizer(path: Path) -> Tokenizer:
    return _loaded(path, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=2)
def _loaded(path: Path, changed: int) -> Tokenizer:
    tokenizer = from_bytes(path.read_bytes(), checked=True)
    if executors.is_worker():  # the other cores have tasks of their own
        tokenizer.encode_batch = functools.partial(tokenizer.encode_batch, threads=1)
    return tokenizer


def _template(path: Path, given: str | None) -> templates.Template | None:
    return None if given is None else _templated(path, path.stat().st_mtime_ns, given)


@functools.lru_cache(maxsize=2)
def _templated(path: Path, changed: int, given: str) -> templates.Template | None:
    return templates.of(given, _tokenizer(path))


def _sha256(raw: bytes) -> bytes:
    return hashlib.sha256(raw).digest()
