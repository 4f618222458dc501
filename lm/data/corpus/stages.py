"""What the stages of a preparation share: texts on disk, cleaning in parallel, a progress bar, the report as a table."""

import gzip
import itertools
import json
import os
import shutil
import signal
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TextIO, TypeVar

from lm import config
from lm.data.corpus import clean, dedup
from lm.data.corpus.documents import Document
from lm.errors import UserError

T = TypeVar("T")
_BATCH_BYTES = 1 << 20  # of text that a worker gets at a time
_OVERHEAD = 100  # bytes of work that a document costs beside its text
_SMALL = 24  # batches: up to this many, starting processes does not pay
_SPACE_EVERY = 1000  # documents between two checks of the free disk space

# ---------------------------------------------------------------------------------------------------------- files


def read_texts(path: Path, *, keys_only: bool = False) -> Iterator[Document]:
    """Yields the documents of a .jsonl or .jsonl.gz file that `prepare` wrote; `keys_only` leaves their texts empty."""
    opened = gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8")
    with opened as lines:
        for line in lines:
            record = json.loads(line)
            yield Document(record["key"], "" if keys_only else record["text"])


class TextWriter:
    """Writes a .jsonl.gz file whose bytes depend only on the documents: its header has no name and no time."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._gzip = gzip.GzipFile(filename="", mode="wb", fileobj=self._file, mtime=0, compresslevel=6)

    def __enter__(self) -> "TextWriter":
        return self

    def write(self, document: Document) -> None:
        line = json.dumps({"key": document.key, "text": document.text}, ensure_ascii=False)
        self._gzip.write(line.encode() + b"\n")

    def __exit__(self, *_: Any) -> None:
        self._gzip.close()
        self._file.close()


def check_space(folder: Path, out: TextIO, *, every: int) -> None:
    """Raises UserError if the disk has no room for the next stages, whose tokens and compressed text take about as many bytes
    as the text written to `out`. Checks only if `every` is a multiple of _SPACE_EVERY."""
    if every % _SPACE_EVERY:
        return
    free, written = shutil.disk_usage(folder).free, out.tell()
    if free < written:
        need, have = (f"{n / 1e9:.2f} GB" for n in (written, free))
        raise UserError(f"no disk space: at least {need} more needed below {folder}, {have} free; free some or set data.cache")


# ----------------------------------------------------------------------------------------------------------- work

Cleaned = tuple[Document, dedup.Signature, Counter[str]]


def batches(documents: Iterable[Document], size: int) -> Iterator[list[Document]]:
    """Groups documents, in order, into lists of about `size` characters."""
    yield from _group(documents, size, lambda document: len(document.text))


def _group(items: Iterable[T], size: int, measure: Callable[[T], int]) -> Iterator[list[T]]:
    group: list[T] = []
    held = 0
    for item in items:
        group.append(item)
        held += measure(item)
        if held >= size:
            yield group
            group, held = [], 0
    if group:
        yield group


def _clean_batch(documents: list[Document], how: config.Clean, compare: config.Dedup) -> list[Cleaned]:
    out = []
    for document in documents:
        text, found = clean.clean(document.text, how)
        out.append((Document(document.key, text), dedup.sign(text, compare), found))
    return out


def _deaf() -> None:
    """Makes a worker ignore Ctrl-C, which reaches every process of a terminal; the main process handles it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def clean_all(documents: Iterable[Document], how: config.Clean, compare: config.Dedup) -> Iterator[Cleaned]:
    """Cleans and signs documents on all cores. Yields them in order; a few batches are in memory at a time.

    Threads do a small corpus, processes a large one. Processes are spawned, because forking under jax is unsafe, so a script
    that calls this needs the usual `if __name__ == "__main__":`.
    """
    groups = _group(documents, _BATCH_BYTES, lambda d: len(d.text) + _OVERHEAD)
    head = list(itertools.islice(groups, _SMALL + 1))
    workers = os.cpu_count() or 1
    if len(head) <= _SMALL or workers == 1:
        executor: Executor = ThreadPoolExecutor(workers)
    else:
        executor = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_deaf)
    pending: deque[Future[list[Cleaned]]] = deque()
    with executor:
        try:
            for group in itertools.chain(head, groups):
                pending.append(executor.submit(_clean_batch, group, how, compare))
                if len(pending) > 2 * workers:
                    yield from pending.popleft().result()
            while pending:
                yield from pending.popleft().result()
        finally:
            executor.shutdown(wait=True, cancel_futures=True)


# --------------------------------------------------------------------------------------------------------- display


class Progress:
    """A progress bar for each stage, on stderr; shows nothing unless `on`."""

    def __init__(self, on: bool) -> None:
        self._bar: Any = None
        if on:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
            from rich.progress import Progress as Bar

            columns = TextColumn("{task.description:<28}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
            self._bar = Bar(*columns, console=Console(stderr=True))

    def __enter__(self) -> "Progress":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: Any) -> None:
        if self._bar:
            self._bar.stop()

    def track(self, items: Iterable[T], description: str, *, total: int) -> Iterator[T]:
        if not self._bar:
            yield from items
            return
        task = self._bar.add_task(description, total=total)
        for item in items:
            yield item
            self._bar.advance(task)
        self._bar.update(task, completed=total)

    def waiting(self, description: str) -> AbstractContextManager[None]:
        """Shows that a stage of unknown length is at work."""
        return self._pulse(description) if self._bar else nullcontext()

    @contextmanager
    def _pulse(self, description: str) -> Generator[None, None, None]:
        task = self._bar.add_task(description, total=None)
        yield
        self._bar.update(task, total=1, completed=1)


def show(report: Mapping[str, Any], path: Path) -> None:
    """Prints a report as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"prepared in {report['seconds']} s", title_justify="left")
    names = list(report["sources"])
    table.add_column("")
    for name in names:
        table.add_column(name, justify="right")
    rows: list[tuple[str, Callable[[Any], str]]] = [("documents read", lambda s: f"{s['read']:,}")]
    for why in ("unreadable", "short", "exact", "near"):
        rows.append((f"dropped: {why}", lambda s, why=why: f"{s['dropped'][why]:,}"))
    for what in clean.COUNTED:
        rows.append((f"cleaned: {what}", lambda s, what=what: f"{s['cleaned'][what]:,}"))
    for what in ("documents", "bytes", "tokens"):
        rows.append((what, lambda s, what=what: f"{s[what]:,}"))
        held = ("holdout", {what: 0})
        rows.append((f"  held out {what}", lambda s, what=what, held=held: f"{s['splits'].get(*held)[what]:,}"))
    if any("format" in source for source in report["sources"].values()):
        for split, label in (("train", "tokens with loss"), ("holdout", "  held out tokens with loss")):
            rows.append((label, lambda s, split=split: f"{_with_loss(s, split):,}"))
    rows.append(("bytes per token", lambda s: f"{s['bytes_per_token']:.3f}"))
    for label, cell in rows:
        table.add_row(label, *(cell(report["sources"][name]) for name in names))
    console = Console()
    console.print(table)
    tokenizer = report["tokenizer"]
    console.print(f"vocabulary {tokenizer['vocab_size']:,}  fingerprint {report['fingerprint'][:16]}", highlight=False)
    console.print(str(path), soft_wrap=True, highlight=False)


def _with_loss(source: Mapping[str, Any], split: str) -> int:
    """Tokens with loss in a split of a source: of a text all."""
    counts = source["splits"].get(split, {"tokens": 0})
    return counts.get("tokens_with_loss", counts["tokens"])
