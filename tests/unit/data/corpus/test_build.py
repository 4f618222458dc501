"""Preparing records: parsed, split by what they ask, rendered with a loss mask, counted, resumed; and what is refused."""

import dataclasses
import gzip
import json
import shutil

import numpy as np
import pytest

from lm import atomic, config
from lm.data import templates
from lm.data import tokenizer as tokenizers
from lm.data.corpus import build, packages
from lm.data.corpus.prepare import fingerprint, prepare
from lm.data.records import Labelled, Message, Messages, Pair
from lm.data.render import render
from lm.errors import UserError
from tests.unit.data.corpus.test_packages import wheel


@pytest.fixture(scope="module")
def tokenizer():
    """A small one, which has role tokens."""
    return tokenizers.train(["the war and the peace of the union and its people"] * 20, config.Tokenizer(vocab_size=390))


def source(format, path, **more):
    return config.Source(kind="jsonl", path=str(path), format=format, **more)


def write(path, records):
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records))
    return path


def labelled(n, first=0):
    return [{"text": f"text number {i}", "label": ("war", "peace", "union")[i % 3]} for i in range(first, first + n)]


def section(tmp_path, records, format="labelled", **more):
    path = write(tmp_path / "mine.jsonl", records)
    return config.Data(sources={"mine": source(format, path)}, cache=str(tmp_path / "cache"), **{"holdout": 0.2, **more})


def prepared(tokenizer, data):
    return prepare(data, tokenizer=tokenizer, progress=False)


def test_labelled_records(tmp_path, tokenizer):
    done = prepared(tokenizer, section(tmp_path, labelled(20)))
    assert done.classes == ("peace", "union", "war")
    train, held = (done.records("mine", split) for split in ("train", "holdout"))
    assert (len(train), len(held)) == (16, 4) and all(isinstance(r, Labelled) for r in train + held)
    assert sorted(r.text for r in train + held) == sorted(r["text"] for r in labelled(20))
    for split, store in (("train", done.train["mine"]), ("holdout", done.holdout["mine"])):
        records = done.records("mine", split)
        assert [done.classes[i] for i in store.labels] == [r.label for r in records]
        for i, one in enumerate(render(records, tokenizer)):
            np.testing.assert_array_equal(store.document(i), one.ids)
            np.testing.assert_array_equal(store.loss(np.array([i]))[0], one.loss)
        assert store.num_bytes == sum(len(f"{r.text}\n{r.label}") for r in records)
    about = done.report["sources"]["mine"]
    assert about["read"] == 20 and about["dropped"] == {"unreadable": 0, "short": 0, "exact": 0, "near": 0}
    assert sum(about["splits"][s]["tokens_with_loss"] for s in about["splits"]) == sum(
        r.loss.sum() for r in render(train + held, tokenizer)
    )
    assert sum(sum(counts.values()) for counts in about["labels"].values()) == 20
    assert done.tokenizer.proto == tokenizer.proto


def test_pairs_and_conversations(tmp_path, tokenizer):
    pairs = [{"question": f"Who {i}?", "answer": f"they {i}", "context": f"They {i} did."} for i in range(6)]
    turn = lambda role, text: {"role": role, "content": text}
    talks = [{"messages": [turn("user", f"hello {i}"), turn("assistant", f"good day {i}")]} for i in range(6)]
    files = {"pair": write(tmp_path / "p.jsonl", pairs), "messages": write(tmp_path / "m.jsonl", talks)}
    data = config.Data(sources={f: source(f, p) for f, p in files.items()}, cache=str(tmp_path / "cache"), holdout=0.2)
    done = prepared(tokenizer, data)
    assert done.classes == ()
    every = lambda name: [*done.records(name, "train"), *done.records(name, "holdout")]
    assert set(every("pair")) == {Pair(f"Who {i}?", f"they {i}", f"They {i} did.") for i in range(6)}
    assert Messages((Message("user", "hello 0"), Message("assistant", "good day 0"))) in every("messages")
    loss, ids = done.train["messages"].loss(np.array([0]))[0], done.train["messages"].document(0)
    assert tokenizer.decode(ids[loss]) == done.records("messages", "train")[0].messages[1].content
    assert ids[-1] == tokenizer.role_ids["<|end|>"] and loss[-1]


def test_records_without_a_given_tokenizer_train_one(tmp_path):
    data = section(tmp_path, labelled(60), tokenizer=config.Tokenizer(vocab_size=395))
    done = prepare(data, progress=False)
    assert done.tokenizer.vocab_size == 395 and done.train["mine"].num_documents == 48


def test_texts_beside_records_are_prepared_as_ever(tmp_path, tokenizer):
    texts = write(tmp_path / "t.jsonl", [{"text": f"A text of its own, number {i}."} for i in range(8)])
    alone = config.Data(sources={"t": source("text", texts)}, cache=str(tmp_path / "cache"))
    both = dataclasses.replace(alone, sources={**alone.sources, "mine": source("labelled", write(tmp_path / "r", labelled(9)))})
    first, second = (prepared(tokenizer, data) for data in (alone, both))
    for name in ("train.jsonl.gz", "holdout.jsonl.gz", "train/tokens/c/0", "train/offsets/c/0"):
        assert (first.path / "t" / name).read_bytes() == (second.path / "t" / name).read_bytes()
    assert not (second.path / "t" / "train" / "loss").exists() and second.train["t"].labels is None
    assert "format" not in second.report["sources"]["t"] and "tokens_with_loss" not in str(first.report)


# ----------------------------------------------------------------------------------------------------------- the split


def test_records_that_ask_the_same_are_on_one_side(tmp_path, tokenizer):
    """Whatever they answer: three labels of each of ten texts, and equal records once."""
    records = [{"text": f"Text {i}" + "!" * j, "label": label} for i in range(10) for j, label in enumerate("abc")]
    done = prepared(tokenizer, section(tmp_path, [*records, *records[:7]]))
    assert done.report["sources"]["mine"]["dropped"]["exact"] == 7
    train, held = ({r.text.strip("!") for r in done.records("mine", split)} for split in ("train", "holdout"))
    assert len(held) == 2 and not train & held and len(train) == 8
    drops = [json.loads(line) for line in (done.path / "dropped.jsonl").read_text().splitlines()]
    assert drops[0] == {"source": "mine", "key": "mine.jsonl:31", "reason": "exact", "kept": "mine/mine.jsonl:1"}


def test_one_question_alone_is_for_training(tmp_path, tokenizer):
    done = prepared(tokenizer, section(tmp_path, [{"text": "Text", "label": label} for label in "abcd"]))
    assert done.train["mine"].num_documents == 4 and not done.holdout


def test_nothing_is_held_out_where_none_is_asked_for(tmp_path, tokenizer):
    done = prepared(tokenizer, section(tmp_path, labelled(9), holdout=0.0))
    assert done.train["mine"].num_documents == 9 and done.records("mine", "holdout") == []


def test_a_label_that_training_never_sees_is_a_class_still(tmp_path, tokenizer):
    data = section(tmp_path, labelled(20))
    rare = prepared(tokenizer, data).records("mine", "holdout")[0].text
    records = [{**r, "label": "rare"} if r["text"] == rare else r for r in labelled(20)]
    done = prepared(tokenizer, section(tmp_path, records))
    assert done.classes == ("peace", "rare", "union", "war")
    labels = done.report["sources"]["mine"]["labels"]
    assert "rare" not in labels["train"] and labels["holdout"]["rare"] == 1


def test_a_set_of_a_package_keeps_its_split_and_its_classes(tmp_path, tokenizer, monkeypatch):
    raw = b"".join(b"%s:x What is number %d ?\n" % ((b"NUM", b"HUM", b"LOC")[i % 3], i) for i in range(40))
    monkeypatch.setattr(packages, "SETS", {"questions": wheel(tmp_path / "cache" / "wheels", "questions", raw)})
    data = config.Data(
        sources={"q": config.Source(kind="package", path="questions", format="labelled")}, cache=str(tmp_path / "cache")
    )
    done, found = prepared(tokenizer, data), packages.load("questions", data.cache)
    assert {split: done.records("q", split) for split in ("train", "holdout")} == found and len(found["holdout"]) > 2
    assert done.classes == packages.find("questions").classes and len(done.classes) == 6


def test_a_set_of_a_package_may_be_read_as_texts(tmp_path, tokenizer, monkeypatch):
    raw = b"".join(b"%s:x What is number %d ?\n" % ((b"NUM", b"HUM", b"LOC")[i % 3], i) for i in range(40))
    monkeypatch.setattr(packages, "SETS", {"questions": wheel(tmp_path / "cache" / "wheels", "questions", raw)})
    of = lambda format: config.Data(
        sources={"q": config.Source(kind="package", path="questions", format=format)}, cache=str(tmp_path / "cache")
    )
    done, found = prepared(tokenizer, of("text")), packages.load("questions", str(tmp_path / "cache"))
    for split, store in (("train", done.train["q"]), ("holdout", done.holdout["q"])):
        assert store.num_documents == len(found[split]) > 2
        assert store.num_bytes == sum(len(record.text.encode()) for record in found[split])
    assert fingerprint(of("text"), tokenizer) != fingerprint(of("labelled"), tokenizer)


def test_cloze_questions_are_about_other_data(tmp_path, tokenizer):
    texts = [f"On day {i} the Senate{i % 7} met early, and then the Senate{i % 7} voted." for i in range(40)]
    documents = write(tmp_path / "t.jsonl", [{"text": f"{t}\n{t[::-1]}"} for t in texts])
    other = config.Data(
        sources={"t": source("text", documents)}, tokenizer=config.Tokenizer(vocab_size=400), cache=str(tmp_path / "other")
    )
    cloze = config.Source(kind="cloze", path="infill", format="pair", documents=other, length=60)
    data = config.Data(sources={"c": cloze}, cache=str(tmp_path / "cache"))
    done = prepared(tokenizer, data)
    assert all(r.question == "" and "___" in r.context for r in done.records("c", "train") + done.records("c", "holdout"))
    base = fingerprint(data, tokenizer)
    for change in (dict(length=61), dict(path="spans"), dict(documents=dataclasses.replace(other, holdout=0.1))):
        assert fingerprint(dataclasses.replace(data, sources={"c": dataclasses.replace(cloze, **change)}), tokenizer) != base
    for missing in (dict(length=None), dict(documents=None)):
        with pytest.raises(UserError, match="data.sources.c asks about the documents of other data: set its documents and"):
            prepared(tokenizer, dataclasses.replace(data, sources={"c": dataclasses.replace(cloze, **missing)}))


# --------------------------------------------------------------------------------------------- cached, resumed, verified


def test_the_fingerprint_covers_the_format_and_the_tokenizer(tmp_path, tokenizer):
    path = write(tmp_path / "r.jsonl", labelled(9))
    of = lambda format, given=tokenizer: fingerprint(config.Data(sources={"a": source(format, path)}), given)
    assert len({of("text"), of("labelled"), of("pair"), of("labelled", None)}) == 4
    data = config.Data(sources={"a": source("labelled", path, weight=2.0)}, packing=True, on_long="skip", encoder_length=9)
    assert fingerprint(data, tokenizer) == of("labelled")  # how records are read decides nothing about what is prepared


@pytest.mark.parametrize("stage", ["mine/clean", "dedup", "mine/split", "tokenizer", "mine/train", "mine/holdout"])
def test_a_killed_preparation_goes_on(tmp_path, tokenizer, monkeypatch, stage):
    data = section(tmp_path, labelled(20))
    before = prepared(tokenizer, data)
    files = {p.relative_to(before.path): p.read_bytes() for p in before.path.rglob("*") if p.is_file()}
    shutil.rmtree(before.path)
    shutil.rmtree(before.path.with_name("cleaned"))
    write_json = atomic.write_json

    def dying(path, value):
        write_json(path, value)
        if str(path).endswith(f"{stage}.done.json"):
            raise KeyboardInterrupt

    monkeypatch.setattr(atomic, "write_json", dying)
    with pytest.raises(KeyboardInterrupt):
        prepared(tokenizer, data)
    monkeypatch.setattr(atomic, "write_json", write_json)
    monkeypatch.setattr(build.sources, "open_source", None)  # reading was done
    again = prepared(tokenizer, data)
    assert again.classes == before.classes
    for name, raw in files.items():
        assert name.name == "report.json" or (again.path / name).read_bytes() == raw


@pytest.mark.parametrize("name", ["train/loss/zarr.json", "train/labels/zarr.json", "train/loss/c/0", "train.jsonl.gz"])
@pytest.mark.parametrize("harm", ["flip", "missing"])
def test_damage_is_noticed(tmp_path, tokenizer, name, harm):
    data = section(tmp_path, labelled(20))
    file = prepared(tokenizer, data).path / "mine" / name
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    file.unlink() if harm == "missing" else file.write_bytes(raw)
    with pytest.raises(UserError, match=r"^(corrupt|no) .*prepare the data again"):
        prepared(tokenizer, data).records("mine", "train")


# ---------------------------------------------------------------------------------------------------- bad input

GOOD = [json.dumps(r) for r in labelled(6)]
BAD = {
    "wrong type": ('{"text": 3, "label": "war"}', "field 'text' is a int, not text"),
    "missing": ('{"text": "x"}', "no field 'label'"),
    "empty": ('{"text": "x", "label": ""}', "field 'label' is empty"),
    "no object": ("[1]", "a JSON list, not an object with 'text' and 'label'"),
    "no JSON": ("{text", "malformed JSON"),
    "nested": ("[" * 100_000, "JSON nested too deep"),
    "utf-8": (b'{"text": "\xff", "label": "war"}', "invalid utf-8 at byte"),
}


@pytest.mark.parametrize("fault", BAD)
def test_a_bad_record_is_named_or_skipped_and_counted(tmp_path, tokenizer, fault):
    line, message = BAD[fault]
    line = line if isinstance(line, bytes) else line.encode()
    (tmp_path / "mine.jsonl").write_bytes(b"\n".join([*map(str.encode, GOOD[:3]), line, *map(str.encode, GOOD[3:])]))
    data = config.Data(sources={"mine": source("labelled", tmp_path / "mine.jsonl")}, cache=str(tmp_path / "cache"))
    with pytest.raises(UserError) as error:
        prepared(tokenizer, data)
    assert f"mine.jsonl, line 4: {message}" in str(error.value) and "data.on_corrupt=skip" in str(error.value)
    done = prepared(tokenizer, dataclasses.replace(data, on_corrupt="skip"))
    about = done.report["sources"]["mine"]
    assert about["read"] == 7 and about["dropped"]["unreadable"] == 1 and about["documents"] == 6
    assert message in about["examples"]["unreadable"][0]


TOOLS = [{"role": role, "content": "the war"} for role in ("user", "assistant", "tool", "assistant")]
REFUSES = """{%- for m in messages %}{%- if m.role == 'tool' %}{{ raise_exception('no tools') }}{%- endif %}
{{- '<|' + m.role + '|>' }}{%- if m.role == 'assistant' %}{%- generation %}{{ m.content + '<|end|>' }}{%- endgeneration %}
{%- else %}{{ m.content + '<|end|>' }}{%- endif %}{%- endfor %}"""


@pytest.mark.parametrize("given", [True, False])
def test_a_conversation_that_the_template_refuses_is_named_or_skipped(tmp_path, tokenizer, given):
    """Before anything is written, whether the tokenizer is there already or trained later."""
    talks = [{"messages": [{"role": "user", "content": f"the peace {i}"}, TOOLS[1]]} for i in range(6)]
    more = dict(holdout=0.0, template=REFUSES, tokenizer=config.Tokenizer("word", 200))
    data = section(tmp_path, [*talks[:3], {"messages": TOOLS}, *talks[3:]], "messages", **more)
    with pytest.raises(UserError, match="mine/mine.jsonl:4: the chat template .*no tools.*data.on_corrupt=skip"):
        prepared(tokenizer if given else None, data)
    done = prepared(tokenizer if given else None, dataclasses.replace(data, on_corrupt="skip"))
    about = done.report["sources"]["mine"]
    assert (about["read"], about["dropped"]["unreadable"], about["documents"]) == (7, 1, 6)
    assert "mine.jsonl:4" in about["examples"]["unreadable"][0]
    records = done.records("mine", "train")
    for i, one in enumerate(render(records, done.tokenizer, templates.of(REFUSES, done.tokenizer))):
        np.testing.assert_array_equal(done.train["mine"].document(i), one.ids)
    assert len(records) == 6


@pytest.mark.parametrize("given", [True, False])
def test_a_template_whose_tokens_the_tokenizer_lacks_is_refused_before_anything_is_read(tmp_path, tokenizer, given):
    data = section(tmp_path, ["{no JSON"], "messages", template="chatml", on_corrupt="fail")
    with pytest.raises(UserError, match=r"has no token <\|im_start\|>, which the chat template 'chatml' writes"):
        prepared(tokenizer if given else None, data)


@pytest.mark.parametrize("lines", ["", "\n\n", '{"text": "x"}\n{"label": "y"}\n'])
def test_no_record_at_all(tmp_path, tokenizer, lines):
    (tmp_path / "mine.jsonl").write_text(lines)
    sources = {"mine": source("labelled", tmp_path / "mine.jsonl")}
    data = config.Data(sources=sources, cache=str(tmp_path / "cache"), on_corrupt="skip")
    with pytest.raises(UserError, match=r"source 'mine' \(.*mine.jsonl\) has no labelled records: 0 documents read, . unread"):
        prepared(tokenizer, data)


def test_one_class_alone_is_refused(tmp_path, tokenizer):
    with pytest.raises(UserError, match="all records have the label 'war', so there is nothing to learn"):
        prepared(tokenizer, section(tmp_path, [{"text": f"text {i}", "label": "war"} for i in range(5)]))


def test_a_record_of_megabytes(tmp_path, tokenizer):
    """It is kept complete; a row later has its two ends."""
    text = "the war and the peace " * 100_000
    done = prepared(tokenizer, section(tmp_path, [*labelled(3), {"text": text, "label": "war"}], holdout=0.0))
    assert done.records("mine", "train")[3].text == text and max(np.diff(done.train["mine"].offsets)) > 100_000


def test_a_gzipped_file_and_a_foreign_encoding(tmp_path, tokenizer):
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as out:
        out.write("\n".join(GOOD))
    (tmp_path / "b.jsonl").write_bytes("\n".join(json.dumps(r, ensure_ascii=False) for r in labelled(3, 9)).encode("utf-16"))
    sources = {
        "a": source("labelled", tmp_path / "a.jsonl.gz"),
        "b": source("labelled", tmp_path / "b.jsonl", encoding="utf-16"),
    }
    done = prepared(tokenizer, config.Data(sources=sources, cache=str(tmp_path / "cache"), holdout=0.0))
    assert [done.train[name].num_documents for name in "ab"] == [6, 3]


def test_a_killed_preparation_goes_on_where_the_source_lies_now(tmp_path, tokenizer, monkeypatch):
    """The mark is of the contents: the same file at another path goes on with the same work, not with the old path, and what
    the killed process left is no data."""
    data = section(tmp_path, labelled(40))
    whole = prepared(tokenizer, dataclasses.replace(data, cache=str(tmp_path / "whole")))

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(build.Build, "_clean", killed)
        prepared(tokenizer, data)
    partial = tmp_path / "cache" / f"{whole.fingerprint}.partial"
    for left in ("mine/train.jsonl.gz.0123.tmp", "mine/clean.jsonl", "tokenizer.model.7.tmp"):
        (partial / left).parent.mkdir(exist_ok=True)
        (partial / left).write_text("left")
    (tmp_path / "elsewhere").mkdir()
    moved = shutil.move(tmp_path / "mine.jsonl", tmp_path / "elsewhere")
    again = prepared(tokenizer, dataclasses.replace(data, sources={"mine": source("labelled", moved)}))
    assert again.fingerprint == whole.fingerprint and again.report["files"] == whole.report["files"]
    assert {p.name for p in again.path.rglob("*")} == {p.name for p in whole.path.rglob("*")}
