"""Documents in ArrayRecord files, of local disk: a record a document."""

import json
from typing import Any

from lm import config
from lm.data.corpus.dated import date_of
from lm.data.corpus.documents import SKIP, CorruptRecord, Document, content, decode, one_line, parse_json
from lm.data.corpus.files import File
from lm.data.corpus.places import Url
from lm.data.corpus.sharded import Sharded
from lm.errors import UserError


class ArrayRecord(Sharded):
    """One document per record: a JSON object with the field, or plain text."""

    _open: tuple[str, Any] = ("", None)

    def __init__(self, source: config.Source, files: list[File], on_corrupt: str) -> None:
        self._source = source
        super().__init__(files, on_corrupt)

    def _index(self, file: File) -> list[int]:
        return [0, self._reader(file).num_records()]

    def _reader(self, file: File) -> Any:
        """An open reader of the file; at most one is open at a time."""
        if self._open[0] == file.key:
            return self._open[1]
        if isinstance(file.path, Url):
            raise UserError(f"{file.path}: ArrayRecord is read from local disk alone; copy it to a local folder")
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
