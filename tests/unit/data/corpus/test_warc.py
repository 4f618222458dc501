"""Web archives as sources: the main text of pages in any order, and what cannot be read by file and record."""

import base64
import gzip
import hashlib
import io
import pickle
import uuid

import pytest

from lm import config
from lm.data.corpus import warc
from lm.data.corpus.documents import CorruptRecord
from lm.data.corpus.sources import identity, open_source
from lm.errors import UserError

pytest.importorskip("fastwarc"), pytest.importorskip("resiliparse")
PAGE = (
    "<html><head><title>t</title>{}</head><body><nav>Home About</nav><main><h1>Caf\xe9 {}</h1><p>Long enough "
    "to be text.</p></main></body></html>"
)
TEXT = "Caf\xe9 {}\n\nLong enough to be text."


def record(kind, url, content_type, block):
    digest = base64.b32encode(hashlib.sha1(block).digest()).decode()
    head = {"WARC-Type": kind, "WARC-Record-ID": f"<urn:uuid:{uuid.uuid4()}>", "WARC-Date": "2024-05-31T00:00:00Z"}
    head |= {"WARC-Target-URI": url, "Content-Type": content_type, "WARC-Block-Digest": f"sha1:{digest}"}
    lines = [f"{name}: {value}" for name, value in {**head, "Content-Length": str(len(block))}.items()]
    return "\r\n".join(["WARC/1.0", *lines, "", ""]).encode() + block + b"\r\n\r\n"


def response(number, body, kind, *more, status="200 OK"):
    http = "\r\n".join([f"HTTP/1.1 {status}", f"Content-Type: {kind}", *more, "", ""]).encode()
    return record("response", f"http://x/{number}", "application/http; msgtype=response", http + body)


def archive(packed=True):
    body = gzip.compress(PAGE.format("", 3).encode())
    chunked = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    records = [
        record("warcinfo", "a.warc", "application/warc-fields", b"software: a crawler\r\n"),
        response(0, PAGE.format("", 0).encode(), "text/html; charset=utf-8"),
        response(1, PAGE.format("", 1).encode("latin-1"), "text/html; charset=latin-1"),
        response("image", b"\x89PNG" * 9, "image/png"),
        response(2, PAGE.format('<meta charset="windows-1252">', 2).encode("latin-1"), "text/html"),
        response("gone", PAGE.format("", "gone").encode(), "text/html", status="404 Not Found"),
        response(3, chunked, "text/html", "Content-Encoding: gzip", "Transfer-Encoding: chunked"),
        response(4, PAGE.format("", 4).encode(), "application/xhtml+xml; charset=no-such-thing"),
        record("conversion", "http://x/5", "text/plain", "Já extracted".encode()),
    ]
    return b"".join(map(gzip.compress, records) if packed else records)


WANT = [*(TEXT.format(i) for i in range(5)), "Já extracted"]


def opened(path, raw, **more):
    path.write_bytes(raw)
    return open_source(config.Source("warc", str(path)), **more)


@pytest.mark.parametrize("name", ["a.warc.gz", "a.warc"])
@pytest.mark.parametrize("block", [1, 700, 1 << 22])
def test_pages_in_any_order(tmp_path, monkeypatch, name, block):
    monkeypatch.setattr(warc, "BLOCK", block)
    documents = opened(tmp_path / name, archive(name.endswith("gz")))
    assert [documents[i].text for i in (3, 0, 5, 1, 4, 2)] == [WANT[i] for i in (3, 0, 5, 1, 4, 2)]
    again = pickle.loads(pickle.dumps(documents))
    keys = [again[i].key for i in range(len(again))]
    assert len(set(keys)) == 6 and all(key.startswith(f"{name}:") for key in keys)
    at = int(keys[3].partition(":")[2])  # the place of its record, as of an index of a crawl
    raw = (tmp_path / name).read_bytes()[at:]
    assert b"http://x/3" in (gzip.GzipFile(fileobj=io.BytesIO(raw)).read(400) if name.endswith("gz") else raw[:400])


def test_what_cannot_be_read_is_named(tmp_path):
    raw = archive(False)
    at = raw.index(b"enough to be text.</p></main></body></html>")
    documents = opened(tmp_path / "a.warc", raw[:at] + b"ENOUGH" + raw[at + 6 :])
    with pytest.raises(CorruptRecord, match=r"a\.warc, record at byte \d+ \(http://x/0\): it is not as its digest says; mend"):
        documents[0]
    assert [documents[i].text for i in range(1, 6)] == WANT[1:]
    for name, bad, why in [
        ("a.warc", raw[:-10], r"it is cut short in the record at byte \d+"),
        ("a.warc.gz", archive()[:-40], r"it is cut short in the record at byte \d+"),
        ("a.warc.gz", archive()[:900] + b"###" + archive()[903:], r"[Dd]ecompression error.*after byte \d+"),
        ("a.warc.gz", gzip.compress(raw), "compressed as a whole, and records are read one by one"),
        ("a.warc", b"", "it is empty"),
        ("a.warc", b"no archive at all\n" * 9, "Invalid WARC header"),
    ]:
        with pytest.raises(CorruptRecord, match=rf"{name}: no WARC file that can be read \(.*{why}.*on_corrupt=skip"):
            opened(tmp_path / name, bad)
        assert len(opened(tmp_path / name, bad, on_corrupt="skip").unreadable) == 1


def test_the_extractor_is_a_part_of_what_data_is(tmp_path, monkeypatch):
    opened(tmp_path / "a.warc", archive(False))
    source = config.Source("warc", str(tmp_path))
    before = identity(source)
    assert [f[0] for f in before["files"]] == ["a.warc"]
    monkeypatch.setattr(warc, "version", lambda name: "9.9")
    assert identity(source) != before


def test_without_its_libraries_the_extra_is_named(tmp_path, monkeypatch):
    def missing(name):
        raise warc.PackageNotFoundError(name)

    monkeypatch.setattr(warc, "version", missing)
    with pytest.raises(UserError, match=r"a source of kind warc needs fastwarc and resiliparse: pip install -e '\.\[web\]'"):
        opened(tmp_path / "a.warc", b"")
    with pytest.raises(UserError, match="format=labelled of x: a source of kind warc has format=text"):
        config.Source("warc", "x", format="labelled")
