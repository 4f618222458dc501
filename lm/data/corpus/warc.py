"""Documents in WARC files of web crawls, read by fastwarc: a page a document, its main text as resiliparse extracts it.

Pages are responses and resources in HTML, and text that was already extracted (`conversion` records, of .wet files). The text
of HTML is that of its main content, without menus, as DataComp-LM has it (arXiv 2406.11794, section 4.2: models trained on it
are as good as on trafilatura's, which is eight times as slow).
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from lm import config
from lm.data.corpus.documents import SKIP, CorruptRecord, Document, cannot_read, one_line
from lm.data.corpus.files import File
from lm.data.corpus.sharded import BLOCK, BadBlock, Sharded
from lm.errors import UserError

VERSION = 1  # of what is taken from a record; raise it to have crawls prepared again
_LARGEST = 1 << 26  # bytes of a page; what is larger is none
_HTML = ("text/html", "application/xhtml+xml")


def made() -> list[Any]:
    """What the texts of pages depend on beside the files. UserError if a library is missing."""
    try:
        return [VERSION, version("resiliparse")]
    except PackageNotFoundError:
        raise UserError("a source of kind warc needs fastwarc and resiliparse: pip install -e '.[web]'") from None


@dataclass(frozen=True)
class _Page:
    at: int  # where its record begins in the file
    url: str
    body: bytes
    html: bool
    charset: str | None
    fault: str = ""  # why it cannot be read


class Warc(Sharded):
    """One document per page. A key has the place of the record in its file, as CDX indices have it."""

    def __init__(self, source: config.Source, files: list[File], on_corrupt: str) -> None:
        made()
        self._starts: dict[str, np.ndarray] = {}  # key -> int64 [blocks + 1]: first byte of each block
        super().__init__(files, on_corrupt)

    def _index(self, file: File) -> list[int]:
        starts, firsts, count, last = [0], [0], 0, -1
        try:
            for at, page in _pages(file, 0):
                if at == last:
                    raise BadBlock("it is compressed as a whole, and records are read one by one: warcio recompress helps")
                if at - starts[-1] >= BLOCK:
                    starts.append(at)
                    firsts.append(count)
                count, last = count + (page is not None), at
        except BadBlock as error:
            raise CorruptRecord(f"{file.path}: no WARC file that can be read ({error}); {SKIP}") from None
        self._starts[file.key] = np.array([*starts, last + 1], np.int64)
        return [*firsts, count]

    def _load(self, file: File, block: int) -> list[_Page]:
        start, stop = self._starts[file.key][block : block + 2].tolist()
        found = []
        for at, page in _pages(file, start):
            if at >= stop:
                break
            found += [page] if page else []
        return found

    def __getitem__(self, index: int) -> Document:
        file, row = self._locate(index)
        pages, at = self._records(file, row)
        page: _Page = pages[at]
        where = f"{file.path}, record at byte {page.at} ({page.url})"
        if page.fault:
            raise CorruptRecord(f"{where}: {page.fault}; {SKIP}")
        return Document(f"{file.key}:{page.at}", _text(page))


def _text(page: _Page) -> str:
    from resiliparse.extract.html2text import extract_plain_text

    text = _decoded(page)
    return extract_plain_text(text, main_content=True, alt_texts=False) if page.html else text


def _decoded(page: _Page) -> str:
    """The characters of a page: in the encoding that its server told, else in UTF-8 if they are, which a guess often misses,
    else in the one that the page tells or that is likeliest."""
    from resiliparse.parse.encoding import bytes_to_str, detect_encoding

    if page.charset:
        with contextlib.suppress(LookupError, ValueError):  # there is no such encoding, or it gives what are no characters
            text = bytes_to_str(page.body, page.charset)
            text.encode()
            return text
    with contextlib.suppress(UnicodeDecodeError):
        return page.body.decode().removeprefix("\ufeff")
    return bytes_to_str(page.body, detect_encoding(page.body, from_html_meta=True) or "utf-8")


def _pages(file: File, start: int) -> Iterator[tuple[int, _Page | None]]:
    """Place and page of each record from byte `start` on; None for a record that is none. BadBlock for a damaged file."""
    from fastwarc.warc import ArchiveIterator, WarcRecordType

    kinds = WarcRecordType.response | WarcRecordType.resource | WarcRecordType.conversion
    at = start
    try:
        with file.path.open("rb") as stream:
            stream.seek(start)
            if not start and not stream.read(1):
                raise BadBlock("it is empty")
            stream.seek(start)
            for record in ArchiveIterator(stream, record_types=kinds, parse_http=False, fsspec_args=False):
                at = record.stream_pos
                yield at, _page(record, at)
    except OSError as error:
        if isinstance(fault := cannot_read(file.path, error), CorruptRecord):
            raise BadBlock(f"{one_line(error)}, after byte {at}") from None
        raise fault from None


def _page(record: Any, at: int) -> _Page | None:
    """The page of a record. Its bytes are parsed as a record of their own: fastwarc 2.0 leaves out records that come after one
    whose body was decoded in the file's stream."""
    from fastwarc.warc import WarcRecord

    told = record.headers.get("Content-Length") or ""
    if told and not told.isdecimal():
        raise BadBlock(f"the record at byte {at} has the length {told[:20]!r}")
    length = int(told or -1)
    if length > _LARGEST:
        return None
    raw = record.reader.read()
    if length < 0 or len(raw) < length:
        raise BadBlock(f"it is cut short in the record at byte {at}")
    inner, fault = WarcRecord(), ""
    inner.set_bytes_content(raw)
    if digest := record.headers.get("WARC-Block-Digest"):
        inner.headers["WARC-Block-Digest"] = digest
        fault = "" if inner.verify_block_digest() else "it is not as its digest says"
    kind, charset, url = record.headers.get("Content-Type", ""), None, record.headers.get("WARC-Target-URI", "no URL")
    if record.is_http:
        inner.is_http = True
        try:
            inner.parse_http(auto_decode="all")
        except OSError as error:
            return _Page(at, url, b"", True, None, fault or f"it cannot be decompressed ({one_line(error)})")
        if not 200 <= (inner.http_headers.status_code or 200) < 300:
            return None
        kind, charset = inner.http_content_type or "", inner.http_charset
    kind = kind.partition(";")[0].strip().lower()
    if kind not in (*_HTML, "text/plain"):
        return None
    try:
        body = inner.reader.read()
    except OSError as error:
        body, fault = b"", fault or f"it cannot be decompressed ({one_line(error)})"
    return _Page(at, url, body, kind in _HTML, charset, fault)
