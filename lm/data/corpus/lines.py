"""Documents in JSON lines, plain, gzipped or in Zstandard: a line a document, a range of bytes what is read at a time."""

import codecs

import numpy as np

from lm import config
from lm.data.corpus.dated import date_of
from lm.data.corpus.documents import SKIP, CorruptRecord, Document, content, decode, parse_json
from lm.data.corpus.files import File
from lm.data.corpus.sharded import BLOCK, Streamed

_BLANK = b" \t\r\v\f"
_LONGEST = 1 << 30  # bytes of a line


class JsonLines(Streamed):
    """One JSON object per line. Blank lines are no documents."""

    def __init__(self, source: config.Source, files: list[File], on_corrupt: str) -> None:
        self._blocks: dict[str, np.ndarray] = {}  # key -> int64 [blocks + 1, 2]: number of the first line, from 1; first byte
        super().__init__(source, files, on_corrupt)

    def _index(self, file: File) -> list[int]:
        stream, blocks, firsts = self._stream(file, afresh=True), [(1, 0)], [0]
        while piece := stream.read_on(BLOCK):
            if not piece.endswith(b"\n"):
                piece += (more := stream.read_line(_LONGEST))
                if len(more) == _LONGEST:
                    raise CorruptRecord(f"{file.path}: a line has more than {_LONGEST:,} bytes; {SKIP}")
            number, start = blocks[-1]
            blocks.append((number + piece.count(b"\n"), start + len(piece)))
            firsts.append(firsts[-1] + sum(not _is_blank(line) for line in piece.split(b"\n")))
        self._blocks[file.key] = np.array(blocks, np.int64)
        return firsts

    def _load(self, file: File, block: int) -> list[tuple[int, int, bytes]]:
        """Number, first byte and bytes of each line that is not blank."""
        (number, start), (_, stop) = self._blocks[file.key][block : block + 2].tolist()
        lines = []
        for line in self._stream(file).read(start, stop).split(b"\n"):
            if not _is_blank(line):
                lines.append((number, start, line))
            number, start = number + 1, start + len(line) + 1
        return lines

    def __getitem__(self, index: int) -> Document:
        file, row = self._locate(index)
        lines, at = self._records(file, row)
        number, start, line = lines[at]
        where = f"{file.path}, line {number}"
        text = decode(line, self._encoding, where, start)
        bare = self._source.format == "tree" and not text.lstrip().startswith("{")  # a tree a line
        record = {"tree": text} if bare else parse_json(text, where)
        return Document(f"{file.key}:{number}", content(record, self._source, where), date_of(record, self._source, where))


def _is_blank(line: bytes) -> bool:
    return not line.removeprefix(codecs.BOM_UTF8).strip(_BLANK)
