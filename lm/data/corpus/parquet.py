"""Documents in Parquet files: a row a document, the text in one column, or a record whose fields are columns.

A row group is what is read at a time, so memory is bounded by the largest row group's columns that the format reads.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from lm import config
from lm.data import records
from lm.data.corpus.dated import date_of
from lm.data.corpus.documents import SKIP, CorruptRecord, Document, cannot_read, content, one_line
from lm.data.corpus.files import File
from lm.data.corpus.places import Unreachable, Url
from lm.data.corpus.sharded import BadBlock, Sharded
from lm.errors import UserError, nearest


class Parquet(Sharded):
    """One document per row. Columns that the format does not read are never loaded; a null in a column or a struct is an absent
    field."""

    _open: tuple[str, Any] = ("", None)  # at most one file is open

    def __init__(self, source: config.Source, files: list[File], on_corrupt: str) -> None:
        self._source = source
        self._columns: dict[str, list[str]] = {}
        super().__init__(files, on_corrupt)

    def _reader(self, file: File) -> Any:
        """An open reader of the file; at most one is open at a time."""
        if self._open[0] == file.key:
            return self._open[1]
        try:
            from pyarrow import ArrowException, parquet
        except ImportError:
            raise UserError("a source of kind parquet needs pyarrow: pip install -e '.[parquet]'") from None

        if self._open[1] is not None:
            self._open[1].close(force=True)
        self._open = ("", None)
        try:
            place: Any = file.path.open("rb", buffering=0) if isinstance(file.path, Url) else str(file.path)
            reader = parquet.ParquetFile(place, page_checksum_verification=True)  # where the file has checksums
        except Unreachable as error:
            raise cannot_read(file.path, error) from None
        except (ArrowException, OSError) as error:
            raise CorruptRecord(f"{file.path}: not a Parquet file that can be read ({one_line(error)}); {SKIP}") from None
        self._open = (file.key, reader)
        return reader

    def _index(self, file: File) -> np.ndarray:
        reader = self._reader(file)
        sizes = [reader.metadata.row_group(i).num_rows for i in range(reader.metadata.num_row_groups)]
        self._columns[file.key] = self._read_columns(file, {field.name: field.type for field in reader.schema_arrow})
        return np.cumsum([0, *sizes])

    def _load(self, file: File, block: int) -> Any:
        try:
            return self._reader(file).read_row_group(block, columns=self._columns[file.key])
        except Unreachable as error:
            raise cannot_read(file.path, error) from None
        except (OSError, ValueError) as error:  # ArrowInvalid is a ValueError
            raise BadBlock(f"row group {block} cannot be read ({one_line(error)})") from None

    def _read_columns(self, file: File, types: Mapping[str, Any]) -> list[str]:
        """The columns that the source's format reads. UserError if one that it needs is missing, or is no text."""
        import pyarrow

        source = self._source
        if source.date is not None and source.date not in types:
            raise UserError(f"{file.path}: no column {source.date!r}{nearest(source.date, types)}; set date= of the source")
        dated = {} if source.date is None else {source.date: None}
        if source.format != "text":
            known = records.FIELDS[source.format]
            if not types.keys() & known:
                raise UserError(
                    f"{file.path}: no column of a {source.format} record ({', '.join(known)}), and its columns are "
                    f"{_listed(types)}; rename its columns, or set another format of the source"
                )
            # A name that is nearly one of a field is read too, so that the parser can point at it.
            read = [name for name in types if name in known or "did you mean" in nearest(name, known)]
            return [*dict.fromkeys(read) | dated]
        if source.field not in types:
            raise UserError(f"{file.path}: no column {source.field!r}{nearest(source.field, types)}; set field= of the source")
        kind = types[source.field]
        kind = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
        if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind) or pyarrow.types.is_string_view(kind)):
            raise UserError(f"{file.path}: column {source.field!r} is {kind}, not text; set field= of the source")
        return [*{source.field: None} | dated]

    def __getitem__(self, index: int) -> Document:
        file, row = self._locate(index)
        where = f"{file.path}, row {row}"
        table, at = self._records(file, row)
        (value,) = table.slice(at, 1).to_pylist()
        date = date_of(value, self._source, where)
        value = value if self._source.format == "text" else _without_nulls(value)
        return Document(f"{file.key}:{row}", content(value, self._source, where), date)


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nulls(below) for name, below in value.items() if below is not None}
    return [_without_nulls(below) for below in value] if isinstance(value, list) else value


def _listed(names: Iterable[str]) -> str:
    shown = list(names)
    return ", ".join(shown[:8]) + (", ..." if len(shown) > 8 else "")
