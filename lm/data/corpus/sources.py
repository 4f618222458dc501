"""Documents by index from TFDS, text files, JSON lines and ArrayRecord, behind one small protocol.

Files are sorted by name, so index i is the same document on every machine. A document's key is relative to the folder that a
glob starts from, so moving a corpus changes neither its train/holdout split nor its fingerprint.
"""

import codecs
import contextlib
import gzip
import hashlib
import importlib
import io
import json
import mmap
import zlib
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from lm import config
from lm.data import records
from lm.data.corpus import packages
from lm.errors import UserError, nearest

_BLOCK = 1 << 24  # bytes read at a time when hashing a file or finding its lines
_BLANK = b" \t\r\v\f"
_SKIP = "mend the file, or count and skip such records with data.on_corrupt=skip"
# tfds builders of this package: modules of lm.data.corpus with `version()` and `builder(data_dir)`.
_BUNDLED = ("sotu",)


class CorruptRecord(UserError):
    """A record or a file that cannot be read. `on_corrupt="skip"` skips these and no other errors."""


@dataclass(frozen=True)
class Document:
    key: str  # stable and unique in its source
    text: str


class Documents(Protocol):
    """Random access by index. `documents[i]` raises CorruptRecord if it cannot be read, UserError for a wrong setting."""

    @property
    def unreadable(self) -> Sequence[str]: ...  # an error text for each skipped file; empty unless on_corrupt="skip"

    @property
    def transcripts(self) -> bool: ...  # the documents are transcripts of speech, with stage directions in brackets

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Document: ...


def open_source(source: config.Source, *, cache: str = "~/.cache/lm", on_corrupt: str = "fail") -> Documents:
    """Opens the documents of `source`. A tfds builder is downloaded and prepared on first use (a bundled one below `cache`).

    Raises UserError if nothing is found, and CorruptRecord for a file that cannot be opened unless `on_corrupt` is "skip".
    """
    if source.kind == "tfds":
        return _Tfds(source, cache)
    if source.kind == "package":
        return Splits(packages.load(source.path, cache))
    kinds = {"text": _Text, "jsonl": _JsonLines, "array_record": _ArrayRecord}
    return kinds[source.kind](source, _find(source), on_corrupt)


def identity(source: config.Source) -> dict[str, Any]:
    """A JSON tree that identifies the contents of `source`: equal for equal contents.

    Local files are identified by name and hash, remote files by name, size and modification time, tfds by builder, split and
    version, a package's set by the digest of its file. (Cloze questions: see `lm.data.corpus.prepare.fingerprint`.)
    """
    if source.kind == "package":
        return {
            "kind": source.kind,
            "path": source.path,
            "version": packages.VERSION,
            "sha256": packages.find(source.path).sha256,
        }
    if source.kind == "tfds":
        contents: dict[str, Any] = {"path": source.path, "split": source.split, "version": _tfds_version(source.path)}
    else:
        contents = {"files": [[f.key, *_file_identity(f)] for f in _find(source)], "encoding": source.encoding}
    if source.format != "text":  # texts keep the fingerprint that they had before there were other formats
        return {"kind": source.kind, "format": source.format, "version": records.VERSION, **contents}
    return {"kind": source.kind, "field": source.field, **contents}


class Splits:
    """Records of a set that has its own held-out split. Keys are `train/0`, ..., `holdout/0`, ..."""

    unreadable: Sequence[str] = ()
    transcripts = False

    def __init__(self, splits: Mapping[str, Sequence[records.Record]]) -> None:
        self._records = [(f"{split}/{i}", record) for split, some in splits.items() for i, record in enumerate(some)]

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Document:
        key, record = self._records[index]
        return Document(key, records.to_json(record))


# -------------------------------------------------------------------------------------------------------------- files


@dataclass(frozen=True)
class _File:
    key: str  # its path relative to the folder where the glob starts
    path: Any  # pathlib.Path, or an etils epath if remote

    @property
    def remote(self) -> bool:
        return "://" in str(self.path)


def _find(source: config.Source) -> list[_File]:
    """The files that match `source.path` (a path or a glob), sorted by key. Raises UserError if there are none."""
    pattern = source.path
    parts = pattern.split("/")
    fixed = next((i for i, part in enumerate(parts) if any(c in part for c in "*?[")), len(parts) - 1)
    folder, rest = "/".join(parts[:fixed]), "/".join(parts[fixed:])
    try:
        if "://" in pattern:
            from etils import epath  # reads gs:// through fsspec or gcsfs, without TensorFlow

            root: Any = epath.Path(folder)
        else:
            root = Path(folder or ("/" if pattern.startswith("/") else ".")).expanduser()
        found = [root / rest] if (root / rest).is_file() else [p for p in root.glob(rest) if p.is_file()]
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        raise UserError(f"cannot list {pattern}: {_line(error)}; check the path and the access to it") from None
    if not found:
        hint = f"; it is a folder: use {pattern.rstrip('/')}/**/*" if (root / rest).is_dir() else ""
        raise UserError(f"no file matches {pattern} (source kind {source.kind}){hint or '; check data.sources.*.path'}")
    prefix = len(str(root).rstrip("/")) + 1 if str(root) != "." else 0
    files = [_File(str(p)[prefix:].encode("utf-8", "backslashreplace").decode(), p) for p in found]
    return sorted(files, key=lambda f: f.key)


def _file_identity(file: _File) -> list[Any]:
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
        raise UserError(f"cannot read {file.path} ({_line(error)}); check the access to it, or data.sources.*.path") from None
    return [size, digest.hexdigest()]


def _line(error: BaseException) -> str:
    """A library's error message on one line, at most 200 characters; its type if it has no message."""
    message = " ".join(str(error).split())
    return message[:200] or type(error).__name__


def _decode(raw: bytes, encoding: str, where: str, offset: int = 0) -> str:
    """Decodes `raw` and drops a byte order mark. Raises CorruptRecord with the position of the bad byte, plus `offset`."""
    try:
        text = raw.decode(encoding).removeprefix("\ufeff")
        if not _is_utf8(encoding):
            text.encode()  # a few codecs produce lone surrogates, which are not characters
        return text
    except UnicodeError as error:
        at = f" at byte {offset + error.start}" if isinstance(error, UnicodeDecodeError) else ""
        marked = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) and "16" not in encoding
        cure = "it begins like utf-16: set encoding=utf-16" if marked else "set encoding= of the source (latin-1, cp1252...)"
        raise CorruptRecord(f"{where}: invalid {encoding}{at}; {cure}, or {_SKIP}") from None


def _is_utf8(encoding: str) -> bool:
    return codecs.lookup(encoding).name in ("utf-8", "utf-8-sig")


def _json(line: str, where: str) -> Any:
    """Parses a line of JSON. Raises CorruptRecord if it is malformed."""
    try:
        return json.loads(line)
    except RecursionError:
        raise CorruptRecord(f"{where}: JSON nested too deep; {_SKIP}") from None
    except ValueError as error:
        raise CorruptRecord(f"{where}: malformed JSON ({_line(error)}); {_SKIP}") from None


def _content(value: Any, source: config.Source, where: str) -> str:
    """The text of a JSON object; where the source's format is not text, its record as a line of JSON."""
    if source.format == "text":
        return _field(value, source.field, where)
    try:
        return records.to_json(records.parse(value, source.format))
    except records.InvalidRecord as error:
        raise CorruptRecord(f"{where}: {error}; {_SKIP}") from None


def _field(record: Any, name: str, where: str) -> str:
    """The text in field `name` of a JSON object. UserError if the field is missing, CorruptRecord if it is not valid text."""
    if not isinstance(record, dict):
        raise CorruptRecord(f"{where}: a JSON {type(record).__name__}, not an object with a {name!r}; {_SKIP}")
    if name not in record:
        raise UserError(f"{where}: no field {name!r}{nearest(name, map(str, record))}; set field= of the source")
    if not isinstance(record[name], str):
        raise CorruptRecord(f"{where}: field {name!r} is a {type(record[name]).__name__}, not text; {_SKIP}")
    try:
        record[name].encode()
    except UnicodeEncodeError as error:  # JSON can spell a lone surrogate, "\\ud83d", which is not a character
        raise CorruptRecord(f"{where}: half a surrogate pair at character {error.start}; {_SKIP}") from None
    return record[name]


class _Text:
    """One document per file."""

    unreadable: Sequence[str] = ()
    transcripts = False

    def __init__(self, source: config.Source, files: list[_File], on_corrupt: str) -> None:
        self._encoding, self._files = source.encoding, files

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Document:
        file = self._files[index]
        try:
            raw = file.path.read_bytes()
        except OSError as error:
            raise CorruptRecord(f"{file.path}: {_line(error)}; {_SKIP}") from None
        return Document(file.key, _decode(raw, self._encoding, str(file.path)))


class _Sharded:
    """Many records per file: maps a document's index to a file and a record in it.

    `count` opens a file and returns its number of records. Files on which it raises CorruptRecord are listed in `unreadable` if
    `on_corrupt` is "skip".
    """

    transcripts = False

    def __init__(self, files: list[_File], count: Callable[[_File], int], on_corrupt: str) -> None:
        self.unreadable: list[str] = []
        self._files: list[_File] = []
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

    def _locate(self, index: int) -> tuple[_File, int]:
        if not 0 <= index < len(self):
            raise IndexError(index)  # ends the iteration of `for document in documents`
        number = int(np.searchsorted(self._ends, index, side="right"))
        return self._files[number], index - (int(self._ends[number - 1]) if number else 0)


class _JsonLines(_Sharded):
    """One JSON object per line, plain or gzipped. Plain local files are memory-mapped; others are read into memory, one at a
    time."""

    def __init__(self, source: config.Source, files: list[_File], on_corrupt: str) -> None:
        self._source = source
        # In encodings such as UTF-16 the newline byte also occurs within other characters, so the file is decoded before it is
        # split into lines.
        self._bytewise = "\n".encode(source.encoding) == b"\n"
        self._lines: dict[str, np.ndarray] = {}  # key -> int64 [lines, 3]: line number from 1, first byte, end byte
        self._open: tuple[str, Any] = ("", b"")
        super().__init__(files, self._count, on_corrupt)

    def _buffer(self, file: _File) -> Any:
        if self._open[0] != file.key:
            self._open = ("", b"")  # frees the previous file before the next is read
            self._open = (file.key, self._load(file))
        return self._open[1]

    def _load(self, file: _File) -> Any:
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
            raise CorruptRecord(f"{file.path}: cannot be read ({_line(error)}); {_SKIP}") from None
        return raw if self._bytewise else _decode(raw, self._source.encoding, str(file.path)).encode()

    def _count(self, file: _File) -> int:
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
        record = _json(_decode(self._buffer(file)[start:stop], encoding, where, start), where)
        return Document(f"{file.key}:{number}", _content(record, self._source, where))


def _is_blank(line: bytes) -> bool:
    return not line.removeprefix(codecs.BOM_UTF8).strip(_BLANK)


class _ArrayRecord(_Sharded):
    """One document per record: a JSON object with the field, or plain text."""

    def __init__(self, source: config.Source, files: list[_File], on_corrupt: str) -> None:
        self._source = source
        self._open: tuple[str, Any] = ("", None)
        super().__init__(files, lambda file: self._reader(file).num_records(), on_corrupt)

    def _reader(self, file: _File) -> Any:
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
            raise CorruptRecord(f"{file.path}: corrupt ArrayRecord ({_line(error)}); {_SKIP}") from None
        self._open = (file.key, reader)
        return reader

    def __getitem__(self, index: int) -> Document:
        file, record = self._locate(index)
        where = f"{file.path}, record {record}"
        try:
            raw = self._reader(file).read([record])[0]
        except (RuntimeError, ValueError, IndexError) as error:
            self._open = ("", None)  # after a failed read, a reader fails at every record
            raise CorruptRecord(f"{where}: corrupt ArrayRecord ({_line(error)}); {_SKIP}") from None
        text = _decode(raw, self._source.encoding, where)
        if self._source.format != "text":
            text = _content(_json(text, where), self._source, where)
        elif text.startswith("{"):
            try:
                value = json.loads(text)
            except ValueError:
                pass  # plain text that happens to begin with a brace
            except RecursionError:
                raise CorruptRecord(f"{where}: JSON nested too deep; {_SKIP}") from None
            else:
                text = _content(value, self._source, where)
        return Document(f"{file.key}:{record}", text)


# --------------------------------------------------------------------------------------------------------------- tfds


def _bundled(name: str) -> Any:
    """The module of a builder in this package."""
    return importlib.import_module(f"lm.data.corpus.{name}")


def _tfds_version(name: str) -> str:
    if name in _BUNDLED:
        return _bundled(name).version()  # does not import tensorflow_datasets, which takes seconds
    return str(_builder(name, "").info.full_name)


def _builder(name: str, data_dir: str) -> Any:
    """The tfds builder of that name. A bundled one writes below `data_dir`, others to tfds's own folder."""
    if name in _BUNDLED:
        return _bundled(name).builder(data_dir)
    import tensorflow_datasets as tfds

    try:
        return tfds.builder(name, file_format="array_record")
    except tfds.core.DatasetNotFoundError:
        known = [*tfds.list_builders(with_community_datasets=False), *_BUNDLED]
        hint = nearest(name.split("/")[0].split(":")[0], known)
        hint = hint if "did you mean" in hint else "; see https://www.tensorflow.org/datasets/catalog"
        raise UserError(f"no tfds builder is named {name!r}{hint}") from None
    except (ValueError, OSError, RuntimeError) as error:
        raise UserError(f"tfds builder {name!r}: {_line(error)}; check its config and version") from None


@contextlib.contextmanager
def _quiet() -> Generator[None, None, None]:
    """Suppresses tfds's progress bars and messages: a bundled builder takes about a second."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


class _Tfds:
    """A split of a tfds builder, stored as ArrayRecord and read without TensorFlow."""

    unreadable: Sequence[str] = ()

    def __init__(self, source: config.Source, cache: str) -> None:
        from filelock import FileLock

        self._source = source
        folder = Path(cache).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        try:
            builder = _builder(source.path, str(folder / "tfds"))
            with FileLock(folder / f"tfds-{source.path.replace('/', '-')}.lock"):  # so that one process downloads
                with _quiet() if source.path in _BUNDLED else contextlib.nullcontext():
                    builder.download_and_prepare(file_format="array_record")
        except UserError:
            raise
        except Exception as error:  # builders raise whatever their download raises
            raise UserError(
                f"tfds {source.path!r} could not be prepared: {_line(error)}; check network and disk, and {folder / 'tfds'}"
            ) from None
        self.transcripts: bool = getattr(builder, "TRANSCRIPTS", False)
        if source.split.split("[")[0] not in builder.info.splits:
            raise UserError(f"tfds {source.path!r} has no split {source.split!r}{nearest(source.split, builder.info.splits)}")
        features: Mapping[str, Any] = builder.info.features
        if source.field not in features:
            raise UserError(f"tfds {source.path!r} has no field {source.field!r}{nearest(source.field, features)}")
        try:
            self._records = builder.as_data_source(split=source.split)
            count = len(self._records)
        except (ValueError, AssertionError) as error:
            raise UserError(f"tfds {source.path!r} split {source.split!r}: {_line(error)}; give another split") from None
        if not count:
            raise UserError(f"tfds {source.path!r} split {source.split!r} is empty; give another split")

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Document:
        where = f"tfds {self._source.path}/{self._source.split}, record {index}"
        if not 0 <= index < len(self):
            raise IndexError(index)
        try:
            record = self._records[index]
        except (RuntimeError, ValueError) as error:
            raise CorruptRecord(f"{where}: corrupt ({_line(error)}); {_SKIP}") from None
        text = record[self._source.field]
        if text is None:  # the record of a truncated file
            raise CorruptRecord(f"{where}: nothing there; {_SKIP}")
        if not isinstance(text, (bytes, str)):
            raise UserError(f"{where}: field {self._source.field!r} is not text; set field= of the source")
        text = _decode(text, "utf-8", where) if isinstance(text, bytes) else text  # tfds stores text as UTF-8
        name = record.get("id")
        key = name.decode(errors="backslashreplace") if isinstance(name, bytes) else f"{self._source.split}:{index}"
        return Document(key, text)
