"""What the stages of a preparation share: texts on disk, work in parallel, a bar."""

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
from typing import Any, TypeVar

from lm import config
from lm.data.corpus import clean, dedup
from lm.data.corpus.sources import Document
from lm.errors import UserError

T = TypeVar("T")
_BATCH_BYTES = 1 << 20  # of text that a worker gets in one turn
_SMALL = 24  # batches: up to here processes are not worth starting
_SPACE_EVERY = 1000  # documents between two looks at the free disk space

# ---------------------------------------------------------------------------------------------------------- files


def read_texts(path: Path, *, keys_only: bool = False) -> Iterator[Document]:
    """The documents of a .jsonl or .jsonl.gz file that `prepare` wrote; `keys_only` leaves the texts empty."""
    opened = gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8")
    with opened as lines:
        for line in lines:
            record = json.loads(line)
            yield Document(record["key"], "" if keys_only else record["text"])


class TextWriter:
    """Writes .jsonl.gz whose bytes depend on the documents alone: no name and no time in the header."""

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


def check_space(folder: Path, written: int, *, every: int) -> None:
    """Raises UserError if what must still come does not fit: tokens and compressed text take about what was written."""
    if every % _SPACE_EVERY:
        return
    free = shutil.disk_usage(folder).free
    if free < written:
        need, have = (f"{n / 1e9:.2f} GB" for n in (written, free))
        raise UserError(f"no disk space: at least {need} more needed below {folder}, {have} free; free some or set data.cache")


# ----------------------------------------------------------------------------------------------------------- work

Cleaned = tuple[Document, dedup.Signature, Counter[str]]


def batches(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    """Lists of texts of about `size` characters, in order."""
    yield from _group(texts, size, len)


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
    """Of a worker: Ctrl-C reaches every process of a terminal, and one of them answers it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def clean_all(documents: Iterable[Document], how: config.Clean, compare: config.Dedup) -> Iterator[Cleaned]:
    """Cleans and signs documents on all cores, in order, holding a few batches at a time.

    A small corpus is done by threads. A large one by processes, which are spawned, because forking under jax is unsafe:
    a script that calls this needs the usual `if __name__ == "__main__":`.
    """
    groups = _group(documents, _BATCH_BYTES, lambda d: len(d.text) + 1000)
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


# --------------------------------------------------------------------------------------------------- what one sees


class Progress:
    """A rich bar for each stage, on stderr; nothing if switched off."""

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
        """A stage of one step whose length is not known."""
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
    rows.append(("bytes per token", lambda s: f"{s['bytes_per_token']:.3f}"))
    for label, cell in rows:
        table.add_row(label, *(cell(report["sources"][name]) for name in names))
    console = Console()
    console.print(table)
    tokenizer = report["tokenizer"]
    console.print(f"vocabulary {tokenizer['vocab_size']:,}  fingerprint {report['fingerprint'][:16]}", highlight=False)
    console.print(str(path), soft_wrap=True, highlight=False)
