"""The bytes of a file by their place, as they are when decompressed and in UTF-8: of .gz, of .zst, and of any encoding.

A part of a plain file is read by itself. A compressed or recoded file is read forwards, and from its beginning where an earlier
part is asked for, so that in all cases memory holds no more than the part.
"""

import codecs
import gzip
import importlib
import io
import sys
import zlib
from typing import Any

from lm.data.corpus.documents import SKIP, CorruptRecord, cannot_read
from lm.errors import UserError

_PIECE = 1 << 20  # bytes that are decoded at a time
_MARKED = {
    "utf-16": (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE),
    "utf-32": (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE),
}


def bytewise(encoding: str) -> bool:
    """Whether a byte of a newline is a newline wherever it stands. In UTF-16 and others it occurs within characters too."""
    return "\n".encode(encoding) == b"\n"


class Stream:
    """An open file: `read(start, stop)`, or on from there with `read_on` and `read_line`. CorruptRecord for a damaged file,
    UserError for one that cannot be reached."""

    def __init__(self, path: Any, *, encoding: str = "utf-8", compressed: bool = True) -> None:
        self._path, self._encoding, self._compressed = path, encoding, compressed
        self._layers: list[Any] = []
        self._errors: tuple[type[Exception], ...] = (OSError, EOFError, zlib.error)
        self._guarded(self._open)

    def _open(self) -> None:
        self._layers = [self._path.open("rb")]
        if self._compressed and str(self._path).endswith(".gz"):
            self._layers.append(gzip.GzipFile(fileobj=self._layers[-1], mode="rb"))
        elif self._compressed and str(self._path).endswith(".zst"):
            zstd = _zstd(str(self._path))
            self._errors += (zstd.ZstdError,)
            self._layers.append(zstd.ZstdFile(self._layers[-1]))
        if not bytewise(self._encoding):
            recoded = _Recoded(self._layers[-1], self._encoding, str(self._path))
            self._layers.append(io.BufferedReader(recoded, _PIECE))

    def read(self, start: int, stop: int) -> bytes:
        """The bytes from `start` to `stop`, fewer at the end of the file."""
        self._guarded(lambda: self._layers[-1].seek(start))
        return self.read_on(stop - start)

    def read_on(self, size: int) -> bytes:
        return self._guarded(lambda: self._layers[-1].read(size))

    def read_line(self, most: int) -> bytes:
        """Up to the end of a line, at most so many bytes of it."""
        return self._guarded(lambda: self._layers[-1].readline(most))

    def _guarded(self, act: Any) -> Any:
        try:
            return act()
        except UserError:
            raise
        except self._errors as error:
            raise cannot_read(self._path, error) from None

    def close(self) -> None:
        for layer in reversed(self._layers):
            layer.close()

    def __del__(self) -> None:  # sources are never closed
        self.close()


def _zstd(name: str) -> Any:
    """The module of Zstandard. UserError if it is missing."""
    try:
        return importlib.import_module("compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd")
    except ImportError:
        raise UserError(f"{name} needs backports.zstd: pip install -e '.[zst]'") from None


class _Recoded(io.RawIOBase):
    """The characters of a file in UTF-8, without a byte order mark that the encoding itself removes. Goes back only to the
    beginning."""

    def __init__(self, file: Any, encoding: str, name: str) -> None:
        self._file, self._encoding, self._name = file, encoding, name
        self._begin()

    def _begin(self) -> None:
        piece = self._file.read(_PIECE)
        name = codecs.lookup(self._encoding).name
        if name in _MARKED and not piece.startswith(_MARKED[name]):  # bytes.decode takes the machine's order then
            name += "-le" if sys.byteorder == "little" else "-be"
        self._decoder, self._ready, self._at, self._ended = codecs.getincrementaldecoder(name)(), b"", 0, False
        self._decoded = 0  # bytes of the file
        self._decode(piece)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        if whence:
            raise io.UnsupportedOperation("only from the beginning")
        if offset < self._at:
            self._file.seek(0)
            self._begin()
        skipped = bytearray(_PIECE)
        while self._at < offset and self.readinto(memoryview(skipped)[: offset - self._at]):
            pass
        return self._at

    def readinto(self, buffer: Any) -> int:
        while not self._ready and not self._ended:
            self._decode(self._file.read(_PIECE))
        size = min(len(buffer), len(self._ready))
        buffer[:size] = self._ready[:size]
        self._ready = self._ready[size:]
        self._at += size
        return size

    def _decode(self, piece: bytes) -> None:
        """Makes the characters of the next piece ready; none ends the file."""
        kept = len(self._decoder.getstate()[0])
        try:
            self._ready = self._decoder.decode(piece, final=not piece).encode()
        except UnicodeError as error:
            at = f" at byte {self._decoded - kept + error.start}" if isinstance(error, UnicodeDecodeError) else ""
            raise CorruptRecord(
                f"{self._name}: invalid {self._encoding}{at}; set encoding= of the source (latin-1, cp1252...), or {SKIP}"
            ) from None
        self._decoded += len(piece)
        self._ended = not piece
