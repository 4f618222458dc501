"""CSV files as sources: rows written by Python's own csv module come back, in whatever dialect; what is none is named."""

import csv
import gzip
import io
import json

import pytest

from lm import config
from lm.data.corpus.documents import CorruptRecord
from lm.data.corpus.sources import identity, open_source
from lm.errors import UserError

ROWS = [("id", "text", "label"), (1, 'a, b; "c"\nd', "yes"), (2, "x" * 200_000, "0"), (3, "é\u2028", "no")]


def written(delimiter=",", **dialect):
    stream = io.StringIO(newline="")
    csv.writer(stream, delimiter=delimiter, **dialect).writerows(ROWS)
    return stream.getvalue()


def texts(path, **changes):
    return [document.text for document in open_source(config.Source("csv", str(path), **changes))]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_what_was_written_is_read(tmp_path, delimiter, quoting, encoding):
    (tmp_path / "a.csv").write_bytes(written(delimiter, quoting=quoting).encode(encoding))
    given = "utf-8" if encoding == "utf-8-sig" else encoding  # a byte order mark that a spreadsheet wrote
    assert texts(tmp_path / "a.csv", encoding=given) == [row[1] for row in ROWS[1:]]
    records = [json.loads(text) for text in texts(tmp_path / "a.csv", encoding=given, format="labelled")]
    assert records == [{"text": text, "label": label} for _, text, label in ROWS[1:]]


def test_several_files_empty_rows_and_gzip(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\n\none,a\n\n", encoding="utf-8")
    (tmp_path / "b.csv").write_text("", encoding="utf-8")
    (tmp_path / "c.csv").write_text("text\n", encoding="utf-8")
    (tmp_path / "d.csv.gz").write_bytes(gzip.compress(b"label,text\nb,two\nc,three\n"))
    documents = open_source(config.Source("csv", f"{tmp_path}/*.csv*", format="labelled"))
    assert [d.key for d in documents] == ["a.csv:1", "d.csv.gz:1", "d.csv.gz:2"]
    assert [json.loads(documents[i].text)["text"] for i in (2, 0, 1)] == ["three", "one", "two"]
    assert identity(config.Source("csv", f"{tmp_path}/a.csv")) != identity(config.Source("csv", f"{tmp_path}/c.csv"))


@pytest.mark.parametrize(
    "raw, words",
    [
        (b"txt,label\na,b\n", "row 1 after the names: no field 'text'; did you mean 'txt'"),
        (b"text,label\na,b,c\n", "row 1 after the names: more values than the 2 columns; put texts with commas in quotes"),
        (b"text,label\na\n", "field 'label' is a null, not text"),
        (b'text,label\n"a,b\nc,d\n', "no CSV \\(after line 1: unexpected end of data\\); lines lost below the names: 2; mend"),
        (b'text,label\n"a"b,c\n', "no CSV \\(after line 1: .*lines lost below the names: 1; mend"),
        (
            b"text,label,text\na,b,c\n",
            "two columns are named 'text': give each a name of its own\\); lines lost below the names: 1",
        ),
        (b"text,label\n\xff,b\n", "invalid utf-8 at byte 11; set encoding="),
        (b"text,label\n ,b\n", "field 'text' is empty"),
    ],
)
def test_what_is_no_csv_of_records_is_named(tmp_path, raw, words):
    (tmp_path / "a.csv").write_bytes(raw)
    with pytest.raises(CorruptRecord, match=words):
        texts(tmp_path / "a.csv", format="labelled")


TABS = [  # by hand: no writer leaves a quote mark as it is
    (b'text\tlabel\n"Hello\tyes\nbye"\tno\n', ['"Hello', 'bye"']),
    (b'text\tlabel\n"Hello" he said\tyes\n"Again\tno\nplain\tno', ['"Hello" he said', '"Again', "plain"]),
    (b'label\ttext\r\nyes\t"Hello\r\n\r\nno\tbye"\r\n', ['"Hello', 'bye"']),
    (b'text\tlabel\n"a ""b"""\tyes\n"c"\tno\n', ['a "b"', "c"]),  # these are marks
    (b'text\tlabel\n"a\nb"\tyes\n', ["a\nb"]),
]


@pytest.mark.parametrize("raw, found", TABS)
def test_quote_marks_of_texts_between_tabs_are_letters(tmp_path, raw, found):
    (tmp_path / "a.tsv").write_bytes(raw)
    assert texts(tmp_path / "a.tsv") == found


def test_rows_between_tabs_are_never_merged(tmp_path):
    (tmp_path / "a.tsv").write_bytes(b'text\tlabel\n"Hello\tyes\nbye"\tno\nshort\n')
    with pytest.raises(CorruptRecord, match="row 1: a tab within quotes; .*; lines lost below the names: 3"):
        texts(tmp_path / "a.tsv")


def test_a_damaged_file_may_be_left_out(tmp_path):
    (tmp_path / "a.csv").write_text("text\nwhole\n", encoding="utf-8")
    (tmp_path / "b.csv.gz").write_bytes(b"\x1f\x8bnothing")
    source = config.Source("csv", f"{tmp_path}/*")
    with pytest.raises(CorruptRecord, match=r"b\.csv\.gz: cannot be read"):
        open_source(source)
    documents = open_source(source, on_corrupt="skip")
    assert [d.text for d in documents] == ["whole"] and len(documents.unreadable) == 1
    (tmp_path / "c.csv").write_text('text\na\n"b" c\nd\n', encoding="utf-8")
    (said,) = open_source(config.Source("csv", f"{tmp_path}/*.csv"), on_corrupt="skip").unreadable
    assert "c.csv: no CSV (after line 2: " in said and "; lines lost below the names: 3; " in said


def test_conversations_are_not_in_a_row():
    with pytest.raises(UserError, match="a source of kind csv has format=text or labelled or pair"):
        config.Source("csv", "a.csv", format="messages")
