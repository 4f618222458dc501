"""A refusal says what to do next: files and keys that exist, choices that are taken here, and who set what does not fit."""

import json
from pathlib import Path

import pytest

from lm import config
from lm.config import suggest
from lm.config.resolve import build, load, to_dict
from tests.unit.config.common import MODEL, refused

FILE = """
def get_config():
    block = dict(attention=dict(num_heads=2), ffn=dict(hidden=8))
    return dict(
        model=dict(vocab_size=16, width=8, decoder=dict(num_layers=2, blocks=dict(L=block), position=dict(kind="rope"))),
        optimizer=dict(schedule=dict(kind="wsd", decay=40)),
        train=dict(steps=200),
    )
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with two configs, a module that is none, and a run."""
    monkeypatch.chdir(tmp_path)
    for name, text in {
        "configs/small.py": FILE,
        "configs/other.py": FILE,
        "setup.py": "x = 1",
        "runs/first/config.json": "{}",
    }.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text, encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(
    "file,words",
    [
        ("configs/smal.py", "; did you mean 'configs/small.py'\\?$"),
        ("small", "; did you mean 'configs/small.py'\\?$"),
        ("small.py:8", "; did you mean 'configs/small.py'\\?$"),
        ("runs/frist/config.json", "; did you mean 'runs/first/config.json'\\?$"),
        ("nofile.py", "no config file nofile.py; known: configs/other.py, configs/small.py$"),
    ],
)
def test_a_file_that_is_suggested_is_one_that_is_taken(folder, file, words):
    refused(words, load, file)
    load("configs/small.py")


def test_where_there_are_no_configs_those_of_the_library_are_suggested(folder, monkeypatch):
    for path in Path("configs").glob("*.py"):
        path.unlink()
    refused("no config file quickstrt; did you mean 'quickstart'\\?$", load, "quickstrt")
    assert load("quickstart").train.steps
    monkeypatch.setattr(suggest, "LIBRARY", [])
    refused(
        r"no config file nofile.py: give a Python file with get_config\(\), or the config.json of a run$", load, "nofile.py"
    )


def test_of_many_files_a_few_are_listed(folder):
    for n in range(20):
        Path(f"configs/a{n:02}.py").write_text(FILE, encoding="utf-8")
    refused("known: configs/a00.py, .*configs/a04.py and 17 more$", load, "nofile.py")


@pytest.mark.parametrize(
    "key,words",
    [
        ("steps", "unknown key config.steps; did you mean --config.train.steps\\?"),
        ("learning_rate", "unknown key config.learning_rate; did you mean --config.optimizer.learning_rate\\?"),
        ("optimizer.warmup", "did you mean --config.optimizer.schedule.warmup\\?"),
        ("train.step", "did you mean 'steps'\\?"),
        ("train.xyz", "unknown key config.train.xyz; known: "),
    ],
)
def test_a_key_of_another_section_is_told_its_place(folder, key, words):
    refused(words, load, "configs/small.py", {key: "3"})


def test_a_suggested_key_is_taken(folder):
    assert load("configs/small.py", {"optimizer.schedule.warmup": "3"}).optimizer.schedule.warmup == 3


def test_a_choice_that_some_machines_alone_take_says_so():
    tree = to_dict(MODEL) | {"kernel": "flash"}
    refused(
        r"config.model.kernel is 'flash'; known: plain, splash \(on TPUs alone\), cudnn \(on GPUs alone\), auto$",
        build,
        config.Model,
        tree,
        "config.model",
    )


HEADS = "model.decoder.blocks.L.attention.num_heads"


@pytest.mark.parametrize(
    "overrides,words",
    [
        ({HEADS: "3"}, f"num_heads=3 does not divide width=8.*set by a flag: {HEADS}; set by .*small.py: model.width"),
        ({"model.width": "9"}, f"num_heads=2 does not divide width=9.*set by .*small.py: {HEADS}; set by a flag: model.width"),
        ({"model.decoder.blocks.L.attention.num_kv_heads": "3"}, "num_kv_heads=3 does not divide num_heads=2"),
        ({"model.decoder.blocks.L.attention.head_dim": "5"}, "turns 5 of a head's 5 dimensions.*in pairs"),
        ({"model.decoder.num_layers": "0"}, "num_layers=0 is too small: give 1 or more"),
        ({"model.decoder.pattern": "LX"}, "pattern='LX' names X, and the blocks are L"),
        ({"train.steps": "-5"}, "train.steps=-5 is too small: give 0 or more"),
        ({"optimizer.learning_rate": "-1"}, "learning_rate=-1 is too small: give 0 or more"),
        ({"optimizer.schedule.warmup": "-1"}, "warmup=-1 is too small: give 0 or more"),
        ({"optimizer.schedule.warmup": "-0.1"}, "warmup=-0.1 is too small: give 0 or more"),
        (
            {"train.steps": "120"},
            "decay=40 does not fit the 20 steps after the warm-up, of train.steps=120: give "
            "--config.optimizer.schedule.decay=20 or less.*set by a flag: train.steps; set by .*small.py: "
            "optimizer.schedule.decay; set by default: optimizer.schedule.warmup",
        ),
        (
            {"optimizer": "{'schedule': {'kind': 'wsd', 'decay': 500}}"},
            "decay=500 does not fit the 100 steps.*set by .*small.py: train.steps; set by a flag: optimizer.schedule.decay",
        ),
    ],
)  # fmt: skip
def test_what_is_refused_says_who_set_it(folder, overrides, words):
    refused(words, load, "configs/small.py", overrides)


def test_the_suggested_decay_is_taken(folder):
    run = load("configs/small.py", {"train.steps": "120", "optimizer.schedule.decay": "20"})
    assert run.optimizer.schedule.phases(120) == (100, 20)


def test_a_run_of_no_steps_and_other_kinds_have_no_decay_to_fit():
    schedule = config.Schedule("wsd", decay=500)
    assert config.Run(MODEL, optimizer=config.Optimizer(schedule=schedule), train=config.Train(steps=0))
    assert config.Run(MODEL, optimizer=config.Optimizer(schedule=config.Schedule("cosine", decay=5000)))


def test_dataclasses_of_a_python_file_count_as_its_own(tmp_path):
    path = tmp_path / "made.py"
    path.write_text(
        "from lm.config import Attention, Block, Mlp, Model, Optimizer, Run, Schedule, Stack\n"
        "stack = Stack(2, {'L': Block(Attention(2), Mlp(8))})\n"
        "optimizer = Optimizer(schedule=Schedule('wsd', decay=40))\n"
        "get_config = lambda: dict(model=Model(16, 8, decoder=stack), optimizer=optimizer)\n",
        encoding="utf-8",
    )
    words = "set by a flag: train.steps; set by .*made.py: optimizer.schedule.decay, optimizer.schedule.warmup"
    refused(words, load, str(path), {"train.steps": "30"})
    assert json.loads(json.dumps(to_dict(load(str(path)))))["train"]["steps"] == 1000
