"""Documents in CSV files: a row a document, whose columns have the names in the first row.

The separator is a comma, a semicolon or a tab, whichever the first row has most of. A file is read into memory, one at a time.
"""

import csv
import gzip
import io
import sys
import zlib
from typing import Any

from lm import config
from lm.data.corpus.documents import SKIP, CorruptRecord, Document, content, decode, one_line
from lm.data.corpus.files import File, Sharded


class Csv(Sharded):
    """One document per row, the text in one column, or a record whose fields are columns. Empty rows are left out."""

    def __init__(self, source: config.Source, files: list[File], on_corrupt: str) -> None:
        self._source = source
        self._open: tuple[str, list[dict[Any, Any]]] = ("", [])
        super().__init__(files, lambda file: len(self._rows(file)), on_corrupt)

    def _rows(self, file: File) -> list[dict[Any, Any]]:
        """The rows of the file by column, of the file that was read last without reading it again. CorruptRecord if it is no
        CSV."""
        if self._open[0] != file.key:
            self._open = ("", [])  # frees the previous file before the next is read
            try:
                raw = file.path.read_bytes()
                raw = gzip.decompress(raw) if file.key.endswith(".gz") else raw
            except (OSError, EOFError, zlib.error) as error:
                raise CorruptRecord(f"{file.path}: cannot be read ({one_line(error)}); {SKIP}") from None
            text = decode(raw, self._source.encoding, str(file.path))
            self._open = (file.key, _parsed(text, str(file.path)))
        return self._open[1]

    def __getitem__(self, index: int) -> Document:
        file, row = self._locate(index)
        where = f"{file.path}, row {row + 1} after the names"
        found = self._rows(file)[row]
        if None in found:  # where DictReader puts what is beyond the last column
            raise CorruptRecord(
                f"{where}: more values than the {len(found) - 1} columns; put texts with commas in quotes, or {SKIP}"
            )
        return Document(f"{file.key}:{row + 1}", content(found, self._source, where))


def _parsed(text: str, where: str) -> list[dict[Any, Any]]:
    """The rows by column. In a table of tabs whose lines all have the same number of them, quotes are letters where they cannot
    be marks. CorruptRecord, with the number of lines that are lost, if it is no CSV."""
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # a text may be longer than the 131,072 characters of the default
    lines = [line for line in text.split("\n") if line.strip("\r")]
    separator = max(",;\t", key=text.partition("\n")[0].count)
    even = separator == "\t" and len({line.count("\t") for line in lines}) == 1
    wrong = []
    for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_NONE) if even else (csv.QUOTE_MINIMAL,):
        try:
            return _table(text, separator, quoting)
        except csv.Error as error:
            wrong.append(one_line(error))
    raise CorruptRecord(f"{where}: no CSV ({wrong[0]}); lines lost below the names: {len(lines) - 1}; {SKIP}")


def _table(text: str, separator: str, quoting: Any) -> list[dict[Any, Any]]:
    """The rows of one reading; csv.Error if it fails, two columns have one name, or a tab is within quotes: there a text that
    begins with a quote mark of its own would swallow the rows behind it."""
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator, strict=True, quoting=quoting)
    try:
        rows = list(reader)
    except csv.Error as error:
        raise csv.Error(f"after line {reader.line_num}: {error}") from None
    names = list(filter(None, reader.fieldnames or ()))
    if twice := [name for name in names if names.count(name) > 1]:
        raise csv.Error(f"two columns are named {twice[0]!r}: give each a name of its own")
    if separator == "\t":
        for i, row in enumerate(rows, 1):
            if any(isinstance(value, str) and "\t" in value for value in row.values()):
                raise csv.Error(f"row {i}: a tab within quotes; separate by commas, or write quote marks of texts twice")
    return rows
