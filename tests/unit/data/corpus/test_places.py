"""Sources by their URL: in memory, from a web server and from a hub of data sets, read in ranges and known by their stamps."""

import json
import pickle
from collections import Counter

import numpy as np
import pytest

from lm import config
from lm.data.corpus import lines as json_lines
from lm.data.corpus import places, table
from lm.data.corpus.documents import CorruptRecord
from lm.data.corpus.sources import identity, open_source
from lm.errors import UserError
from tests.unit.data.corpus.places_server import serving

fsspec = pytest.importorskip("fsspec")


def source(kind, path, **more):
    return config.Source(kind=kind, path=str(path), **more)


def every(documents):
    return [documents[i] for i in range(len(documents))]


@pytest.fixture
def folder(tmp_path):
    """A data set: 1,000 JSON lines, a table, texts, and Parquet with a column that no text needs."""
    here = tmp_path / "datasets" / "me" / "set"
    (here / "deep").mkdir(parents=True)
    lines = [json.dumps({"text": f"line {i} é" + " x" * (i % 7)}, ensure_ascii=False) for i in range(1000)]
    (here / "a.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (here / "b.csv").write_text("".join(f'{i},"one\n{i}"\n' if i else "id,text\n" for i in range(50)), encoding="utf-8")
    (here / "c.txt").write_text("see", encoding="utf-8")
    (here / "deep" / "d.txt").write_text("dee", encoding="utf-8")
    if (pa := pytest.importorskip("pyarrow")) and (parquet := pytest.importorskip("pyarrow.parquet")):
        noise = np.random.default_rng(0).bytes(1000)
        table = pa.table({"text": [f"row {i}" for i in range(100)], "noise": [noise[i:] + noise[:i] for i in range(100)]})
        parquet.write_table(table, here / "deep" / "e.parquet", row_group_size=10, use_dictionary=False)
    return here


@pytest.fixture
def server(tmp_path, folder, monkeypatch):
    pytest.importorskip("aiohttp")
    constants = pytest.importorskip("huggingface_hub.constants")
    with serving(tmp_path) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}")
        server.set = f"{server.url}/datasets/me/set"
        yield server
        for name in ("hf", "http"):
            fsspec.get_filesystem_class(name).clear_instance_cache()


@pytest.fixture
def memory(folder):
    system = fsspec.filesystem("memory")
    system.put(str(folder), "/bucket/set", recursive=True)
    yield "memory://bucket/set"
    system.rm("/bucket", recursive=True)


FILES = [("jsonl", "a.jsonl"), ("csv", "b.csv"), ("text", "*.txt"), ("text", "**/*.txt"), ("parquet", "deep/e.parquet")]


@pytest.mark.parametrize("kind, path", FILES)
def test_the_same_documents_wherever_the_files_lie(folder, server, memory, kind, path):
    want = every(open_source(source(kind, folder / path)))
    assert want
    for root in (f"file://{folder}", memory, server.set, "hf://datasets/me/set"):
        assert every(open_source(source(kind, f"{root}/{path}"))) == want, root


def test_a_folder_is_all_that_is_below_it(folder, server, memory):
    for kind, keys in [("text", ["c.txt", "deep/d.txt"]), ("jsonl", ["a.jsonl"]), ("parquet", ["deep/e.parquet"])]:
        for root in (folder, f"{folder}/", f"file://{folder}", memory, f"{server.set}/", "hf://datasets/me/set"):
            found = dict.fromkeys(d.key.partition(":")[0] for d in every(open_source(source(kind, root))))
            assert list(found) == keys, (kind, root)
    with pytest.raises(UserError, match=r"no file in memory://bucket/set/deep has a name of kind jsonl \(.jsonl, .jsonl.gz, "):
        open_source(source("jsonl", f"{memory}/deep"))
    with pytest.raises(UserError, match="no file matches memory://bucket/none"):
        open_source(source("text", "memory://bucket/none"))


def test_a_row_group_is_read_and_no_more(server):
    documents = open_source(source("parquet", f"{server.set}/deep/e.parquet"))
    server.asked.clear()
    assert documents[55].text == "row 55" and documents[57].text == "row 57"
    ((method, _, sent),) = [row for row in server.asked if row[0] == "GET"]
    assert method == "GET" and 0 < sent < 1000, "of one column of ten rows"


def test_a_block_of_lines_is_read_and_no_more(folder, server, monkeypatch):
    for module in (json_lines, table):
        monkeypatch.setattr(module, "BLOCK", 1000)
    monkeypatch.setattr(places.Url.open, "__defaults__", ("rb", 500))
    documents = open_source(source("jsonl", f"{server.set}/a.jsonl"))
    server.asked.clear()
    assert documents[500].text.startswith("line 500 é") and documents[501].text.startswith("line 501 é")
    assert 0 < sum(sent for *_, sent in server.asked) < 2500 < (folder / "a.jsonl").stat().st_size / 10
    other = pickle.loads(pickle.dumps(documents))
    server.asked.clear()
    assert other[999] == documents[999] and len([row for row in server.asked if row[0] == "GET"]) < 6, "it is not counted again"
    assert every(open_source(source("jsonl", f"{server.set}/a.jsonl"))) == every(
        open_source(source("jsonl", folder / "a.jsonl"))
    )
    assert every(open_source(source("csv", f"{server.set}/b.csv"))) == every(open_source(source("csv", folder / "b.csv")))


def test_a_file_elsewhere_is_known_without_its_bytes(folder, server, memory):
    for root in (server.set, memory, "hf://datasets/me/set"):
        about = source("jsonl", f"{root}/a.jsonl")
        server.asked.clear()
        before = identity(about)
        assert sum(sent for *_, sent in server.asked) < 2000
        assert before == identity(about)
        ((key, size, stamp),) = before["files"]
        assert (key, size) == ("a.jsonl", (folder / "a.jsonl").stat().st_size) and stamp
    raw = (folder / "a.jsonl").read_bytes()
    for stamps in (True, False):
        server.stamps = stamps
        before = identity(source("jsonl", f"{server.set}/a.jsonl"))
        (folder / "a.jsonl").write_bytes(raw[:-3] + b"y" + raw[-2:])  # as long as before
        assert identity(source("jsonl", f"{server.set}/a.jsonl")) != before
        (folder / "a.jsonl").write_bytes(raw)
        assert identity(source("jsonl", f"{server.set}/a.jsonl")) == before


def test_a_fault_of_the_network_is_none_of_the_file(server):
    documents = open_source(source("text", f"{server.set}/*.txt"), on_corrupt="skip")
    lines = open_source(source("jsonl", f"{server.set}/a.jsonl"), on_corrupt="skip")
    server.fails = True
    for read in (lambda: documents[0], lambda: lines[0], lambda: open_source(source("text", f"{server.set}/c.txt"))):
        with pytest.raises(UserError, match=r"http://.*; check the (path|network) and the access to it") as error:
            read()
        assert not isinstance(error.value, CorruptRecord) and "\n" not in str(error.value)
    server.fails = False
    assert lines[0].text == "line 0 é"


def test_a_library_that_is_missing_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr(places.importlib.util, "find_spec", lambda name: None)
    for url, module, extra in [
        ("gs", "gcsfs", "gs"),
        ("s3", "s3fs", "s3"),
        ("hf", "huggingface_hub", "hf"),
        ("https", "aiohttp", "http"),
    ]:
        with pytest.raises(UserError, match=rf"{url}://a/b.txt needs {module}: pip install -e '.\[{extra}\]'$"):
            open_source(source("text", f"{url}://a/b.txt"))


def test_what_is_read_from_disk_alone_is_said(memory):
    fsspec.filesystem("memory").pipe("/bucket/a.array_record", b"x")
    with pytest.raises(UserError, match="a.array_record: ArrayRecord is read from local disk alone; copy it to a local folder"):
        open_source(source("array_record", "memory://bucket/a.array_record"))
    with pytest.raises(UserError, match="path=ftp://a/b is not read, a local file, and gs://, s3://, hf://, .* is: copy it"):
        source("text", "ftp://a/b")


def test_a_folder_of_texts_and_code_has_no_hidden_and_no_binary_files(tmp_path):
    made = {
        "a.md": "# A",
        "src/b.py": "b = 1\n",
        "src/.hidden.py": "no",
        ".git/c.txt": "no",
        "e.JPG": "no",
        "Makefile": "no",
        "f.TXT": "f",
    }
    for name, text in made.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "g.ts").write_bytes(b"G\0@video")  # MPEG has the suffix of TypeScript
    documents = open_source(source("text", tmp_path))
    assert {d.key: d.text for d in every(documents)} == {"a.md": "# A", "src/b.py": "b = 1\n", "f.TXT": "f"}
    assert documents.left_out == Counter(hidden=2, other=2, binary=1)
    assert [d.key for d in every(open_source(source("text", tmp_path / "**/*.py")))] == ["src/.hidden.py", "src/b.py"]


@pytest.mark.parametrize("kind, path", [*FILES, ("array_record", None)])
def test_documents_go_on_in_another_process(folder, kind, path):
    if path is None:
        writer = pytest.importorskip("array_record.python.array_record_module").ArrayRecordWriter(
            str(folder / "f"), "group_size:1"
        )
        for i in range(5):
            writer.write(f"record {i}".encode())
        writer.close()
    documents = open_source(source(kind, folder / (path or "f")))
    want = every(documents)  # with a file open
    again = pickle.loads(pickle.dumps(documents))
    assert every(again) == want and again.unreadable == documents.unreadable and again.transcripts == documents.transcripts
