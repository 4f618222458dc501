"""hnswlib's search against the exact one."""

import sys

import numpy as np
import pytest

from lm.errors import UserError
from lm.generation import approximate
from lm.generation.vectors import cosines


def test_nearly_all_of_the_nearest_are_found(tmp_path):
    pytest.importorskip("hnswlib")
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(500, 64)).astype(np.float32) * rng.uniform(0.1, 10, (500, 1)).astype(np.float32)
    queries = rng.normal(size=(50, 64)).astype(np.float32)
    approximate.build(vectors, tmp_path / "a")
    exact = np.argsort(-cosines(queries, vectors), axis=1)[:, :10]
    found = [approximate.nearest(tmp_path / "a", q, 10, vectors=500) for q in queries]
    recall = np.mean([len(set(a.tolist()) & set(b.tolist())) / 10 for a, b in zip(found, exact, strict=True)])
    assert recall > 0.97 and all(len(set(f.tolist())) == 10 for f in found)
    same = [approximate.nearest(tmp_path / "a", v, 1, vectors=500)[0] for v in vectors[:50]]
    assert same == list(range(50))
    approximate.build(vectors, tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    few = approximate.nearest(tmp_path / "a", queries[0], 900, vectors=500)
    assert sorted(few.tolist()) == list(range(500))


def test_without_the_library_it_is_said(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "hnswlib", None)
    with pytest.raises(UserError, match=r"--approximate needs hnswlib .*: pip install -e '\.\[index\]'"):
        approximate.build(np.ones((2, 3), np.float32), tmp_path / "a")
