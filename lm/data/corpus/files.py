"""Documents in files: texts, JSON lines and ArrayRecord, local or gs://.

Files are sorted by name, so index i is the same document on every machine. A document's key is relative to the folder that a
glob starts from, so moving a corpus changes neither its train/holdout split nor its fingerprint.
"""

import codecs
import gzip
import hashlib
import json
import mmap
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lm import config, paths
from lm.data.corpus.dated import date_of
from lm.data.corpus.documents import SKIP, CorruptRecord, Document, content, decode, one_line, parse_json
from lm.errors import UserError

_BLOCK = 1 << 24  # bytes read at a time when hashing a file or finding its lines
_BLANK = b" \t\r\v\f"


@dataclass(frozen=True)
class File:
    key: str  # its path relative to the folder where the glob starts
    path: Any  # pathlib.Path, or an etils epath if remote

    @property
    def remote(self) -> bool:
        return "://" in str(self.path)


def find(source: config.Source) -> list[File]:
    """The files that match `source.path` (a path or a glob; of kind parquet also a folder), sorted by key. Raises UserError if
    there are none."""
    pattern = source.path
    parts = pattern.split("/")
    fixed = next((i for i, part in enumerate(parts) if any(c in part for c in "*?[")), len(parts) - 1)
    if source.kind == "parquet" and "://" not in pattern and paths.expanded(pattern).is_dir():
        parts = [*pattern.rstrip("/").split("/"), "**", "*.parquet"]  # of a folder whatever its name is
        fixed, pattern = len(parts) - 2, "/".join(parts)
    folder, rest = "/".join(parts[:fixed]), "/".join(parts[fixed:])
    try:
        if "://" in pattern:
            from etils import epath  # reads gs:// through fsspec or gcsfs, without TensorFlow

            root: Any = epath.Path(folder)
        else:
            root = paths.expanded(folder or ("/" if pattern.startswith("/") else "."))
        found = [root / rest] if (root / rest).is_file() else [p for p in root.glob(rest) if p.is_file()]
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        raise UserError(f"cannot list {pattern}: {one_line(error)}; check the path and the access to it") from None
    if not found:
        hint = f"; it is a folder: use {pattern.rstrip('/')}/**/*" if (root / rest).is_dir() else ""
        raise UserError(f"no file matches {pattern} (source kind {source.kind}){hint or '; check data.sources.*.path'}")
    prefix = len(str(root).rstrip("/")) + 1 if str(root) != "." else 0
    files = [File(str(p)[prefix:].encode("utf-8", "backslashreplace").decode(), p) for p in found]
    return sorted(files, key=lambda f: f.key)


def identity(file: File) -> list[Any]:
    """[size in bytes, SHA-256] of a local file, [size in bytes, modification time] of a remote one."""
    try:
        if file.remote:
            stat = file.path.stat()
            return [stat.length, stat.mtime]
        digest, size = hashlib.sha256(), 0
        with file.path.open("rb") as stream:
            while block := stream.read(_BLOCK):
                digest.update(block)
                size += len(block)
    except OSError as error:
        raise UserError(
            f"cannot read {file.path} ({one_line(error)}); check the access to it, or data.sources.*.path"
        ) from None
    return [size, digest.hexdigest()]


class TextFiles:
    """One document per file."""

    unreadable: Sequence[str] = ()
    transcripts = False

    def __init__(self, source: config.Source, files: list[File], on_corrupt: str) -> None:
        self._encoding, self._files = source.encoding, files

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Document:
        file = self._files[index]
        try:
            raw = file.path.read_bytes()
        except OSError as error:
            raise CorruptRecord(f"{file.path}: {one_line(error)}; {SKIP}") from None
        return Document(file.key, decode(raw, self._encoding, str(file.path)))


class Sharded:
    """Many records per file: maps a document's index to a file and a record in it.

    `count` opens a file and returns its number of records. Files on which it raises CorruptRecord are listed in `unreadable` if
    `on_corrupt` is "skip".
    """

    transcripts = False

    def __init__(self, files: list[File], count: Callable[[File], int], on_corrupt: str) -> None:
        self.unreadable: list[str] = []
        self._files: list[File] = []
        counts = []
        for file in files:
            try:
                counts.append(count(file))
                self._files.append(file)
            except CorruptRecord as error:
                if on_corrupt != "skip":
                    raise
                self.unreadable.append(str(error))
        self._ends = np.cumsum(np.array(counts, np.int64))

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def _locate(self, index: int) -> tuple[File, int]:
        if not 0 <= index < len(self):
            raise IndexError(index)  # ends the iteration of `for document in documents`
        number = int(np.searchsorted(self._ends, index, side="right"))
        return self._files[number], index - (int(self._ends[number - 1]) if number else 0)


class JsonLines(Sharded):
    """One JSON object per line, plain or gzipped. Plain local files are memory-mapped; others are read into memory, one at a
    time."""

    def __init__(self, source: config.Source, files: list[File], on_corrupt: str) -> None:
        self._source = source
        # In encodings such as UTF-16 the newline byte also occurs within other characters, so the file is decoded before it is
        # split into lines.
        self._bytewise = "\n".encode(source.encoding) == b"\n"
        self._lines: dict[str, np.ndarray] = {}  # key -> int64 [lines, 3]: line number from 1, first byte, end byte
        self._open: tuple[str, Any] = ("", b"")
        super().__init__(files, self._count, on_corrupt)

    def _buffer(self, file: File) -> Any:
        if self._open[0] != file.key:
            self._open = ("", b"")  # frees the previous file before the next is read
            self._open = (file.key, self._load(file))
        return self._open[1]

    def _load(self, file: File) -> Any:
        """The file's bytes, in the source's encoding, or in UTF-8 where that encoding cannot be split at newline bytes."""
        try:
            if file.key.endswith(".gz"):
                raw: Any = gzip.decompress(file.path.read_bytes())
            elif file.remote or not self._bytewise:
                raw = file.path.read_bytes()
            else:
                with file.path.open("rb") as stream:
                    empty = file.path.stat().st_size == 0  # mmap refuses empty files
                    return b"" if empty else mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, EOFError, zlib.error) as error:
            raise CorruptRecord(f"{file.path}: cannot be read ({one_line(error)}); {SKIP}") from None
        return raw if self._bytewise else decode(raw, self._source.encoding, str(file.path)).encode()

    def _count(self, file: File) -> int:
        """Finds the lines of the file that are not blank, and returns their number."""
        buffer = self._buffer(file)
        ends = [
            np.flatnonzero(np.frombuffer(buffer[at : at + _BLOCK], np.uint8) == ord("\n")) + at
            for at in range(0, len(buffer), _BLOCK)
        ]
        stops = np.concatenate([*ends, [len(buffer)]]).astype(np.int64)
        starts = np.concatenate([[0], stops[:-1] + 1])
        lines = np.stack([np.arange(1, len(stops) + 1), starts, stops], axis=1)
        first = np.fromiter((buffer[i] if i < len(buffer) else 0 for i in starts.tolist()), np.uint8, len(starts))
        maybe = (stops == starts) | np.isin(first, np.frombuffer(_BLANK + codecs.BOM_UTF8[:1], np.uint8))
        blank = [i for i in np.flatnonzero(maybe).tolist() if _is_blank(buffer[starts[i] : stops[i]])]
        self._lines[file.key] = np.delete(lines, blank, axis=0)
        return len(self._lines[file.key])

    def __getitem__(self, index: int) -> Document:
        file, row = self._locate(index)
        number, start, stop = self._lines[file.key][row].tolist()
        where = f"{file.path}, line {number}"
        encoding = self._source.encoding if self._bytewise else "utf-8"
        record = parse_json(decode(self._buffer(file)[start:stop], encoding, where, start), where)
        return Document(f"{file.key}:{number}", content(record, self._source, where), date_of(record, self._source, where))


def _is_blank(line: bytes) -> bool:
    return not line.removeprefix(codecs.BOM_UTF8).strip(_BLANK)


class ArrayRecord(Sharded):
    """One document per record: a JSON object with the field, or plain text."""

    def __init__(self, source: config.Source, files: list[File], on_corrupt: str) -> None:
        self._source = source
        self._open: tuple[str, Any] = ("", None)
        super().__init__(files, lambda file: self._reader(file).num_records(), on_corrupt)

    def _reader(self, file: File) -> Any:
        """An open reader of the file; at most one is open at a time."""
        if self._open[0] == file.key:
            return self._open[1]
        if file.remote:
            raise UserError(f"{file.path}: ArrayRecord is read from local disk; copy it first (gcloud storage cp)")
        from array_record.python.array_record_module import ArrayRecordReader  # ty: ignore[import-not-found]

        if self._open[1] is not None:
            self._open[1].close()
        self._open = ("", None)
        try:
            reader = ArrayRecordReader(str(file.path), options="readahead_buffer_size:0,max_parallelism:0")
            if not reader.ok() or not reader.num_records():  # a file with a broken footer opens with 0 records
                reader.close()  # raises RuntimeError with the reason
                raise RuntimeError("no records")
        except (RuntimeError, ValueError, OSError) as error:
            raise CorruptRecord(f"{file.path}: corrupt ArrayRecord ({one_line(error)}); {SKIP}") from None
        self._open = (file.key, reader)
        return reader

    def __getitem__(self, index: int) -> Document:
        file, record = self._locate(index)
        where = f"{file.path}, record {record}"
        try:
            raw = self._reader(file).read([record])[0]
        except (RuntimeError, ValueError, IndexError) as error:
            self._open = ("", None)  # after a failed read, a reader fails at every record
            raise CorruptRecord(f"{where}: corrupt ArrayRecord ({one_line(error)}); {SKIP}") from None
        text, date = decode(raw, self._source.encoding, where), None
        if self._source.format != "text" or self._source.date is not None:
            value = parse_json(text, where)
            text, date = content(value, self._source, where), date_of(value, self._source, where)
        elif text.startswith("{"):
            try:
                value = json.loads(text)
            except ValueError:
                pass  # plain text that happens to begin with a brace
            except RecursionError:
                raise CorruptRecord(f"{where}: JSON nested too deep; {SKIP}") from None
            else:
                text = content(value, self._source, where)
        return Document(f"{file.key}:{record}", text, date)
