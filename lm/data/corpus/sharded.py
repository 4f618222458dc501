"""Files with many records each, read a block at a time: a row group of Parquet, a range of bytes of JSON lines.

What is kept of a file is where its blocks begin; memory holds one block, whatever a file's size. Objects can be pickled and go
on in another process, which does not look for the blocks again.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from lm import config
from lm.data.corpus.documents import SKIP, CorruptRecord, one_line
from lm.data.corpus.files import File
from lm.data.corpus.streams import Stream, bytewise
from lm.errors import UserError

BLOCK = 1 << 22  # bytes of a block, up to the end of its last record


class BadBlock(Exception):
    """Why a block cannot be read."""


class Sharded:
    """Maps a document's index to a file and a record in it.

    A subclass says where a file's blocks begin (`_index`) and reads one (`_load`). Files on which `_index` raises CorruptRecord
    are listed in `unreadable` if `on_corrupt` is "skip".
    """

    transcripts = False
    _block: tuple[str, int, Any] = ("", -1, ())  # the block that was read last: key, number, records

    def __init__(self, files: list[File], on_corrupt: str) -> None:
        self.unreadable: list[str] = []
        self._files: list[File] = []
        self._firsts: dict[str, np.ndarray] = {}  # key -> int64 [blocks + 1]: number of each block's first record; of all
        self._damaged: dict[tuple[str, int], str] = {}  # key and number of a block -> why it cannot be read
        for file in files:
            try:
                self._firsts[file.key] = np.asarray(self._index(file), np.int64)
                self._files.append(file)
            except CorruptRecord as error:
                if on_corrupt != "skip":
                    raise
                self.unreadable.append(str(error))
        self._ends = np.cumsum([self._firsts[file.key][-1] for file in self._files], dtype=np.int64)

    def _index(self, file: File) -> Sequence[int] | np.ndarray:
        raise NotImplementedError

    def _load(self, file: File, block: int) -> Any:
        """The records of a block. BadBlock if it cannot be read."""
        raise NotImplementedError

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_block", "_open")}

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def _locate(self, index: int) -> tuple[File, int]:
        """The file of a document, and the number of its record there."""
        if not 0 <= index < len(self):
            raise IndexError(index)  # ends the iteration of `for document in documents`
        number = int(np.searchsorted(self._ends, index, side="right"))
        return self._files[number], index - (int(self._ends[number - 1]) if number else 0)

    def _records(self, file: File, row: int) -> tuple[Any, int]:
        """The records of the block that has this one, and its place among them. CorruptRecord, each time, for a block that
        cannot be read; UserError if the file has fewer records than when its blocks were found."""
        firsts = self._firsts[file.key]
        block = int(np.searchsorted(firsts, row, side="right")) - 1
        at = (file.key, block)
        if self._block[:2] != at and at not in self._damaged:
            self._block = ("", -1, ())  # frees the previous block before the next is read
            try:
                self._block = (*at, self._load(file, block))
            except BadBlock as error:
                self._damaged[at] = one_line(error)
        if at in self._damaged:
            raise CorruptRecord(f"{file.path}, row {row}: {self._damaged[at]}; {SKIP}")
        records, place = self._block[2], row - int(firsts[block])
        if place >= len(records):
            raise UserError(f"{file.path} has changed while it was read; run the same command again once it is whole")
        return records, place


class Streamed(Sharded):
    """Files whose blocks are ranges of bytes, of what is compressed or not splittable at newline bytes those of its stream."""

    _open: tuple[str, Stream | None] = ("", None)  # at most one file is open

    def __init__(self, source: config.Source, files: list[File], on_corrupt: str) -> None:
        self._source = source
        self._encoding = source.encoding if bytewise(source.encoding) else "utf-8"  # of the stream
        super().__init__(files, on_corrupt)

    def _stream(self, file: File, *, afresh: bool = False) -> Stream:
        """The open file, to be read from its beginning if `afresh`."""
        key, stream = self._open
        if stream is not None and key == file.key and not afresh:
            return stream
        if stream is not None:
            stream.close()
        self._open = ("", None)
        stream = Stream(file.path, encoding=self._source.encoding)
        self._open = (file.key, stream)
        return stream
