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
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # a text may be longer than the 131,072 characters of the default
    separator = max(",;\t", key=text.partition("\n")[0].count)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        return list(reader)
    except csv.Error as error:
        raise CorruptRecord(f"{where}, after line {reader.line_num}: no CSV ({one_line(error)}); {SKIP}") from None
