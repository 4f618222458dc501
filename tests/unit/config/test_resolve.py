"""A config file becomes frozen dataclasses, or one line that says what is wrong with it."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
from ml_collections import config_dict

from lm import config
from lm.config import Attention, Block, Buckets, Mlp, Model, Rope, Run, Stack, resolve
from lm.config.resolve import build, diff, load, split_flags, to_dict
from lm.errors import UserError
from lm.models.presets.t5 import T5_SMALL

ROOT = Path(__file__).parents[3]
BLOCK = dict(attention=dict(num_heads=2), ffn=dict(hidden=8))
STACK = dict(num_layers=2, blocks=dict(L=BLOCK))
MODEL = dict(vocab_size=16, width=8, decoder=STACK)


def made(**changes) -> Run:
    return build(Run, dict(model=MODEL) | changes)


def fails(words, **changes):
    with pytest.raises(UserError, match=words) as error:
        made(**changes)
    assert "\n" not in str(error.value)


RUNS = {
    "defaults": made(),
    "t5": Run(T5_SMALL, objective=config.SpanCorruption(0.3, 5.0)),
    "many": Run(
        Model(
            16,
            8,
            decoder=Stack(4, {"L": Block(Attention(2, window=3), Mlp(8)), "G": Block(Attention(2), Mlp(8))}, "LG", Rope()),
        ),
        config.Data({"a": config.Source("text", "x/*.txt"), "b": config.Source(weight=2.0)}, decoder_length=8),
        config.Prefix(),
        config.Optimizer("muon", schedule=config.Schedule("wsd", decay=7), ema=0.9),
        log=config.Log(samples=("a", "b")),
    ),
}


@pytest.mark.parametrize("name", RUNS)
def test_round_trips(name):
    run = RUNS[name]
    assert build(Run, to_dict(run)) == run
    assert resolve.from_json(resolve.to_json(run)) == run
    assert hash(resolve.from_json(resolve.to_json(run)).model) == hash(run.model)
    assert build(Run, config_dict.ConfigDict(to_dict(run)).to_dict()) == run


def test_kinds():
    assert config.kind_of(config.SpanCorruption) == "span_corruption"
    assert made(objective=dict(kind="span_corruption", rate=0.5)).objective == config.SpanCorruption(0.5)
    assert made(objective=dict()).objective == config.Causal()
    buckets = MODEL | dict(decoder=STACK | dict(position=dict(kind="buckets", num_buckets=8)))
    assert made(model=buckets).model.decoder.position == Buckets(8)
    assert made().model.decoder.position is None
    rms = MODEL | dict(decoder=STACK | dict(blocks=dict(L=BLOCK | dict(norm=dict(kind="rms")))))
    assert made(model=rms).model.decoder.blocks["L"].norm == config.Norm("rms")  # a field of that name is a field
    fails("config.objective.kind is 'masked_lm'; did you mean 'masked'", objective=dict(kind="masked_lm"))


@pytest.mark.parametrize(
    "words,changes",
    [
        ("unknown key config.trian; did you mean 'train'", dict(trian={})),
        ("unknown key config.train.step; did you mean 'steps'", dict(train=dict(step=1))),
        ("unknown key config.mesh.pipeline; known: data, expert, fsdp, sequence, slice, tensor", dict(mesh=dict(pipeline=2))),
        ("config.model.width is missing; Model needs it", dict(model=dict(vocab_size=16))),
        ("config.train.steps is 'many'; it must be int", dict(train=dict(steps="many"))),
        ("config.train.steps is 1.5; it must be int", dict(train=dict(steps=1.5))),
        ("config.train.steps is True; it must be int", dict(train=dict(steps=True))),
        ("config.train is 3; it must be a section with the fields of Train", dict(train=3)),
        ("config.train is None; it must be", dict(train=None)),
        ("config.optimizer.clip is 'no'; it must be float or None", dict(optimizer=dict(clip="no"))),
        ("config.optimizer.name is 'adam'; did you mean 'adamw'", dict(optimizer=dict(name="adam"))),
        (r"config.log.samples\[1\] is 3; it must be str", dict(log=dict(samples=("a", 3)))),
        ("config.log.samples is 'a'; it must be", dict(log=dict(samples="a"))),
        ("config.data.sources is 'sotu'; it must be", dict(data=dict(sources="sotu"))),
        (
            "unknown key config.model.decoder.blocks.L.attention.heads; did you mean 'num_heads'",
            dict(model=MODEL | dict(decoder=STACK | dict(blocks=dict(L=BLOCK | dict(attention=dict(heads=2)))))),
        ),
    ],
)
def test_what_is_wrong_is_named(words, changes):
    fails(words, **changes)


def test_numbers():
    run = made(optimizer=dict(learning_rate=1, clip=None), mesh=dict(data=-1))
    assert isinstance(run.optimizer.learning_rate, float) and run.optimizer.clip is None
    assert dataclasses.is_dataclass(run.mesh) and run.mesh.data == -1


def test_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        made().train.steps = 3  # type: ignore[misc]
    assert hash(made().model) == hash(made().model)
    assert made().model != RUNS["many"].model


def test_diff():
    old = made()
    new = made(train=dict(steps=5), objective=dict(kind="masked"))
    found = diff(old, new)
    assert found["train.steps"] == (1000, 5)
    assert found["objective.kind"] == ("causal", "masked")
    assert found["objective.rate"] == (None, 0.15)
    assert not any(k.startswith(("model", "data")) for k in found)
    assert diff(old, old) == {}


# ---------------------------------------------------------------------------------------------------- files and flags

FILE = """
from ml_collections import config_dict

def get_config(size="8"):
    c = config_dict.ConfigDict()
    block = dict(attention=dict(num_heads=2), ffn=dict(hidden=8))
    c.model = dict(vocab_size=16, width=int(size), decoder=dict(num_layers=2, blocks=dict(L=block)))
    c.train = dict(steps=7)
    return c
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "small.py"
    path.write_text(FILE)
    return str(path)


def test_load(file, tmp_path):
    assert load(file).train.steps == 7
    assert load(f"{file}:24").model.width == 24
    saved = tmp_path / "config.json"
    saved.write_text(resolve.to_json(load(file)))
    assert load(str(saved)) == load(file)


def test_overrides_have_types(file):
    overrides = {
        "train.steps": "12",
        "optimizer.learning_rate": "3e-4",
        "optimizer.name": "lion",
        "optimizer.clip": "None",
        "log.samples": "('x', 'y z')",
        "log.tensorboard": "False",
        "model.decoder.blocks.L.attention.window": "1024",
        "model.decoder.position.kind": "alibi",
        "objective.kind": "masked",
        "data.sources.mine.path": "a/b*.txt",
    }
    run = load(file, overrides)
    assert run.train.steps == 12
    assert (run.optimizer.learning_rate, run.optimizer.name, run.optimizer.clip) == (3e-4, "lion", None)
    assert (run.log.samples, run.log.tensorboard) == (("x", "y z"), False)
    assert run.model.decoder.blocks["L"].attention.window == 1024
    assert run.model.decoder.position == config.Alibi()
    assert run.objective == config.Masked()
    assert run.data.sources["mine"].path == "a/b*.txt"


def test_a_file_may_return_dataclasses(tmp_path):
    path = tmp_path / "preset.py"
    path.write_text("from lm.config import Run\nfrom lm.models.presets.gpt import GPT2\nget_config = lambda: Run(GPT2)\n")
    assert load(str(path), {"model.width": "96"}).model.width == 96


@pytest.mark.parametrize(
    "overrides,words",
    [
        ({"train.stesp": "3"}, "unknown key config.train.stesp; did you mean 'steps'"),
        ({"train.steps": "three"}, "config.train.steps is 'three'; it must be int"),
        ({"train.steps.more": "3"}, "--config.train.steps.more: 'steps' is 7, not a section"),
    ],
)
def test_bad_overrides(file, overrides, words):
    with pytest.raises(UserError, match=words):
        load(file, overrides)


def test_bad_files(file, tmp_path):
    with pytest.raises(UserError, match="no config file .*smal.py; did you mean '.*small.py'"):
        load(str(tmp_path / "smal.py"))
    with pytest.raises(UserError, match="no config file nowhere/x.py"):
        load("nowhere/x.py")
    empty = tmp_path / "empty.py"
    empty.write_text("")
    with pytest.raises(UserError, match=r"has no get_config\(\); see configs/quickstart.py"):
        load(str(empty))
    empty.write_text("def get_config():\n    return 1 / 0\n")
    with pytest.raises(UserError, match=r"empty.py failed: ZeroDivisionError: division by zero"):
        load(str(empty))
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    with pytest.raises(UserError, match=r"broken.json is not JSON"):
        load(str(broken))


def test_split_flags():
    argv = ["--config=F", "--config.train.steps=3", "--workdir=W", "--config.log.samples", "('a',)", "--config.a=b=c"]
    rest, overrides = split_flags(argv)
    assert rest == ["--config=F", "--workdir=W"]
    assert overrides == {"train.steps": "3", "log.samples": "('a',)", "a": "b=c"}
    with pytest.raises(UserError, match="--config.train.steps needs a value"):
        split_flags(["--config.train.steps"])


def test_every_config_of_the_repository_is_a_run():
    files = sorted((ROOT / "configs").glob("*.py"))
    assert files
    for path in files:
        run = load(str(path))
        assert json.loads(resolve.to_json(run)) and path.read_text().startswith('"""')


def test_config_imports_no_jax():
    code = "import sys, lm.config; sys.exit(bool({'jax', 'flax', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_a_flag_can_say_none_where_that_is_a_word(tmp_path):
    """`remat=none` is a policy; elsewhere the word is None."""
    file = tmp_path / "run.json"
    file.write_text(json.dumps(to_dict(made())))
    run = load(str(file), {"model.decoder.remat": "none", "evaluate.every": "none"})
    assert run.model.decoder.remat == "none" and run.evaluate.every is None


def test_a_list_that_may_be_none_comes_back_from_json():
    run = config.Run(recipe=config.Finetune(classes=("bad", "good")))
    assert resolve.from_json(resolve.to_json(run)) == run
    with pytest.raises(UserError, match=r"config.recipe.classes\[1\] is 2; it must be str"):
        resolve.build(config.Run, {"recipe": {"kind": "finetune", "classes": ["bad", 2]}})
    with pytest.raises(UserError, match="config.recipe.classes is 'bad'; it must be"):
        resolve.build(config.Run, {"recipe": {"kind": "finetune", "classes": "bad"}})
