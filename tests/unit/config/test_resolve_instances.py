"""Our own dataclasses in a config are checked and kept like the dicts that they stand for."""

import dataclasses
from pathlib import Path

import pytest

from lm import config
from lm.config import resolve
from lm.errors import UserError

HEAD = """
import ml_collections
from lm import config
from lm.config import resolve
BLOCK = config.Block(config.Attention(2), config.Mlp(8))
MODEL = config.Model(32, 8, decoder=config.Stack(1, {"L": BLOCK}))
"""


def file(folder: Path, body: str) -> str:
    path = folder / "mine.py"
    path.write_text(f"{HEAD}\ndef get_config():\n    return {body}\n")
    return str(path)


@pytest.fixture
def tree(tmp_path: Path) -> dict:
    path = file(tmp_path, "{'model': MODEL}")
    return resolve.to_dict(resolve.load(path))


@pytest.mark.parametrize("wrapped", ["{}", "ml_collections.ConfigDict({})"])
def test_the_class_of_an_objective_is_kept(tmp_path: Path, wrapped: str) -> None:
    path = file(tmp_path, wrapped.replace("{}", "{'model': MODEL, 'objective': config.Prefix()}"))
    assert resolve.load(path).objective == config.Prefix()


@pytest.mark.parametrize("wrapped", ["{}", "ml_collections.ConfigDict({})"])
def test_an_instance_is_held_against_the_ranges(tmp_path: Path, wrapped: str) -> None:
    path = file(tmp_path, wrapped.replace("{}", "{'model': MODEL, 'optimizer': config.Optimizer(b2=1.0)}"))
    with pytest.raises(UserError, match=r"config\.optimizer\.b2=1\.0 is too large"):
        resolve.load(path)


def test_build_checks_instances(tree: dict) -> None:
    with pytest.raises(UserError, match=r"config\.train\.steps=-5 is too small"):
        resolve.build(config.Run, tree | {"train": config.Train(steps=-5)})
    assert resolve.build(config.Run, tree | {"train": config.Train(steps=5)}).train == config.Train(steps=5)
    run = resolve.build(config.Run, tree)
    assert resolve.build(config.Run, run) == run
    with pytest.raises(UserError, match="steps=-5"):
        resolve.build(config.Run, dataclasses.replace(run, train=config.Train(steps=-5)))


def test_an_override_changes_a_field_of_an_instance(tmp_path: Path) -> None:
    path = file(tmp_path, "{'model': MODEL, 'train': config.Train(seed=3), 'objective': config.Masked(rate=0.3)}")
    run = resolve.load(path, {"train.steps": "7", "objective.mask": "0.5"})
    assert run.train == config.Train(seed=3, steps=7)
    assert run.objective == config.Masked(rate=0.3, mask=0.5)
