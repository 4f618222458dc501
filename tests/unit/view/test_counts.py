"""Counts by hand, and against plain Python."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from lm.view import counts
from lm.view.counts import Share, Table
from lm.view.pieces import Pieces
from tests.fakes import MemoryStore
from tests.unit.view.test_strips import tokenizer


def test_frequencies_are_those_of_a_counter(monkeypatch):
    rng = np.random.default_rng(0)
    stores = {name: MemoryStore(rng.zipf(1.5, n) % 50, [n]) for name, n in (("a", 1000), ("b", 317))}
    monkeypatch.setattr(counts, "BLOCK", 64)  # the last block is shorter
    found = counts.frequencies(stores, 60)
    expected = Counter(np.concatenate([store.tokens for store in stores.values()]).tolist())
    assert {i: n for i, n in enumerate(found.tolist()) if n} == expected
    assert counts.frequent(found, 10) == sorted(expected.items(), key=lambda item: (-item[1], item[0]))[:10]
    assert len(counts.frequent(found, 100)) == len(expected) < 60  # no id that never occurs


def test_the_table_of_frequent_tokens():
    table = counts.frequent_table(np.array([0, 0, 0, 0, 0, 0, 6, 3, 0, 1, 0, 0]), Pieces(tokenizer()))
    assert table.rows == [["1", "a", "6", "60.00%"], ["2", "␣b", "7", "30.00%"], ["3", "<0xE2>", "9", "10.00%"]]
    assert table.note == "100.0% of 10 tokens. 3 of 12 ids occur."


def test_the_histogram_has_every_length_once():
    lengths = np.array([3, 4, 4, 7, 8, 31, 32, 100])
    assert counts.histogram(lengths) == [(2, 3, 1), (4, 7, 3), (8, 15, 1), (16, 31, 1), (32, 63, 1), (64, 127, 1)]
    assert counts.histogram(np.array([0, 1, 1])) == [(0, 0, 1), (1, 1, 2)]
    for n in range(1, 200):
        ((low, high, count),) = counts.histogram(np.array([n]))
        assert low <= n <= high and count == 1


def test_the_table_of_lengths():
    store = MemoryStore(np.zeros(60), [4, 6, 50])
    table = counts.lengths_table({"a": store}, "documents", 8)
    assert [row[:3] for row in table.rows] == [
        ["4-7", "2", "66.7%"],
        ["8-15", "0", "0.0%"],
        ["16-31", "0", "0.0%"],
        ["32-63", "1", "33.3%"],
    ]
    assert len(table.rows[0][3]) == 30 and len(table.rows[3][3]) == 15  # bars in proportion
    assert (
        table.note
        == "3 documents, 60 tokens; half have up to 6, nine in ten up to 50, the longest 50. 33.3% have more than a row, 8."
    )


def test_the_lengths_of_a_few_sources_stand_beside_each_other():
    stores = {"a": MemoryStore(np.zeros(60), [4, 6, 50]), "b": MemoryStore(np.zeros(9), [9])}
    table = counts.lengths_table(stores, "records", 100)
    assert [*table.head] == ["tokens", "a", "b", "records", "share", ""]
    assert [row[:5] for row in table.rows[:2]] == [["4-7", "2", "0", "2", "50.0%"], ["8-15", "0", "1", "1", "25.0%"]]
    many = {str(i): stores["b"] for i in range(5)}
    assert [*counts.lengths_table(many, "records", 100).head] == ["tokens", "records", "share", ""]


def test_shares_are_exact_counts_by_source():
    """Row i is of source i % 3 == 2, and has i + 1 tokens, of which i have loss."""
    batch = lambda index: SimpleNamespace(tokens_read=lambda: (index + 1).sum(), tokens_asked=lambda: index.sum())
    steps = [np.arange(4), np.arange(4, 8)]
    found = counts.shares(batch, lambda index: (index % 3 == 2).astype(int), steps, 3)
    assert found == [Share(6, 1 + 2 + 4 + 5 + 7 + 8, 0 + 1 + 3 + 4 + 6 + 7), Share(2, 3 + 6, 2 + 5), Share(0, 0, 0)]


def test_the_table_of_shares_stands_beside_what_was_asked():
    found = {"a": Share(30, 100, 0), "b": Share(10, 300, 0)}
    table = counts.shares_table(found, {"a": 3.0, "b": 1.0, "held out": 1.0}, {"a": 0.5, "b": 2.0}, 1)
    assert table.title == "Shares of the sources in the first 1 step"
    assert table.rows == [
        ["a", "3", "75.0%", "75.0%", "25.0%", "-", "0.50"],
        ["b", "1", "25.0%", "25.0%", "75.0%", "-", "2.00"],
    ]
    assert table.note.startswith("40 rows, 400 tokens read, 0 with loss")


@pytest.mark.parametrize(("groups", "rows"), [(1, ["1", "2", "3", "4", "5"]), (2, ["14", "25", "3"]), (3, ["135", "24"])])
def test_a_folded_table_is_read_downwards(groups, rows):
    table = Table("t", ["n"], [[str(i)] for i in range(1, 6)]).folded(groups)
    assert ["".join(row) for row in table.rows] == rows and table.head == ["n"] * groups
