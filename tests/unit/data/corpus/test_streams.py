"""Compressed and recoded files, read a block at a time: records in any order, in a memory that their size does not change."""

import codecs
import gzip
import json
import random
import sys
import tracemalloc

import pytest

from lm import config
from lm.data.corpus import lines, table
from lm.data.corpus.documents import CorruptRecord
from lm.data.corpus.sources import open_source
from lm.data.corpus.streams import Stream
from lm.errors import UserError

TEXTS = [f"{i} " + "é☃😀\u0a0a"[i % 4] * (i * 7 % 40) for i in range(300)]


def zstd():
    return pytest.importorskip("compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd")


def packed(raw, end):
    """In several frames, as parallel compressors write them."""
    parts = [raw[i : i + 2000] for i in range(0, len(raw), 2000)]
    if end == ".gz":
        return b"".join(map(gzip.compress, parts))
    return b"".join(map(zstd().compress, parts)) if end == ".zst" else raw


@pytest.mark.parametrize("end", ["", ".gz", ".zst"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_blocks_in_any_order(tmp_path, monkeypatch, kind, encoding, end):
    for module in (lines, table):
        monkeypatch.setattr(module, "BLOCK", 777)
    if kind == "csv":
        body = "text\n" + "".join(f'"{text}\n"\n' for text in TEXTS)
    else:
        body = "".join(
            json.dumps({"text": text + "\n"}, ensure_ascii=False) + "\n" * (1 + (i % 9 == 0)) for i, text in enumerate(TEXTS)
        )
    path = tmp_path / f"a.{kind}{end}"
    path.write_bytes(packed(body.encode(encoding), end))
    documents = open_source(config.Source(kind, str(path), encoding=encoding))
    order = list(range(len(TEXTS)))
    random.Random(0).shuffle(order)
    assert len(documents) == len(TEXTS) and len(documents._firsts[path.name]) > 10
    assert [documents[i].text for i in order[:40] + list(range(300))] == [
        TEXTS[i] + "\n" for i in order[:40] + list(range(300))
    ]


def test_memory_does_not_grow_with_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "BLOCK", 1 << 16)
    line = json.dumps({"text": "word " * 200}).encode() + b"\n"
    peaks = []
    for count in (1_000, 8_000):  # 1 MB and 8 MB
        path = tmp_path / f"{count}.jsonl.gz"
        path.write_bytes(gzip.compress(line * count, 1))
        tracemalloc.start()
        documents = open_source(config.Source("jsonl", str(path)))
        assert len(documents) == count and documents[count - 1].text == documents[0].text
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert max(peaks) < 1_000_000 and peaks[1] < 2 * peaks[0]


def test_a_truncated_or_wrong_zstandard_file_is_named(tmp_path):
    whole = zstd().compress(b'{"text": "a"}\n' * 10_000)
    for raw, why in [
        (whole[:-20], "ended before the end-of-stream"),
        (b"nothing", "Unknown frame"),
        (whole[:9] + b"?" * 9, ""),
    ]:
        (tmp_path / "a.jsonl.zst").write_bytes(raw)
        with pytest.raises(CorruptRecord, match=rf"a\.jsonl\.zst: cannot be read \(.*{why}.*on_corrupt=skip"):
            open_source(config.Source("jsonl", str(tmp_path / "a.jsonl.zst")))
        left = open_source(config.Source("jsonl", str(tmp_path / "a.jsonl.zst")), on_corrupt="skip")
        assert len(left) == 0 and len(left.unreadable) == 1


def test_without_its_library_zstandard_names_the_extra(tmp_path, monkeypatch):
    for module in ("compression.zstd", "backports.zstd"):
        monkeypatch.setitem(sys.modules, module, None)
    (tmp_path / "a.jsonl.zst").write_bytes(b"")
    with pytest.raises(UserError, match=r"a\.jsonl\.zst needs backports.zstd: pip install -e '\.\[zst\]'"):
        open_source(config.Source("jsonl", str(tmp_path / "a.jsonl.zst")))


def test_a_line_that_is_no_line_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "BLOCK", 100)
    monkeypatch.setattr(lines, "_LONGEST", 1000)
    (tmp_path / "a.jsonl").write_bytes(b"x" * 5000)
    with pytest.raises(CorruptRecord, match="a.jsonl: a line has more than 1,000 bytes; mend the file"):
        open_source(config.Source("jsonl", str(tmp_path / "a.jsonl")))


def test_utf16_without_a_mark_is_in_the_order_of_the_machine(tmp_path):
    (tmp_path / "a").write_bytes("é\n".encode("utf-16")[2:])
    assert Stream(tmp_path / "a", encoding="utf-16").read(0, 9) == "é\n".encode()
    (tmp_path / "a").write_bytes(codecs.BOM_UTF16_BE + "é\n".encode("utf-16-be"))
    assert Stream(tmp_path / "a", encoding="utf-16").read(2, 9) == b"\n"
