"""Files by their URL, through fsspec: gs://, s3://, hf://, https:// and memory://, in the shape of a pathlib.Path.

Only the bytes that are read are transferred. What a file system raises, whatever its type, is an OSError of one line here:
FileNotFoundError for what is not there, and `Unreachable` for the rest, which is a fault of the network or of the access and
none of the file.
"""

import contextlib
import errno
import importlib.util
import io
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from lm import paths
from lm.errors import UserError

# Scheme -> the module that fsspec reads it with, and the extra that installs it.
MODULES = {
    "gs": ("gcsfs", "gs"),
    "s3": ("s3fs", "s3"),
    "hf": ("huggingface_hub", "hf"),
    "https": ("aiohttp", "http"),
    "http": ("aiohttp", "http"),
    "memory": ("fsspec", "http"),
    "file": ("fsspec", "http"),
}
# What tells that a file has changed, by the names that file systems have for it: a digest where there is one, or else a time.
DIGESTS = ("md5Hash", "crc32c", "blob_id", "ETag", "etag", "Content-MD5", "Digest", "generation")
TIMES = ("LastModified", "Last-Modified", "updated", "mtime", "created")
_BUFFER = 1 << 20  # bytes that are read ahead


class Unreachable(OSError):
    """A file that cannot be read now: the network, the access to it, or its server is at fault."""


@dataclass(frozen=True)
class Url:
    """A file or a folder. A file that was listed knows its size in bytes and its stamp."""

    url: str  # without a slash at its end
    size: int | None = None
    stamp: str | None = None  # changes when the file does; None: not listed, or the file system has none

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, name: str) -> "Url":
        return Url(f"{self.url}/{name}")

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]

    def open(self, mode: str = "rb", buffering: int = _BUFFER) -> BinaryIO:
        """Opens the file to read its bytes in any order, at least `buffering` in a request."""
        if mode != "rb":
            raise io.UnsupportedOperation(f"{self.url}: mode {mode}; files elsewhere are only read")
        with _one_kind_of_error(self.url):
            file = file_system(self.url).open(self.url, "rb", cache_type="none")
            raw: Any = _Raw(file, self.url)
            return io.BufferedReader(raw, buffering) if buffering else raw

    def read_bytes(self) -> bytes:
        with _one_kind_of_error(self.url):
            return file_system(self.url).cat_file(self.url)

    def put(self, local: Path) -> None:
        """Writes a copy of a local file here."""
        with _one_kind_of_error(self.url):
            file_system(self.url).put_file(str(local), self.url)

    def is_dir(self) -> bool:
        with _one_kind_of_error(self.url):
            return bool(file_system(self.url).isdir(self.url))

    def listed(self) -> "Url":
        """The file with its size and stamp. FileNotFoundError if it is not there or is a folder."""
        with _one_kind_of_error(self.url):
            info = file_system(self.url).info(self.url)
        if info.get("type") == "directory":
            raise FileNotFoundError(errno.ENOENT, "a folder", self.url)
        return Url(self.url, info.get("size"), _stamp(info))

    def glob(self, pattern: str) -> "Iterator[Url]":
        """The files below this folder that match, `**` any depth, with their sizes and stamps."""
        system = file_system(self.url)
        base = system._strip_protocol(self.url).rstrip("/")
        with _one_kind_of_error(self.url):
            found = system.glob(f"{self.url}/{pattern}", detail=True)
        for name, info in found.items():
            if info["type"] != "directory":
                yield Url(f"{self.url}/{name[len(base) + 1 :]}", info.get("size"), _stamp(info))


def at(given: str) -> Path | Url:
    """A local file or folder, which file:// names too, or one elsewhere."""
    scheme, colon, rest = given.partition("://")
    if not colon:
        return paths.expanded(given)
    return Path(rest) if scheme == "file" else Url(given.rstrip("/"))


def file_system(url: str) -> Any:
    """The fsspec file system of a URL. UserError if its library is not installed, or there is none."""
    scheme = url.partition("://")[0]
    if scheme not in MODULES:
        known = ", ".join(f"{name}://" for name in MODULES)
        raise UserError(f"{url}: no {scheme}:// is read; give one of {known}, or copy it to a local folder")
    module, extra = MODULES[scheme]
    if importlib.util.find_spec(module) is None:
        raise UserError(f"{url} needs {module}: pip install -e '.[{extra}]'")
    import fsspec

    # Listings are not kept, because others may be writing the folder.
    made: dict[str, Any] = {"auto_mkdir": True} if scheme == "file" else {}
    return fsspec.filesystem(scheme, use_listings_cache=False, **made)


def _stamp(info: dict[str, Any]) -> str | None:
    return next((f"{name} {info[name]}" for name in (*DIGESTS, *TIMES) if info.get(name)), None)


class _Raw(io.RawIOBase):
    """An fsspec file as Python's io classes have it, with errors of one kind."""

    def __init__(self, file: Any, url: str) -> None:
        self._file, self._url = file, url

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return bool(self._file.seekable())

    def seek(self, offset: int, whence: int = 0) -> int:
        with _one_kind_of_error(self._url):
            return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readinto(self, buffer: Any) -> int:
        with _one_kind_of_error(self._url):
            read = self._file.read(len(buffer))
        buffer[: len(read)] = read
        return len(read)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


@contextlib.contextmanager
def _one_kind_of_error(url: str) -> Generator[None]:
    try:
        yield
    except (Unreachable, UserError):
        raise
    except FileNotFoundError as error:
        cause = error.__cause__  # fsspec takes every answer of a web server but the file for this
        if type(cause).__module__.startswith("aiohttp") and getattr(cause, "status", 0) not in (404, 410):
            raise Unreachable(f"{url}: {type(cause).__name__}: {str(cause)[:160]}") from None
        raise FileNotFoundError(errno.ENOENT, "not there", url) from None
    except Exception as error:  # each file system has types of its own
        why = " ".join(str(error).split())[:160]
        raise Unreachable(f"{url}: {type(error).__name__}{': ' if why else ''}{why}") from None
