"""What every kind of source has in common: documents by index, and records and texts out of bytes."""

import codecs
import datetime
import errno
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from lm import config
from lm.data import records
from lm.data.corpus.places import Unreachable
from lm.errors import UserError, nearest

SKIP = "mend the file, or count and skip such records with data.on_corrupt=skip"


class CorruptRecord(UserError):
    """A record or a file that cannot be read. `on_corrupt="skip"` skips these and no other errors."""


@dataclass(frozen=True)
class Document:
    key: str  # stable and unique in its source
    text: str
    date: datetime.date | None = None  # None: the source names no field with one


class Documents(Protocol):
    """Random access by index. `documents[i]` raises CorruptRecord if it cannot be read, UserError for a wrong setting."""

    @property
    def unreadable(self) -> Sequence[str]: ...  # an error text for each skipped file; empty unless on_corrupt="skip"

    @property
    def transcripts(self) -> bool: ...  # the documents are transcripts of speech, with stage directions in brackets

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Document: ...


_OF_THE_MACHINE = (errno.ENOENT, errno.ESTALE, errno.EMFILE, errno.ENFILE)


def cannot_read(path: Any, error: BaseException) -> UserError:
    """CorruptRecord, which may be skipped; UserError for a fault of the network or of the access, which is none of the file: of
    one that was listed and is gone, another machine may not see the folder."""
    if isinstance(error, Unreachable):
        return UserError(f"cannot be read now: {one_line(error)}; check the network and the access to it, and start again")
    if isinstance(error, OSError) and error.errno in _OF_THE_MACHINE:
        return UserError(f"{path}: cannot be opened ({one_line(error)}); it was there when files were listed: start again")
    return CorruptRecord(f"{path}: cannot be read ({one_line(error)}); {SKIP}")


def one_line(error: BaseException) -> str:
    """A library's error message on one line, at most 200 characters; its type if it has no message."""
    message = " ".join(str(error).split())
    return message[:200] or type(error).__name__


def decode(raw: bytes, encoding: str, where: str, offset: int = 0) -> str:
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
        raise CorruptRecord(f"{where}: invalid {encoding}{at}; {cure}, or {SKIP}") from None


def _is_utf8(encoding: str) -> bool:
    return codecs.lookup(encoding).name in ("utf-8", "utf-8-sig")


def parse_json(line: str, where: str) -> Any:
    """Parses a line of JSON. Raises CorruptRecord if it is malformed."""
    try:
        return json.loads(line)
    except RecursionError:
        raise CorruptRecord(f"{where}: JSON nested too deep; {SKIP}") from None
    except ValueError as error:
        raise CorruptRecord(f"{where}: malformed JSON ({one_line(error)}); {SKIP}") from None


def content(value: Any, source: config.Source, where: str) -> str:
    """The text of a JSON object; where the source's format is not text, its record as a line of JSON."""
    if source.format == "text":
        return _field(value, source.field, where)
    try:
        return records.to_json(records.parse(value, source.format))
    except records.InvalidRecord as error:
        raise CorruptRecord(f"{where}: {error}; {SKIP}") from None


def _field(record: Any, name: str, where: str) -> str:
    """The text in field `name` of a JSON object. UserError if the field is missing, CorruptRecord if it is not valid text."""
    if not isinstance(record, dict):
        raise CorruptRecord(f"{where}: a JSON {type(record).__name__}, not an object with a {name!r}; {SKIP}")
    if name not in record:
        raise UserError(f"{where}: no field {name!r}{nearest(name, map(str, record))}; set field= of the source")
    if not isinstance(record[name], str):
        raise CorruptRecord(f"{where}: field {name!r} is a {type(record[name]).__name__}, not text; {SKIP}")
    try:
        record[name].encode()
    except UnicodeEncodeError as error:  # JSON can spell a lone surrogate, "\\ud83d", which is not a character
        raise CorruptRecord(f"{where}: half a surrogate pair at character {error.start}; {SKIP}") from None
    return record[name]
