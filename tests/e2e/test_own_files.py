"""configs/my_text.py and configs/my_labels.py, copied into a folder with files of one's own, train on them."""

import csv
import gzip
import json
import shutil
from pathlib import Path

import pytest

from lm import saved
from lm.config import resolve
from lm.train import main

CONFIGS = Path(__file__).parents[2] / "configs"
LITTLE = [
    "--config.train.steps=4",
    "--config.train.batch_size=4",
    "--config.checkpoint.every=None",
    "--config.log.tensorboard=False",
    "--config.data.cache=cache",
]
TEXT = [
    *("--config.optimizer.schedule.decay=None", "--config.optimizer.schedule.warmup=1"),
    *("--config.model.vocab_size=400", "--config.data.tokenizer.vocab_size=400", "--config.model.decoder.num_layers=1"),
]


@pytest.fixture(scope="module")
def folder(corpus, tmp_path_factory):
    """A user's folder: ten .txt files, two files of JSON lines, labels as CSV and as JSON lines, and the two configs."""
    root = tmp_path_factory.mktemp("mine")
    texts = [json.loads(line)["text"] for line in (corpus / "tiny.jsonl").read_text(encoding="utf-8").splitlines()]
    (root / "my_text" / "more").mkdir(parents=True)
    for i, text in enumerate(texts[:10]):
        (root / "my_text" / ("more" if i % 2 else ".") / f"{i}.txt").write_text(text, encoding="utf-8")
    lines = [
        "".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(some))
        for some in (texts[10:25], texts[25:])
    ]
    (root / "my_text/plain.jsonl").write_text(lines[0], encoding="utf-8")
    with gzip.open(root / "my_text/packed.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write(lines[1])
    records = [(f"{text[:40]}, {i}", ["yes", "no", "0"][i % 3]) for i, text in enumerate(texts)]
    with open(root / "my_labels.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("id", "text", "label"), *((i, *record) for i, record in enumerate(records))])
    rows = (json.dumps({"text": text, "label": label}) + "\n" for text, label in records)
    (root / "labels.jsonl").write_text("".join(rows), encoding="utf-8")
    for name in ("my_text", "my_labels"):
        shutil.copy(CONFIGS / f"{name}.py", root)
    return root


@pytest.fixture(scope="module")
def mine(folder):
    """The workdir of a run of my_text.py on that folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["--config=my_text.py", "--workdir=runs/mine", *LITTLE, *TEXT]) == 0
    return folder / "runs/mine"


def summary(workdir):
    return json.loads((workdir / "summary.json").read_text(encoding="utf-8"))


def test_texts_and_json_lines_of_a_folder_are_both_learned(mine, folder):
    said = summary(mine)
    assert {"text/bits_per_byte", "jsonl/bits_per_byte", "jsonl_gz/bits_per_byte", "bits_per_byte"} <= said["heldout"].keys()
    assert "xz_after_train" in said["baselines"]
    prepared = json.loads((mine / "manifest.json").read_text(encoding="utf-8"))["data_fingerprint"]
    report = json.loads((folder / "cache" / prepared / "report.json").read_text(encoding="utf-8"))
    assert {name: about["documents"] for name, about in report["sources"].items()} == {"text": 10, "jsonl": 15, "jsonl_gz": 15}


@pytest.mark.parametrize("file", ["my_labels.csv", "labels.jsonl"])
def test_labels_in_csv_and_in_json_lines_are_the_same_classes(mine, folder, monkeypatch, file):
    monkeypatch.chdir(folder)
    workdir = f"runs/{Path(file).suffix[1:]}"
    assert main([f"--config=my_labels.py:{file}", f"--config.train.init_from={mine}", f"--workdir={workdir}", *LITTLE]) == 0
    assert saved.open(folder / workdir).run.recipe.classes == ("0", "no", "yes")
    said = summary(folder / workdir)
    assert said["records"]["train"]["mine"]["records"] + said["records"]["holdout"]["mine"]["records"] == 40
    assert 0 < said["heldout"]["majority"] < 1 and 0 <= said["heldout"]["accuracy"] <= 1


def test_sources_are_those_of_the_files_that_are_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    kinds = lambda: list(resolve.load(f"{CONFIGS}/my_text.py:texts").data.sources)
    assert kinds() == ["text"]
    (tmp_path / "texts").mkdir()
    for name in ("a.jsonl~", "a.jsonl.bak", "a.txt~"):
        (tmp_path / "texts" / name).touch()
    assert kinds() == ["text"]
    (tmp_path / "texts/a.jsonl.gz").touch()
    assert kinds() == ["jsonl_gz"]
    (tmp_path / "texts/a.jsonl").touch()
    (tmp_path / "texts/a.txt").touch()
    assert sorted(kinds()) == ["jsonl", "jsonl_gz", "text"]


@pytest.mark.parametrize(
    "config, words",
    [
        ("my_text.py", "no file matches my_text/**/*.txt (source kind text); check data.sources.*.path"),
        ("my_labels.py:gone.csv", "no file matches gone.csv (source kind csv); check data.sources.*.path"),
    ],
)
def test_without_the_files_there_is_one_line(tmp_path, monkeypatch, capsys, mine, config, words):
    monkeypatch.chdir(tmp_path)
    start = [] if "text" in config else [f"--config.train.init_from={mine}"]
    assert main([f"--config={CONFIGS}/{config}", "--workdir=w", *start]) == 2
    assert capsys.readouterr().err.splitlines() == [f"error: {words}"]
