"""Documents in CSV files: a row a document, whose columns have the names in the first row.

The separator is a comma, a semicolon or a tab, whichever the first row has most of. A file is read a range of rows at a time.
"""

import codecs
import csv
import io
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from lm import config
from lm.data.corpus.documents import SKIP, CorruptRecord, Document, content, decode, one_line
from lm.data.corpus.files import File
from lm.data.corpus.sharded import BLOCK, Streamed
from lm.data.corpus.streams import Stream


@dataclass(frozen=True)
class _Table:
    names: list[str]  # of the columns
    separator: str
    quoting: Any
    starts: np.ndarray  # int64 [blocks + 1]: first byte of each block


class Csv(Streamed):
    """One document per row, the text in one column, or a record whose fields are columns. Empty rows are left out."""

    def __init__(self, source: config.Source, files: list[File], on_corrupt: str) -> None:
        csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # a text may be longer than the 131,072 characters of the default
        self._tables: dict[str, _Table] = {}
        super().__init__(source, files, on_corrupt)

    def _index(self, file: File) -> list[int]:
        """In a table of tabs whose lines all have the same number of them, quotes are letters where they cannot be marks.
        CorruptRecord, with the number of lines that are lost, if it is no CSV."""
        wrong = []
        for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_NONE):
            lines = _Lines(self._stream(file, afresh=True), self._encoding, str(file.path))
            try:
                self._tables[file.key], firsts = _read(lines, quoting)
                return firsts
            except csv.Error as error:
                wrong.append(one_line(error))
            for _ in lines:
                pass  # to count the rest
            if lines.separator != "\t" or len(lines.tabs) > 1:
                break
        raise CorruptRecord(f"{file.path}: no CSV ({wrong[0]}); lines lost below the names: {lines.count - 1}; {SKIP}")

    def _load(self, file: File, block: int) -> list[dict[Any, Any]]:
        table = self._tables[file.key]
        start, stop = table.starts[block : block + 2].tolist()
        text = _decoded(self._stream(file).read(start, stop), self._encoding, str(file.path), start)
        return list(_reader(io.StringIO(text, newline=""), table.separator, table.quoting, table.names))

    def __getitem__(self, index: int) -> Document:
        file, row = self._locate(index)
        where = f"{file.path}, row {row + 1} after the names"
        rows, at = self._records(file, row)
        found = rows[at]
        if None in found:  # where DictReader puts what is beyond the last column
            raise CorruptRecord(
                f"{where}: more values than the {len(found) - 1} columns; put texts with commas in quotes, or {SKIP}"
            )
        return Document(f"{file.key}:{row + 1}", content(found, self._source, where))


def _read(lines: "_Lines", quoting: Any) -> tuple[_Table, list[int]]:
    """The table of a file, and the number of each block's first row. csv.Error if two columns have one name, or a tab is within
    quotes: there a text that begins with a quote mark of its own would swallow the rows behind it."""
    reader = _reader(lines, lines.separator, quoting, None)
    names, starts, firsts, count = list(reader.fieldnames or ()), [lines.at], [0], 0
    if twice := [name for name in names if name and names.count(name) > 1]:
        raise csv.Error(f"two columns are named {twice[0]!r}: give each a name of its own")
    try:
        for count, row in enumerate(reader, 1):
            if lines.separator == "\t" and any(isinstance(value, str) and "\t" in value for value in row.values()):
                raise csv.Error(f"row {count}: a tab within quotes; separate by commas, or write quote marks of texts twice")
            if lines.at - starts[-1] >= BLOCK:
                starts.append(lines.at)
                firsts.append(count)
    except csv.Error as error:
        raise csv.Error(str(error) if str(error).startswith("row ") else f"after line {reader.line_num}: {error}") from None
    return _Table(names, lines.separator, quoting, np.array([*starts, lines.at], np.int64)), [*firsts, count]


def _reader(lines: Any, separator: str, quoting: Any, names: list[str] | None) -> csv.DictReader:
    return csv.DictReader(lines, names, delimiter=separator, strict=True, quoting=quoting)


class _Lines:
    """The lines of a file, read one after another, and what is counted on the way."""

    def __init__(self, stream: Stream, encoding: str, name: str) -> None:
        self.at = 0  # bytes of the lines that were read
        self.count, self.tabs = 0, set[int]()  # lines that are not empty; numbers of tabs in them
        self._rest = self._read(stream, encoding, name)
        self._first = next(self._rest, "")
        self.separator = max(",;\t", key=self._first.count)

    def _read(self, stream: Stream, encoding: str, name: str) -> Iterator[str]:
        while raw := stream.read_line(-1):
            line = _decoded(raw, encoding, name, self.at)
            end = self.at + len(raw)
            if line.strip("\r\n"):
                self.count += 1
                self.tabs.add(line.count("\t"))
            parts = list(io.StringIO(line, newline=""))  # of a line with carriage returns
            for i, part in enumerate(parts, 1):
                self.at = end - sum(len(rest.encode(encoding)) for rest in parts[i:])
                yield part

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        first, self._first = self._first, ""
        return first or next(self._rest)


def _decoded(raw: bytes, encoding: str, name: str, start: int) -> str:
    """The text of bytes from `start` on. Only at the beginning of a file there is a byte order mark."""
    marked = start > 0 and raw.startswith(codecs.BOM_UTF8)
    return "\ufeff" * marked + decode(raw, encoding, name, start)
