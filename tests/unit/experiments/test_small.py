"""The runs that studies are made of."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from experiments import small
from experiments.units import load_study
from lm import config
from lm.errors import UserError


def test_a_run_on_data_of_its_own():
    data = config.Data(sources={"own": config.Source("jsonl", "own.jsonl")}, decoder_length=64)
    run = small.run(small.model("decoder", vocab_size=256), config.Causal(), data=data, steps=7)
    assert (run.data, run.model.vocab_size, run.train.steps) == (data, 256, 7)


def test_a_run_by_default_is_on_the_embedded_corpus_with_the_rows_that_its_stacks_need():
    run = small.run(small.model("decoder"), config.Causal())
    assert list(run.data.sources) == ["sotu"] and run.model.vocab_size == run.data.tokenizer.vocab_size
    assert (run.data.encoder_length, run.data.decoder_length) == (None, small.LENGTH)
    both = small.run(small.model("encoder_decoder"), config.SpanCorruption(), decoder_length=32)
    assert (both.data.encoder_length, both.data.decoder_length) == (small.LENGTH, 32)


def test_ones_own_text_is_split_into_parts(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("one", "two"):
        (tmp_path / f"{name}.txt").write_text("".join(f"Line {i} of text {name}.\n" for i in range(1000)))
    data = small.text(str(tmp_path / "*.txt"))
    lines = [Path(source.path).expanduser().read_text().splitlines() for source in data.sources.values()]
    train, held = ([json.loads(line)["text"] for line in of] for of in lines)
    assert [s.use for s in data.sources.values()] == ["train", "holdout"] and len(held) == (len(train) + len(held)) // 10
    assert sorted("".join(train + held)) == sorted("".join((tmp_path / f"{n}.txt").read_text() for n in ("one", "two")))
    assert all(2000 <= len(part) < 2030 for part in train[:9]) and data.tokenizer.vocab_size == 512
    assert small.run(small.model("encoder"), config.Masked(), data=data).data.encoder_length == small.LENGTH


def test_a_text_that_is_missing_or_too_short_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"path=.*/\*.txt: there is no such file; give one"):
        small.text(f"{tmp_path}/*.txt")
    (tmp_path / "short.txt").write_text("Too short.")
    with pytest.raises(UserError, match="10 characters are too few to learn from; give 30,000 or more"):
        small.text(f"{tmp_path}/short.txt")


def test_the_template_takes_a_copy_of_itself(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "experiments").mkdir()
    shutil.copytree(Path(small.__file__).parent / "template", tmp_path / "experiments" / "mine")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    (tmp_path / "my.txt").write_text("A line that says little.\n" * 2000)
    made = load_study("mine", {"path": str(tmp_path / "my.txt")})
    assert made.name == "mine" and list(made.cells) == ["masked", "causal"]
    sys.modules.pop("experiments.mine.study")
