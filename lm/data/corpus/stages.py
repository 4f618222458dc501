"""What the stages of a preparation share: texts on disk, cleaning of a document, a progress bar, the report as a table."""

import gzip
import json
import shutil
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

from lm import config
from lm.data.corpus import clean, dedup, quality
from lm.data.corpus.documents import Document
from lm.data.corpus.places import Url
from lm.errors import UserError

T = TypeVar("T")

# ---------------------------------------------------------------------------------------------------------- files


def read_texts(path: Path | Url) -> Iterator[Document]:
    """Yields the documents of a .jsonl or .jsonl.gz file that `prepare` wrote."""
    with path.open("rb") as raw, gzip.open(raw, "rb") if path.name.endswith(".gz") else nullcontext(raw) as lines:
        for line in lines:
            record = json.loads(line)
            yield Document(record["key"], record["text"])


def check_space(folder: Path, written: int) -> None:
    """Raises UserError if the disk has no room for the next stages, whose tokens and compressed text take about as many bytes
    as the text that is written."""
    free = shutil.disk_usage(folder).free
    if free < written:
        need, have = (f"{n / 1e9:.2f} GB" for n in (written, free))
        raise UserError(f"no disk space: at least {need} more needed below {folder}, {have} free; free some or set data.cache")


# ----------------------------------------------------------------------------------------------------------- work

_UNSIGNED = dedup.Signature(b"", None)  # of a dropped document
# A document, its signature, counts, and why it is dropped or None.
Cleaned = tuple[Document, dedup.Signature, Counter[str], str | None]


def cleaned(document: Document, how: config.Clean, compare: config.Dedup, judge: quality.Judge | None) -> Cleaned:
    """Cleans, judges and signs a document."""
    text, found = clean.clean(document.text, how)
    reason = None
    if judge is not None:
        text, reason, counts = judge(text)
        found += counts
    signature = dedup.sign(text, compare) if reason is None else _UNSIGNED
    return Document(document.key, text), signature, found, reason


def batches(documents: Iterable[Document], size: int) -> Iterator[list[Document]]:
    """Groups documents, in order, into lists of about `size` characters."""
    group: list[Document] = []
    held = 0
    for document in documents:
        group.append(document)
        held += len(document.text)
        if held >= size:
            yield group
            group, held = [], 0
    if group:
        yield group


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


def show(report: Mapping[str, Any], path: Path | Url) -> None:
    """Prints a report as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"prepared in {report['seconds']} s", title_justify="left")
    names = list(report["sources"])
    table.add_column("")
    for name in names:
        table.add_column(name, justify="right")
    rows: list[tuple[str, Callable[[Any], str]]] = [("documents read", lambda s: f"{s['read']:,}")]
    for what in dict.fromkeys(what for source in report["sources"].values() for what in source.get("left_out", ())):
        rows.append((f"files left out: {what}", lambda s, what=what: f"{s.get('left_out', {}).get(what, 0):,}"))
    for why in ("unreadable", "short", "exact", "near"):
        rows.append((f"dropped: {why}", lambda s, why=why: f"{s['dropped'][why]:,}"))
    judged = [source.get("quality", {"dropped": {}, "changed": {}}) for source in report["sources"].values()]
    for part in ("dropped", "changed"):
        for what in sorted({what for one in judged for what in one[part]}):
            rows.append((f"{part}: {what}", lambda s, p=part, w=what: f"{s.get('quality', {}).get(p, {}).get(w, 0):,}"))
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
