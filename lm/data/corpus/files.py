"""Files of a source, and texts of a file each.

Files are sorted by name, so index i is the same document on every machine. A document's key is relative to the folder that a
glob starts from, so moving a corpus changes neither its train/holdout split nor its fingerprint.
"""

import contextlib
import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm import config
from lm.data.corpus.documents import Document, cannot_read, decode, one_line
from lm.data.corpus.places import Url, at
from lm.data.corpus.streams import bytewise
from lm.errors import UserError

_BLOCK = 1 << 24  # bytes read at a time when hashing a file
_EDGE = 1 << 16  # bytes at both ends of a remote file that tells no digest and no time
_LOOKED_AT = 1 << 13  # bytes in which a binary file has a zero, as git and grep have it
_THREADS = 16  # that look at files of a folder elsewhere
# Files of a folder, by the ends of their names. Others are read by a glob.
TEXTS = tuple(
    "." + end
    for end in (
        "txt text md markdown rst tex org adoc html htm css scss py pyi pyx js jsx mjs ts tsx vue java kt kts scala "
        "groovy c h cc cpp cxx hh hpp cu cuh m mm cs fs go rs rb php pl pm lua r jl swift dart zig hs ml mli ex exs erl clj "
        "el lisp scm f f90 pas asm s v sv vhd sql sh bash zsh fish ps1 bat proto thrift cmake mk tf yaml yml toml ini cfg"
    ).split()
)
FOLDERS: Mapping[str, tuple[str, ...]] = {
    "text": TEXTS,
    "jsonl": (".jsonl", ".jsonl.gz", ".jsonl.zst"),
    "array_record": (".array_record",),
    "parquet": (".parquet",),
    "csv": (".csv", ".tsv", ".csv.gz", ".tsv.gz", ".csv.zst", ".tsv.zst"),
    "warc": (".warc", ".warc.gz", ".wet", ".wet.gz"),
}


@dataclass(frozen=True)
class File:
    key: str  # its path relative to the folder where the glob starts
    path: Path | Url


@dataclass(frozen=True)
class Listing:
    files: list[File]  # sorted by key
    folder: bool  # they are those of a folder
    left_out: Counter[str]  # files of the folder that are not among them: `hidden` ones, and those with `other` names


def find(source: config.Source) -> Listing:
    """The files of `source.path`: a file, a glob or a folder. Raises UserError if there are none."""
    pattern, left_out = source.path.removeprefix("file://"), Counter[str]()
    try:
        if folder := _folder(pattern):
            root: Any = folder
            found = list(_of_folder(root, source.kind, left_out))
        else:
            root, rest = _split(pattern)
            found = _matches(root, rest)
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        raise UserError(f"cannot list {pattern}: {one_line(error)}; check the path and the access to it") from None
    if not found:
        if folder:
            ends = ", ".join(FOLDERS[source.kind][:8]) + (", ..." if len(FOLDERS[source.kind]) > 8 else "")
            raise UserError(f"no file in {pattern} has a name of kind {source.kind} ({ends}); use {pattern.rstrip('/')}/**/*")
        raise UserError(f"no file matches {pattern} (source kind {source.kind}); check data.sources.*.path")
    prefix = _above(root)
    files = [File(str(p)[prefix:].encode("utf-8", "backslashreplace").decode(), p) for p in found]
    return Listing(sorted(files, key=lambda f: f.key), folder is not None, left_out)


def _folder(pattern: str) -> Path | Url | None:
    """The folder of that name, None if it is none. A web server has folders whose names end in a slash."""
    if pattern.startswith("http") and "://" in pattern and not pattern.endswith("/"):
        return None
    place = at(pattern)
    return place if place.is_dir() else None


def _above(root: Any) -> int:
    """The characters before a file's name in this folder."""
    return len(str(root).rstrip("/")) + 1 if str(root) != "." else 0


def _of_folder(root: Any, kind: str, left_out: Counter[str]) -> Iterator[Any]:
    for path in root.glob("**/*"):
        below = f"/{str(path)[_above(root) :]}"
        if isinstance(path, Path) and not path.is_file():
            continue
        if kind == "text" and "/." in below:
            left_out["hidden"] += 1
        elif not below.lower().endswith(FOLDERS[kind]):
            left_out["other"] += 1
        else:
            yield path


def _split(pattern: str) -> tuple[Any, str]:
    """The folder above the first part with a wildcard, and the rest."""
    wild = "*[" if pattern.startswith("http") and "://" in pattern else "*?["  # a URL may have a query
    parts = pattern.split("/")
    fixed = next((i for i, part in enumerate(parts) if any(c in part for c in wild)), len(parts) - 1)
    folder, rest = "/".join(parts[:fixed]), "/".join(parts[fixed:])
    return at(folder or ("/" if pattern.startswith("/") else ".")), rest


def _matches(root: Any, rest: str) -> list[Any]:
    if isinstance(root, Path):
        return [root / rest] if (root / rest).is_file() else [p for p in root.glob(rest) if p.is_file()]
    found = list(root.glob(rest)) if any(c in rest for c in "*?[") else []
    with contextlib.suppress(FileNotFoundError):
        return found or [(root / rest).listed()]
    return []


def identity(file: File) -> list[Any]:
    """[size in bytes, SHA-256] of a local file; of another [size, digest or time of the last change as its server tells it],
    or, where it tells neither, [size, SHA-256 of its beginning and its end]."""
    try:
        if isinstance(file.path, Url):
            return _identity_elsewhere(file.path)
        digest, size = hashlib.sha256(), 0
        with file.path.open("rb") as stream:
            while block := stream.read(_BLOCK):
                digest.update(block)
                size += len(block)
    except OSError as error:
        raise UserError(
            f"cannot read {file.path} ({one_line(error)}); check the access to it, or data.sources.*.path"
        ) from None
    return [size, digest.hexdigest()]


def _identity_elsewhere(url: Url) -> list[Any]:
    if url.size is None or url.stamp is None:  # a list of links has neither
        url = url.listed()
    if url.size is None:
        raise UserError(f"{url}: the server does not tell how large it is; copy it to a local folder")
    if url.stamp is not None:
        return [url.size, url.stamp]
    with url.open("rb") as stream:
        edges = stream.read(_EDGE)
        stream.seek(max(0, url.size - _EDGE))
        return [url.size, hashlib.sha256(edges + stream.read(_EDGE)).hexdigest()]


class TextFiles:
    """One document per file. Of a folder, files of texts and of source code that are neither hidden nor binary; `left_out` has
    how many others there are."""

    unreadable: Sequence[str] = ()
    transcripts = False

    def __init__(self, source: config.Source, found: Listing) -> None:
        self._encoding, self._files, self.left_out = source.encoding, found.files, found.left_out
        if found.folder and bytewise(source.encoding):
            with ThreadPoolExecutor(_THREADS) as pool:
                binary = list(pool.map(_is_binary, found.files))
            self._files = [file for file, left_out in zip(found.files, binary, strict=True) if not left_out]
            self.left_out = found.left_out + Counter(binary=sum(binary))

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Document:
        file = self._files[index]
        try:
            raw = file.path.read_bytes()
        except OSError as error:
            raise cannot_read(file.path, error) from None
        return Document(file.key, decode(raw, self._encoding, str(file.path)))


def _is_binary(file: File) -> bool:
    try:
        with file.path.open("rb") as stream:
            return b"\0" in stream.read(_LOOKED_AT)
    except OSError:
        return False  # it is named when it is read
