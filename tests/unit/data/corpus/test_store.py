"""The token store gives back what was written, and notices every kind of damage."""

import errno
import shutil
from pathlib import Path

import numpy as np
import pytest

from lm.data.corpus import store as module
from lm.data.corpus.store import Entry, Store
from lm.errors import UserError
from tests.stores import write_store


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 1000)
    monkeypatch.setattr(module, "_FLUSH", 2500)


@pytest.fixture
def documents():
    rng = np.random.default_rng(0)
    return [Entry(rng.integers(1, 60_000, n), int(n) * 4) for n in [700, 1, 5000, 0, 1300, 999]]


@pytest.fixture
def path(tmp_path, documents):
    write_store(str(tmp_path / "s"), iter(documents), vocab_size=60_000)
    return str(tmp_path / "s")


@pytest.mark.parametrize("in_memory", [1 << 30, 0])
def test_round_trip(path, documents, in_memory):
    s, whole = Store.open(path, in_memory=in_memory), np.concatenate([d.ids for d in documents])
    assert s.num_tokens == len(whole) == 8000 and s.num_documents == 6 and s.num_bytes == 32_000
    assert s.offsets.tolist() == [0, 700, 701, 5701, 5701, 7001, 8000]
    assert s.byte_lengths.tolist() == [d.num_bytes for d in documents]
    assert np.array_equal(s.tokens(), whole) and np.array_equal(s.document(4), documents[4].ids)
    starts = np.array([0, 7990, 3, 3, 2999])
    rows = s.read(starts, 10)
    assert rows.dtype == np.int32 and rows.shape == (5, 10)
    assert np.array_equal(rows, np.stack([whole[i : i + 10] for i in starts]))


def test_windows_outside_are_refused(path):
    s = Store.open(path)
    for start in (-1, 7991):
        with pytest.raises(IndexError, match="outside of 8000 tokens"):
            s.read(np.array([start]), 10)


@pytest.mark.parametrize("vocab_size, width", [(65_536, 2), (65_537, 4)])
def test_ids_take_two_bytes_where_they_fit(tmp_path, vocab_size, width):
    ids = np.array([0, vocab_size - 1])
    write_store(str(tmp_path / "s"), [Entry(ids, 3)], vocab_size=vocab_size)
    assert Store.open(str(tmp_path / "s"))._tokens.dtype.itemsize == width
    assert Store.open(str(tmp_path / "s")).tokens().tolist() == ids.tolist()


def test_an_old_store_is_overwritten(path):
    write_store(path, [Entry(np.array([7]), 1)], vocab_size=10)
    assert Store.open(path).tokens().tolist() == [7]


@pytest.mark.parametrize("in_memory", [1 << 30, 0])
@pytest.mark.parametrize("damage", ["flip", "cut", "missing"])
def test_damage_is_noticed_and_the_file_named(tmp_path, path, damage, in_memory):
    chunk = tmp_path / "s" / "tokens" / "c" / "3"
    raw = bytearray(chunk.read_bytes())
    raw[100] ^= 1
    if damage == "missing":
        chunk.unlink()
    else:
        chunk.write_bytes(raw if damage == "flip" else raw[:100])
    with pytest.raises(UserError, match=r"corrupt token store: .*/s/tokens/c/3 .*prepare the data again"):
        Store.open(path, in_memory=in_memory).tokens()


@pytest.mark.parametrize("harm", ["cut", "missing"])
def test_a_large_store_misses_its_chunks_when_it_is_opened(tmp_path, path, harm):
    chunk = tmp_path / "s" / "tokens" / "c" / "7"
    assert Store.open(path, in_memory=0).num_tokens == 8000
    chunk.write_bytes(chunk.read_bytes()[:-1]) if harm == "cut" else chunk.unlink()
    with pytest.raises(UserError, match=r"corrupt token store: .*/s/tokens/c/7 .*prepare the data again"):
        Store.open(path, in_memory=0)


def test_arrays_that_disagree(tmp_path, path):
    write_store(str(tmp_path / "t"), [Entry(np.array([1, 2]), 2)], vocab_size=60_000)
    (tmp_path / "s" / "offsets").rename(tmp_path / "away")
    (tmp_path / "t" / "offsets").rename(tmp_path / "s" / "offsets")
    with pytest.raises(UserError, match="its arrays disagree"):
        Store.open(path)


def test_no_store_there(tmp_path):
    with pytest.raises(UserError, match="no token store at .*none"):
        Store.open(str(tmp_path / "none"))


def test_a_full_disk(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "_append", full)
    with pytest.raises(UserError, match="no disk space at .*data.cache"):
        write_store(str(tmp_path / "s"), [Entry(np.array([1]), 1)], vocab_size=10)


def test_shares_are_whole_documents_and_nested(tmp_path):
    documents = [np.arange(10 * i, 10 * i + 3 + i % 4, dtype=np.int32) for i in range(40)]
    write_store(str(tmp_path / "s"), (Entry(d, i) for i, d in enumerate(documents)), vocab_size=500)
    store = Store.open(str(tmp_path / "s"))
    of = lambda part: [part.document(i).tolist() for i in range(part.num_documents)]
    some, more = store.share(0.25), store.share(0.5)
    assert some.num_documents == 10 and more.num_documents == 20
    everything = [d.tolist() for d in documents]
    for part in (some, more):
        assert [part.byte_lengths[i] for i in range(part.num_documents)] == [everything.index(d) for d in of(part)]
        assert part.tokens().tolist() == [t for d in of(part) for t in d]
    assert {tuple(d) for d in of(some)} < {tuple(d) for d in of(more)}
    assert of(store.share(1.0)) == everything


# ------------------------------------------------------------------------------------------------------ loss and labels


@pytest.fixture
def records(tmp_path):
    """A store of records, each of a question and an answer, one with two answers; and their masks."""
    masks = [[0] * n + [1] * 300 for n in (900, 1, 1300)] + [[0, 1, 1, 0, 0, 1]]
    entries = [Entry(np.arange(len(m)) + 1, 9, np.array(m, bool), i % 2) for i, m in enumerate(masks)]
    write_store(str(tmp_path / "r"), entries, vocab_size=60_000)
    return str(tmp_path / "r"), masks


@pytest.mark.parametrize("block", [1 << 24, 700])
@pytest.mark.parametrize("in_memory", [1 << 30, 0])
def test_loss_and_labels_round_trip(records, in_memory, block, monkeypatch):
    monkeypatch.setattr(module, "_BLOCK", block)
    path, masks = records
    s = Store.open(path, in_memory=in_memory)
    index = np.array([3, 0, 1])
    assert [m.astype(int).tolist() for m in s.loss(index)] == [masks[i] for i in index]
    assert [len(ids) for ids in s.documents(index)] == [len(masks[i]) for i in index]
    assert s.labels is not None and s.labels.tolist() == [0, 1, 0, 1]
    assert s.answers().tolist() == [[900, 1200], [1201, 1501], [2801, 3101], [3102, 3104], [3106, 3107]]


def test_a_store_of_texts_has_no_loss(path):
    s = Store.open(path)
    assert s.labels is None
    with pytest.raises(UserError, match="a store of texts, which has no loss mask"):
        s.loss(np.array([0]))


@pytest.mark.parametrize("in_memory", [1 << 30, 0])
@pytest.mark.parametrize("name,chunk", [("loss", "2"), ("labels", "0")])
def test_damage_to_loss_and_labels_is_noticed(records, name, chunk, in_memory):
    path, _ = records
    file = Path(path) / name / "c" / chunk
    raw = bytearray(file.read_bytes())
    raw[20] ^= 1
    file.write_bytes(raw)
    with pytest.raises(UserError, match=rf"corrupt token store: .*/r/{name}/c/{chunk} .*prepare the data again"):
        Store.open(path, in_memory=in_memory).loss(np.arange(4))


def test_texts_over_a_store_of_records_have_none_of_its_loss(records):
    path, _ = records
    write_store(path, [Entry(np.array([1, 2]), 2)], vocab_size=60_000)
    s = Store.open(path)
    assert s.tokens().tolist() == [1, 2] and s.labels is None and s._loss is None


def test_loss_of_other_records_is_noticed(tmp_path, records):
    path, _ = records
    write_store(str(tmp_path / "t"), [Entry(np.array([1, 2]), 2, np.array([False, True]), 0)], vocab_size=60_000)
    shutil.rmtree(Path(path) / "loss")
    (tmp_path / "t" / "loss").rename(Path(path) / "loss")
    with pytest.raises(UserError, match="its arrays disagree"):
        Store.open(path)
