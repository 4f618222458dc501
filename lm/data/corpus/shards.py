"""Shards of a source, and the files that the stages of a preparation leave for each other in a folder of work.

A shard is a range of a source's documents. Where one ends depends on the source alone, not on how many processes work. Every
file is written under another name and renamed when it is complete; a task's result, its done mark, is written after its files.

    documents.pkl judge.pkl             what every task opens
    <source>/clean/7.jsonl              the cleaned documents of shard 7, a line of JSON each
    <source>/clean/7.rows.npy           ROW of each; 7.near.npy: its MinHash, uint32 [documents, permutations], of texts
    <source>/clean/7.json               the done mark
"""

import functools
import json
import os
import pickle
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

import numpy as np

from lm.data.corpus.documents import Document

_SHARDS = 256  # of a source, about, while they are neither too small nor too large
_FEWEST, _MOST = 64, 1 << 14  # documents in a shard
_SIGNED = 1 << 26  # bytes of MinHash in a shard, at most
DIGEST = (np.uint64, (4,))  # a SHA-256: its order is that of the bytes
ROW: Any = np.dtype(
    [
        ("end", np.int64),  # byte in the shard's file where its line ends
        ("exact", *DIGEST),  # documents with equal ones are exact copies
        ("order", *DIGEST),  # those with the smallest are held out
        ("held", np.bool_),  # by the source's own split
    ]
)


@dataclass(frozen=True)
class Shard:
    """Documents `start` to `stop`, exclusive, of a source."""

    source: str
    number: int
    start: int
    stop: int


def cut(source: str, count: int, *, permutations: int) -> list[Shard]:
    """The shards of a source of so many documents."""
    most = max(1, min(_MOST, _SIGNED // (4 * permutations)))
    size = max(1, min(most, max(_FEWEST, count // _SHARDS)))
    return [Shard(source, i, start, min(start + size, count)) for i, start in enumerate(range(0, count, size))]


def digests(raw: Sequence[bytes]) -> np.ndarray:
    """uint64 [n, 4] of SHA-256 digests."""
    return np.frombuffer(b"".join(raw), ">u8").reshape(-1, 4).astype(np.uint64)


# ----------------------------------------------------------------------------------------------------------- files


def stored(done: Path, make: Callable[[], Any]) -> Any:
    """The JSON in `done`, or what `make` returns if there is none."""
    if done.exists():
        try:
            return json.loads(done.read_bytes())
        except ValueError:
            pass  # damaged since: it is done again
    return make()


def once(done: Path, make: Callable[[], Any]) -> Any:
    """Calls `make` and stores what it returns as JSON in `done`, unless that was done before."""

    def kept() -> Any:
        made = json.dumps(make(), ensure_ascii=False).encode()
        with written(done) as out:
            out.write(made)
        return json.loads(made)

    return stored(done, kept)


@contextmanager
def written(path: Path) -> Generator[IO[bytes]]:
    """A file to write, which gets its name at the end of the block. Two tasks may write the same at once."""
    temporary = path.with_name(f"{path.name}.{uuid4().hex}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with temporary.open("xb") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())  # a done mark must not outlive its data
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def save(path: Path, array: np.ndarray) -> None:
    """Writes a .npy file."""
    with written(path) as out:
        np.save(out, array)


def pickled(path: Path, value: Any) -> None:
    with written(path) as out:
        pickle.dump(value, out)


def unpickled(path: Path) -> Any:
    """What `pickled` wrote; a process reads it once."""
    return _unpickled(path, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=4)
def _unpickled(path: Path, changed: int) -> Any:
    return pickle.loads(path.read_bytes())


def loaded(path: Path) -> Any:
    """The JSON of a done mark; a process reads it once."""
    return _loaded(path, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=4)
def _loaded(path: Path, changed: int) -> Any:
    return json.loads(path.read_bytes())


# ------------------------------------------------------------------------------------------- the cleaned documents


@dataclass(frozen=True)
class Cleaned:
    """The files of a shard's cleaned documents in the folder of work."""

    work: Path
    source: str
    number: int

    def file(self, end: str) -> Path:
        return self.work / self.source / "clean" / f"{self.number}.{end}"

    def rows(self) -> np.ndarray:
        """ROW [documents]."""
        return np.load(self.file("rows.npy"))

    def near(self) -> np.ndarray:
        """uint32 [documents, permutations], mapped from disk; [documents, 0] if they are not compared."""
        return np.load(self.file("near.npy"), mmap_mode="r")

    def lines(self, rows: np.ndarray) -> Iterator[bytes]:
        """The lines of the documents with these numbers, which ascend. Adjacent ones are read together."""
        if not len(rows):
            return
        ends = np.concatenate([[0], self.rows()["end"]])
        with self.file("jsonl").open("rb") as stream:
            at = 0
            for row in rows.tolist():
                start, stop = int(ends[row]), int(ends[row + 1])
                if start != at:
                    stream.seek(start)
                yield stream.read(stop - start)
                at = stop

    def documents(self, rows: np.ndarray) -> Iterator[Document]:
        for line in self.lines(rows):
            value = json.loads(line)
            yield Document(value["key"], value["text"])


def line(document: Document) -> bytes:
    return (json.dumps({"key": document.key, "text": document.text}, ensure_ascii=False) + "\n").encode()


# ------------------------------------------------------------------------------------------------- external sorting


def scatter(path: Path, records: np.ndarray, part: np.ndarray, parts: int) -> None:
    """Writes records so that `gather` finds those of a part. `part`: int [n], which one each belongs to. The order of the
    records within a part stays."""
    order = np.argsort(part, kind="stable")
    bounds = np.searchsorted(part[order], np.arange(parts + 1))
    save(path.with_suffix(".bounds.npy"), bounds.astype(np.int64))
    save(path, records[order])


def gather(paths: Sequence[Path], part: int) -> np.ndarray:
    """The records of a part in the files that `scatter` wrote, in the order of the files."""
    found = []
    for path in paths:
        start, stop = np.load(path.with_suffix(".bounds.npy"), mmap_mode="r")[part : part + 2].tolist()
        found.append(np.array(np.load(path, mmap_mode="r")[start:stop]))
    return np.concatenate(found)
