"""Spans that stand in a text, beside a search of every position; across the pieces in which a text is read."""

from types import SimpleNamespace

import numpy as np
import pytest

from lm.data.corpus.store import Entry, Store
from lm.evaluation import memorisation
from lm.evaluation.memorisation import longest_spans, occurrences, spans_of
from tests.stores import write_store


def searched(chunks, text):
    """The same by trying all."""
    out = []
    for i in range(len(text)):
        sizes = [n for c in chunks for j in range(len(c)) for n in range(1, min(len(text) - i, len(c) - j) + 1)
                 if c[j : j + n].tolist() == text[i : i + n].tolist()]  # fmt: skip
        out.append(max(sizes, default=0))
    return out


def test_an_example():
    assert longest_spans([np.array([5, 6, 7, 8])], np.array([6, 7, 9, 5])).tolist() == [2, 1, 0, 1]


@pytest.mark.parametrize("letters", [1, 2, 3, 8])
def test_longest_spans_are_those_of_a_search(letters):
    rng = np.random.default_rng(letters)
    chunks = [rng.integers(0, letters, n) for n in (1, 30, 17)]
    text = rng.integers(0, letters + 1, 25)  # with a token that no chunk has
    assert longest_spans(chunks, text).tolist() == searched(chunks, text)
    assert longest_spans([], text).tolist() == [0] * 25


@pytest.mark.parametrize("size", [1, 3, 5])
def test_occurrences_are_counted(size):
    rng = np.random.default_rng(size)
    text = rng.integers(0, 3, 60)
    spans = np.stack([text[i : i + size] for i in (0, 7, 7, 50)] + [np.full(size, 3)])
    wanted = [sum(text[j : j + size].tolist() == span.tolist() for j in range(60 - size + 1)) for span in spans]
    assert occurrences([text], spans).tolist() == wanted and wanted[-1] == 0 and wanted[0] > 0
    assert occurrences([text, text[: size - 1]], spans).tolist() == wanted  # a chunk that is too short for one


@pytest.fixture
def store(tmp_path):
    rng = np.random.default_rng(3)
    documents = [np.concatenate([[1], rng.integers(10, 14, 20), [2]]) for _ in range(5)]
    write_store(str(tmp_path / "store"), [Entry(ids, 40) for ids in documents], vocab_size=20)
    return Store.open(str(tmp_path / "store"))


@pytest.mark.parametrize("chunk", [7, 22, 1000])
def test_the_pieces_in_which_a_text_is_read_change_nothing(store, chunk, monkeypatch):
    monkeypatch.setattr(memorisation, "CHUNK", chunk)
    whole = store.tokens()
    text = np.concatenate([whole[5:25], [19], whole[40:52]])
    pieces = lambda overlap: memorisation._chunks([store], overlap)
    assert all(len(piece) <= chunk + 11 for piece in pieces(12))
    assert longest_spans(pieces(20), text).tolist() == longest_spans([whole], text).tolist()
    spans = np.stack([whole[i : i + 4] for i in range(0, 90, 9)])
    assert occurrences(pieces(4), spans).tolist() == occurrences([whole], spans).tolist()


def test_of_several_texts_each_has_its_own_longest_span(store):
    """No span goes over the end of a text, nor of a document."""
    whole = store.tokens()
    tokenizer = SimpleNamespace(vocab_size=20, decode=lambda ids: "".join(chr(97 + i) for i in ids))
    e = SimpleNamespace(tokenizer=tokenizer, texts=SimpleNamespace(trained=SimpleNamespace(stores={"a": store})))
    first, second = whole[3:12], np.concatenate([whole[18:21], [15], whole[22:30]])
    found = spans_of(e, [first, second, np.full(3, 16)])
    assert [n for n, _, _ in found] == [9, 8, 0]
    assert found[0] == (9, 9, tokenizer.decode(first)) and found[1][2] == tokenizer.decode(whole[22:30])
