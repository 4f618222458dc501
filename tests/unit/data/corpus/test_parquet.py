"""Parquet as a source of texts and of records: rows by number, a row group at a time, and files that are refused by name."""

import json

import pytest

from lm import config
from lm.data import records
from lm.data.corpus import sources
from lm.data.corpus.sources import CorruptRecord, Document, open_source
from lm.errors import UserError

pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")


@pytest.fixture
def written(tmp_path):
    def write(columns, name="a.parquet", **settings):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        table = columns if isinstance(columns, pa.Table) else pa.table(columns)
        parquet.write_table(table, tmp_path / name, **settings)
        return str(tmp_path / name)

    return write


def source(path, **more):
    return config.Source(kind="parquet", path=str(path), **more)


def every(documents):
    return [documents[i] for i in range(len(documents))]


def test_the_rows_of_a_folder_are_documents_in_any_order(written, tmp_path):
    texts = [f"text {i} é" for i in range(10)]
    written({"body": texts, "image": [b"\0" * 99] * 10}, row_group_size=3, compression="zstd")
    written({"body": pa.array(["b"] * 4).dictionary_encode(), "more": [1] * 4}, "b/b.parquet")
    (tmp_path / "notes.txt").write_text("no", encoding="utf-8")
    documents = open_source(source(tmp_path, field="body"))
    assert every(documents) == [Document(f"a.parquet:{i}", t) for i, t in enumerate(texts)] + [
        Document(f"b/b.parquet:{i}", "b") for i in range(4)
    ]
    assert [documents[i].text for i in (9, 0, 12, 5)] == [texts[9], texts[0], "b", texts[5]]
    assert every(open_source(source(tmp_path / "*.parquet", field="body"))) == every(documents)[:10]
    one = sources.identity(source(tmp_path, field="body"))
    assert one == sources.identity(source(f"{tmp_path}/", field="body")) != sources.identity(source(tmp_path / "*.parquet"))


def test_a_row_group_is_what_is_read_at_a_time(written, monkeypatch):
    path = written({"text": [f"{i}" for i in range(100)], "other": [["x"] * 9] * 100}, row_group_size=10)
    read, original = [], parquet.ParquetFile.read_row_group

    def counted(self, i, columns=None, **more):
        table = original(self, i, columns=columns, **more)
        read.append((i, table.num_rows, table.column_names))
        return table

    monkeypatch.setattr(parquet.ParquetFile, "read_row_group", counted)
    documents = open_source(source(path))
    assert read == [] and len(documents) == 100  # the file's end says how many
    assert [d.text for d in every(documents)] == [str(i) for i in range(100)]
    assert read == [(i, 10, ["text"]) for i in range(10)]


def talk(*said, who="role", what="content"):
    return [{who: role, what: text} for role, text in said]


def test_records_have_their_fields_in_columns(written):
    asked, answered = ("user", "a"), ("assistant", "b")
    turns = [talk(asked, answered), [{**m, "name": None} for m in talk(("user", "c"), answered)]]
    read = lambda path, format: [
        records.parse(json.loads(d.text), format) for d in every(open_source(source(path, format=format)))
    ]
    found = read(written({"messages": turns, "score": [1.0, None], "pixels": [b"x", b"y"]}), "messages")
    assert [[(m.role, m.content) for m in r.messages] for r in found] == [[asked, answered], [("user", "c"), answered]]
    shared = talk(("human", "a"), ("gpt", "b"), who="from", what="value")
    (found,) = read(written({"conversations": [shared], "system": ["s"]}), "messages")
    assert found.messages[0] == records.Message("system", "s") and found.messages[2] == records.Message("assistant", "b")
    labelled = pa.table({"text": ["a", "b"], "label": pa.array([0, 1], pa.int8())})
    assert read(written(labelled), "labelled") == [records.Labelled("a", "0"), records.Labelled("b", "1")]
    pairs = {"question": ["q", "r"], "answer": ["a", "b"], "context": [None, "c"]}
    assert read(written(pairs), "pair") == [records.Pair("q", "a"), records.Pair("r", "b", "c")]
    judged = {"prompt": ["p"], "chosen": [talk(answered)], "rejected": [talk(("assistant", "c"))], "margin": [0.5]}
    assert read(written(judged), "preference") == [records.Preference((records.Message("user", "p"),), "b", "c", 0.5)]


def test_a_wrong_file_is_refused_by_its_name_and_its_column(written, tmp_path):
    path = written({"text": ["a", None], "label": ["x", "y"], "number": [1, 2]})
    for more, match in [
        (dict(field="txt"), r"a.parquet: no column 'txt'; did you mean 'text'\?; set field="),
        (dict(field="number"), "a.parquet: column 'number' is int64, not text; set field="),
        (dict(format="messages"), "no column of a messages record .messages, conversations, system., and its columns are text"),
        (dict(format="pair"), "a.parquet: no column of a pair record"),
    ]:
        with pytest.raises(UserError, match=match) as error:
            open_source(source(path, **more))
        assert "\n" not in str(error.value) and not isinstance(error.value, CorruptRecord)
    with pytest.raises(CorruptRecord, match="a.parquet, row 1: field 'text' is a NoneType, not text"):
        open_source(source(path))[1]
    near = written({"question": ["a"], "answer": ["b"], "contxt": ["c"]}, "near.parquet")
    with pytest.raises(CorruptRecord, match="near.parquet, row 0: field 'contxt' is unknown; did you mean 'context'"):
        open_source(source(near, format="pair"))[0]
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(CorruptRecord, match="bad.parquet: not a Parquet file that can be read"):
        open_source(source(tmp_path / "bad.parquet"))
    left = open_source(source(tmp_path / "[ab]*.parquet"), on_corrupt="skip")
    assert len(left) == 2 and "bad.parquet: not a Parquet file" in left.unreadable[0]
    with pytest.raises(UserError, match="no file matches .*/none"):
        open_source(source(tmp_path / "none"))


def test_a_damaged_row_group_names_its_row(written, monkeypatch):
    settings = dict(row_group_size=10, compression="none", use_dictionary=False, write_statistics=False)
    path = written({"text": [f"{i} " * 99 for i in range(40)]}, write_page_checksum=True, **settings)
    with open(path, "r+b") as file:  # in the first page's data
        file.seek(300)
        file.write(b"\xff" * 20)
    documents, read, original = open_source(source(path)), [], parquet.ParquetFile.read_row_group
    monkeypatch.setattr(parquet.ParquetFile, "read_row_group", lambda self, i, **m: read.append(i) or original(self, i, **m))
    for row in (0, 1, 39, 2):
        if row == 39:
            assert documents[row].text == "39 " * 99
            continue
        with pytest.raises(CorruptRecord, match=f"a.parquet, row {row}: row group 0 cannot be read"):
            documents[row]
    assert read == [0, 3], "a damaged one is read once"


def test_a_folder_whose_name_looks_like_a_pattern(written, tmp_path):
    written({"text": ["a"]}, "data[1]/a.parquet")
    written({"text": ["b"]}, "data1/b.parquet")
    for path in (f"{tmp_path}/data[1]", f"{tmp_path}/data[1]/"):
        assert every(open_source(source(path))) == [Document("a.parquet:0", "a")]
    assert every(open_source(source(f"{tmp_path}/data[1]/*.parquet"))) == [Document("data1/b.parquet:0", "b")]
