"""Records with a date: those of a source from one day on and before another, as new documents come in a stream."""

import datetime
from collections.abc import Sequence
from typing import Any

import numpy as np

from lm import config
from lm.data.corpus.documents import SKIP, CorruptRecord, Document, Documents
from lm.errors import UserError, nearest


def date_of(value: Any, source: config.Source, where: str) -> datetime.date | None:
    """The day in the field `source.date` of a record, None if the source names none. UserError if the field is missing,
    CorruptRecord if it is no date in ISO's form (2024, 2024-05, 2024-05-31, with a time or without; or the number 2024)."""
    name = source.date
    if name is None or not isinstance(value, dict):
        return None  # what is no object is refused with its text
    if name not in value:
        raise UserError(f"{where}: no field {name!r}{nearest(name, map(str, value))}; set date= of the source")
    found = value[name]
    try:
        if isinstance(found, datetime.date):  # of a Parquet column of dates or times
            return found.date() if isinstance(found, datetime.datetime) else found
        return config.day(found)
    except (TypeError, ValueError):
        raise CorruptRecord(f"{where}: field {name!r} is {found!r:.60}, no date such as 2024-05-31; {SKIP}") from None


class Within:
    """The documents of a source whose dates are within `source.since` and `source.before`, in their order and with their keys.
    What cannot be read stays, and is refused or counted where it is read."""

    def __init__(self, documents: Documents, source: config.Source) -> None:
        self._documents, self.transcripts = documents, documents.transcripts
        since, before = (None if bound is None else config.day(bound) for bound in (source.since, source.before))

        def kept(index: int) -> bool:
            try:
                date = documents[index].date
            except CorruptRecord:
                return True
            return date is None or ((since is None or date >= since) and (before is None or date < before))

        self._index = np.array([i for i in range(len(documents)) if kept(i)], np.int64)
        if not len(self._index):
            raise UserError(
                f"no record of {source.path} has a date within since={source.since} and before={source.before}; "
                f"widen them, or check date={source.date}"
            )

    @property
    def unreadable(self) -> Sequence[str]:
        return self._documents.unreadable

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, index: int) -> Document:
        return self._documents[int(self._index[index])]
