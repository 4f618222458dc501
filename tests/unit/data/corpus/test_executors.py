"""Sorting on disk decides nothing: the outcome is that of the sequential rule, with much memory and with little."""

import json
import random
from dataclasses import replace

import numpy as np
import pytest

from lm import config
from lm.data.corpus import dedup, executors, groups, shards
from lm.data.corpus.prepare import prepare
from lm.errors import UserError
from lm.prepare import main
from tests.unit.data.corpus.sequential import Dropped, duplicates

WORDS = "the state of union and congress people war peace treasury law year navy army bank road".split()


def corpus(folder, documents=400):
    """Texts with copies near and exact, and labelled records with questions asked twice."""
    rng = random.Random(0)
    made = [" ".join(rng.choices(WORDS, k=rng.randint(40, 90))) + f".\nNumber {i}" for i in range(documents)]
    texts = [rng.choice([made[i], made[i // 3], made[i // 2] + " more"]) if i % 3 == 0 else made[i] for i in range(documents)]
    asked = [{"text": f"question {i % 150}", "label": "abc"[i % 3]} for i in range(200)]
    for name, lines in (("texts", [{"text": text} for text in texts]), ("asked", asked)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    source = lambda name, format: config.Source("jsonl", str(folder / f"{name}.jsonl"), format=format)
    return config.Data(
        {"texts": source("texts", "text"), "asked": source("asked", "labelled")},
        tokenizer=config.Tokenizer(vocab_size=420),
        holdout=0.2,
        cache=str(folder / "cache"),
    )


def contents(path):
    """The files of a folder and of its report all but the seconds."""
    found = {p.relative_to(path): p.read_bytes() for p in path.rglob("*") if p.is_file() and p.name != "report.json"}
    report = json.loads((path / "report.json").read_text(encoding="utf-8"))
    return found, {key: value for key, value in report.items() if key not in ("seconds", "sha256")}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def expected(data):
    """What one process makes, with nothing to spill."""
    with executors.using("process"):
        done = prepare(data, progress=False)
    assert done.report["sources"]["texts"]["dropped"]["near"] > 9 < done.report["sources"]["texts"]["dropped"]["exact"]
    return contents(done.path)


@pytest.mark.parametrize("memory", [1 << 14, 1 << 19])
def test_memory_decides_nothing(tmp_path, data, expected, memory):
    """The files are the same; tokens are read into memory as the store is opened if they take up to half of it."""
    with executors.using("process", memory=memory):
        done = prepare(replace(data, cache=str(tmp_path / "less")), progress=False)
    assert contents(done.path) == expected
    assert isinstance(done.train["texts"]._tokens, np.ndarray) == (2 * 2 * done.train["texts"].num_tokens <= memory)


@pytest.mark.parametrize("on", ["", "gpu", "processes:0", "processes:x", "Ray", "ray:x"])
def test_places_that_are_none(on):
    with pytest.raises(
        UserError, match=f"--on={on} is no place to prepare data on: give process, processes, processes:8, ray or"
    ):
        executors.using(on).__enter__()


# ------------------------------------------------------------------------------------------------------------ duplicates


def signed(rng, documents, settings, *, copies, shared):
    """Signatures of documents that are copies of earlier ones in many ways. `shared`: how many originals most are copies of."""
    near = rng.integers(0, 2**32, (documents, settings.permutations), dtype=np.uint32)
    exact = rng.integers(0, 2**63, (documents, 4)).astype(np.uint64)
    for i in range(1, documents):
        if rng.random() < copies:
            j = int(rng.integers(min(i, shared))) if rng.random() < 0.5 else int(rng.integers(max(0, i - 50), i))
            near[i] = near[j]
            if rng.random() < 0.3:
                exact[i] = exact[j]  # whether or not their signatures are equal
            if rng.random() < 0.8:
                changed = int(rng.integers(settings.permutations // 2))
                near[i, rng.integers(0, settings.permutations, changed)] = rng.integers(0, 2**32, changed)
    return exact, near


def found(work, exact, near, settings, memory):
    """What `groups` finds among documents in shards of random sizes, some of them empty."""
    bounds = [0, *sorted(np.random.default_rng(len(exact)).integers(0, len(exact), 11).tolist()), len(exact)]
    counts = {"a": [], "b": []}
    for i, (start, stop) in enumerate(zip(bounds, bounds[1:], strict=False)):
        source = "ab"[i // 6]
        files = shards.Cleaned(work, source, len(counts[source]))
        rows = np.zeros(stop - start, shards.ROW)
        rows["exact"] = exact[start:stop]
        shards.save(files.file("rows.npy"), rows)
        shards.save(files.file("near.npy"), near[start:stop])
        counts[source].append(stop - start)
    shards.once(work / "plan.json", lambda: groups.planned(counts, settings, memory))
    groups.find(work, work / "plan.json", settings, executors.Process(memory), 0)
    outcome = groups.Outcome.at(work)
    why = {groups.EXACT: "exact", groups.NEAR: "near"}
    dropped = np.flatnonzero(outcome.state).tolist()
    return [Dropped(i, why[int(outcome.state[i])], int(outcome.target[i])) for i in dropped]


CASES = [
    config.Dedup(),
    config.Dedup(exact=False),
    config.Dedup(near=None),
    config.Dedup(near=0.5, permutations=32),
    config.Dedup(near=0.7, permutations=16),
    config.Dedup(near=1.0, permutations=8),
]


@pytest.mark.parametrize("settings", CASES, ids=str)
@pytest.mark.parametrize("small", [2, 32])
def test_groups_find_what_the_sequential_rule_finds(tmp_path, monkeypatch, settings, small):
    """`duplicates` compares each document with all that are kept before it. `small`: groups are large from there on."""
    monkeypatch.setattr(groups, "_SMALL", small)
    monkeypatch.setattr(groups, "_BLOCK", 4 if small == 2 else 256)
    rng = np.random.default_rng(0)
    for copies in (0.4, 0.9):
        exact, near = signed(rng, 300, settings, copies=copies, shared=8)
        plain = [dedup.Signature(e.astype(">u8").tobytes(), n) for e, n in zip(exact, near, strict=True)]
        expected = duplicates(plain, settings)
        assert len(expected) > 20
        for memory in (1 << 16, 1 << 24):
            assert found(tmp_path / f"{copies} {memory}", exact, near, settings, memory) == expected


def test_followers_that_stay_are_compared_again(tmp_path, monkeypatch):
    """1 is like 0, and 2 is like 1 alone: 1 goes for its likeness to 0, so 2 stays. Where 0 itself goes, 1 stays and 2 goes."""
    monkeypatch.setattr(groups, "_SMALL", 1)
    settings = config.Dedup(near=0.5, permutations=32)
    rng = np.random.default_rng(0)
    base = rng.integers(0, 2**32, 32, dtype=np.uint32)
    part = lambda *new: np.where(np.isin(np.arange(32), np.concatenate(new)), rng.integers(0, 2**32, 32, dtype=np.uint32), base)
    band = dedup.bands(settings)[1]
    first = part(np.arange(band, 14))  # before all: 0 is like it
    zero = np.where(np.arange(32) < 14, first, base)
    zero[14:24] = rng.integers(0, 2**32, 10, dtype=np.uint32)
    near = np.stack([first, zero, *signed(rng, 40, settings, copies=0.9, shared=2)[1]])
    exact = rng.integers(0, 2**63, (len(near), 4)).astype(np.uint64)
    plain = [dedup.Signature(e.astype(">u8").tobytes(), n) for e, n in zip(exact, near, strict=True)]
    assert found(tmp_path, exact, near, settings, 1 << 24) == duplicates(plain, settings)


def test_a_group_of_near_copies_costs_no_pairs(tmp_path, monkeypatch):
    """5,000 documents with the same bands: compared with one leader, not with each other."""
    settings = config.Dedup()
    rng = np.random.default_rng(0)
    near = np.tile(rng.integers(0, 2**32, 128, dtype=np.uint32), (5000, 1))
    near[1:, 127] = np.arange(4999)
    exact = rng.integers(0, 2**63, (5000, 4)).astype(np.uint64)
    compared, edges = [], groups.Compared.edges
    monkeypatch.setattr(
        groups.Compared, "edges", lambda self, docs, others: (compared.append(len(docs)), edges(self, docs, others))[1]
    )
    dropped = found(tmp_path, exact, near, settings, 1 << 26)
    assert len(dropped) == 4999 and {drop.kept for drop in dropped} == {0}
    assert sum(compared) < 5000 * dedup.bands(settings)[0] * 200  # all pairs are 5000 * 2500 * bands


def test_the_command(capsys):
    assert main(["--config=configs/quickstart.py", "--on=nowhere"]) == 2
    assert capsys.readouterr().err.startswith("error: --on=nowhere is no place to prepare data on")
