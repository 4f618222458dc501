"""Prepared data elsewhere: the same bits as in a local folder, put there by one process, waited for by others, read by rows."""

import json
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lm import config, distributed
from lm.data.corpus import bucket, build, integrity, places
from lm.data.corpus.prepare import prepare
from lm.data.corpus.store import CHUNK, Entry, Store
from lm.errors import UserError
from tests.stores import write_store
from tests.unit.data.corpus.places_server import serving

fsspec = pytest.importorskip("fsspec")


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """Settings, and what they give in a local folder: texts and records."""
    folder = tmp_path_factory.mktemp("here")
    words = "the state of union and congress people war peace treasury law".split()
    draw = np.random.default_rng(0)
    texts = [json.dumps({"text": " ".join(draw.choice(words, 40))}) for _ in range(20)]
    pairs = [json.dumps({"question": f"{word} {i}", "answer": word}) for i, word in enumerate(words * 2)]
    (folder / "a.jsonl").write_text("\n".join([*texts, texts[0]]), encoding="utf-8")
    (folder / "b.jsonl").write_text("\n".join(pairs), encoding="utf-8")
    sources = {
        "a": config.Source("jsonl", str(folder / "a.jsonl")),
        "b": config.Source("jsonl", str(folder / "b.jsonl"), format="pair"),
    }
    data = config.Data(sources, tokenizer=config.Tokenizer(vocab_size=400), holdout=0.2, cache=str(folder / "cache"))
    return data, prepare(data, progress=False)


@pytest.fixture(params=["memory", "file"])
def there(request, here, tmp_path, monkeypatch):
    """The same settings with a cache elsewhere."""
    monkeypatch.setattr(bucket, "STAGING", str(tmp_path / "staging"))
    monkeypatch.setattr(bucket, "_POLLS", (0.01, 0.02))
    yield replace(
        here[0], cache=f"memory://bucket/{tmp_path.name}" if request.param == "memory" else f"file://{tmp_path}/share"
    )
    fsspec.filesystem("memory").store.clear()


@pytest.fixture
def staged(here, there, tmp_path):
    """A function that puts the prepared data where it is prepared before it goes elsewhere, as if that was done."""
    return lambda: shutil.copytree(here[1].path, tmp_path / "staging" / here[1].fingerprint)


def files(home):
    if isinstance(home, Path):
        return {p.relative_to(home).as_posix(): p.read_bytes() for p in home.rglob("*") if p.is_file()}
    return {str(url)[len(str(home)) + 1 :]: url.read_bytes() for url in home.glob("**/*")}


def never(*_, **__):
    raise AssertionError("it is prepared again")


def test_the_same_bits_and_the_same_rows(here, there, monkeypatch, tmp_path):
    local, found = here[1], prepare(there, progress=False)
    one, two = files(local.path), files(found.path)
    assert one.keys() == two.keys() and len(one) > 20
    assert {name for name in one if one[name] != two[name]} <= {"report.json"}
    first, second = (json.loads(of["report.json"]) for of in (one, two))
    assert {name for name in first if first[name] != second[name]} <= {"seconds", "sha256"}
    assert str(found.path) == f"{there.cache}/{local.fingerprint}" and found.fingerprint == local.fingerprint
    assert not [p for p in (tmp_path / "staging").rglob("*") if p.suffix != ".lock"], "nothing is left on the disk"
    monkeypatch.setattr(build.Build, "run", never)
    found = prepare(there, progress=False)
    for name in "ab":
        for split in ("train", "holdout"):
            stores = [getattr(prepared, split)[name] for prepared in (local, found)]
            assert np.array_equal(stores[0].tokens(), stores[1].tokens()) and len(stores[0].tokens())
            assert [*found.documents(name, split)] == [*local.documents(name, split)]
            assert found.records(name, split) == local.records(name, split)
    assert np.array_equal(found.train["b"].answers(), local.train["b"].answers())
    assert found.tokenizer.fingerprint == local.tokenizer.fingerprint
    assert found.beside.is_dir() and local.beside == local.path


def test_others_wait_for_the_report(there, staged, monkeypatch):
    monkeypatch.setattr(distributed, "process_id", lambda: 1)
    found = []
    other = threading.Thread(target=lambda: found.append(prepare(there, progress=False)))
    monkeypatch.setattr(build.Build, "run", never)
    other.start()
    other.join(0.2)
    assert other.is_alive() and not found
    staged()
    monkeypatch.setattr(distributed, "process_id", lambda: 0)
    made = prepare(there, progress=False)
    other.join(20)
    assert found[0].report == made.report and np.array_equal(found[0].train["a"].tokens(), made.train["a"].tokens())


def test_a_wait_that_is_in_vain_says_what_is_missing(there, monkeypatch):
    monkeypatch.setattr(distributed, "process_id", lambda: 1)
    monkeypatch.setenv("LM_PREPARE_SECONDS", "1")
    monkeypatch.setattr(bucket.time, "monotonic", iter(range(99)).__next__)
    match = (
        r"{}.*/report.json is missing after 1 s \(LM_PREPARE_SECONDS\): host 0 prepares a, b and writes it last, after {}; see "
    )
    with pytest.raises(UserError, match=match.format(there.cache, "all other files, of which none is there")) as error:
        prepare(there, progress=False)
    assert "\n" not in str(error.value)
    monkeypatch.setenv("LM_PREPARE_SECONDS", "soon")
    with pytest.raises(UserError, match="LM_PREPARE_SECONDS=soon is not a number of seconds"):
        prepare(there, progress=False)


def test_after_a_kill_in_the_middle_it_goes_on(here, there, staged, monkeypatch):
    staged()
    put, count = places.Url.put, []

    def dies(self, local):
        count.append(self)
        if len(count) > 5:
            raise places.Unreachable("the line is cut")
        put(self, local)

    with monkeypatch.context() as patch:
        patch.setattr(places.Url, "put", dies)
        with pytest.raises(
            UserError, match=r"data.cache=.* cannot be written \(the line is cut\); what was prepared is in .*staging"
        ):
            prepare(there, progress=False)
    home = bucket.home(there.cache, here[1].fingerprint)
    assert 0 < len(files(home)) < 20 and bucket.report_of(home) is None
    with pytest.raises(UserError, match=rf"after the {len(files(home))} files that are there"):
        bucket.wait(home, "ab", seconds=0)
    monkeypatch.setattr(build.Build, "run", never)
    found = prepare(there, progress=False)
    assert files(found.path).keys() == files(here[1].path).keys()


class Killed(BaseException):
    pass


@pytest.mark.parametrize("when", ["before the first file", "before the report", "after the report", "while it is removed"])
def test_a_kill_between_preparing_and_the_end(here, there, staged, tmp_path, monkeypatch, when):
    """The same command goes on, and leaves nothing on the disk. A kill runs none of the code that an error runs."""
    staged()
    put, remove = places.Url.put, shutil.rmtree

    def putting(self, local):
        report = self.name == integrity.REPORT
        if when == "before the first file" or (report and when == "before the report"):
            raise Killed
        put(self, local)
        if report and when == "after the report":
            raise Killed

    def removing(folder):
        remove(folder / "a")
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(places.Url, "put", putting)
        patch.setattr(bucket.shutil, "rmtree", removing)
        with pytest.raises(Killed):
            prepare(there, progress=False)
    home, left = bucket.home(there.cache, here[1].fingerprint), tmp_path / "staging" / here[1].fingerprint
    assert left.is_dir() and (bucket.report_of(home) is None) == when.startswith("before")
    monkeypatch.setattr(build.Build, "run", never)
    found = prepare(there, progress=False)
    assert files(found.path) == files(here[1].path)
    assert not [p for p in (tmp_path / "staging").rglob("*") if p.suffix != ".lock"]


def test_what_another_machine_has_finished_is_removed_here(here, there, staged, tmp_path):
    """A preparation that was killed in the middle, of data that is there meanwhile; not one that is at work."""
    staged()
    prepare(there, progress=False)
    partial = tmp_path / "staging" / f"{here[1].fingerprint}.partial"
    (partial / ".work").mkdir(parents=True)
    with bucket._lock(bucket.home(there.cache, here[1].fingerprint)):
        prepare(there, progress=False)
        assert partial.is_dir()
    prepare(there, progress=False)
    assert not partial.exists()


def test_what_is_damaged_there_is_named(here, there, staged):
    staged()
    found = prepare(there, progress=False)
    system, base = fsspec.filesystem(there.cache.partition(":")[0]), str(found.path)
    for name, match in [
        ("a/train/tokens/c/0", "corrupt token store: .*a/train.*; delete .*bucket|share.* and prepare the data again"),
        ("tokenizer.model", "corrupt prepared data: .*tokenizer.model is not as it was written; delete "),
    ]:
        raw = system.cat_file(f"{base}/{name}")
        system.pipe_file(f"{base}/{name}", raw[:100] + bytes([raw[100] ^ 1]) + raw[101:])
        with pytest.raises(UserError, match=match):
            prepare(there, progress=False)
        system.pipe_file(f"{base}/{name}", raw)
    system.rm(f"{base}/a/train/tokens/c/0")
    with pytest.raises(UserError, match="corrupt token store: .*a/train.* missing"):
        prepare(there, progress=False)
    system.pipe_file(f"{base}/{integrity.REPORT}", b"{}")  # then everything is put there again
    staged()
    again = prepare(there, progress=False)
    assert files(again.path).keys() == files(here[1].path).keys()
    assert np.array_equal(again.train["a"].tokens(), here[1].train["a"].tokens())


def test_a_web_server_is_read_by_rows(tmp_path, here, monkeypatch):
    pytest.importorskip("aiohttp")
    monkeypatch.setattr(bucket, "STAGING", str(tmp_path / "staging"))
    tokens = np.arange(5 * CHUNK) % 60_000
    write_store(str(tmp_path / "store"), (Entry(part, 9) for part in np.split(tokens, 10)), vocab_size=60_000)
    with serving(tmp_path) as server:
        store = Store.open(f"{server.url}/store", in_memory=0)
        server.asked.clear()
        rows = np.array([CHUNK + 5, 3 * CHUNK - 50])
        assert np.array_equal(store.read(rows, 100), (rows[:, None] + np.arange(100)) % 60_000)
        assert {path for _, path, _ in server.asked} == {f"/store/tokens/c/{i}" for i in (1, 2, 3)}
        assert np.array_equal(store.document(9), tokens[-CHUNK // 2 :])
        server.folder = Path(here[1].path).parent
        found = prepare(replace(here[0], cache=server.url), progress=False)
        assert [*found.documents("a", "train")] == [*here[1].documents("a", "train")]
        with pytest.raises(
            UserError, match="http://.* has no prepared data, and a web server is only read: prepare it in a folder"
        ):
            prepare(replace(here[0], cache=server.url, holdout=0.3), progress=False)
        server.fails = True
        with pytest.raises(UserError, match="data.cache cannot be read .*; check the network and the access to it"):
            prepare(replace(here[0], cache=server.url), progress=False)
    for cache in ("hf://datasets/a/b", "ftp://a"):
        with pytest.raises(
            UserError, match=f"data.cache={cache}: prepared data is in a local folder, or at one of gs://, s3://, "
        ):
            prepare(replace(here[0], cache=cache), progress=False)
