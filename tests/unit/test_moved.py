"""Keys of earlier versions: files and flags that people write get the new name, what a version saved is read as it is."""

import json

import pytest

from lm import config, moved
from lm.config import resolve
from lm.config.resolve import build, build_saved, field_hints
from lm.errors import UserError
from tests.unit.config.common import MODEL

CONFIG = "def get_config():\n    return dict(recipe=dict(kind='finetune', {}))\n"


@pytest.mark.parametrize("old", moved.KEYS)
def test_the_old_key_is_gone_and_the_new_one_is_there(old):
    section, field = old.split(".")
    cls = getattr(config, section)
    assert field not in field_hints(cls)
    new = moved.KEYS[old].split(".")
    hint = config.Run if len(new) > 1 else cls
    for name in new:
        hint = field_hints(resolve.dataclasses_of(hint)[0])[name]


@pytest.mark.parametrize("flags", [{}, {"recipe.steps": "7"}], ids=["file", "flag"])
def test_an_old_key_in_a_file_or_a_flag_is_told_its_new_name(tmp_path, flags):
    path = tmp_path / "made.py"
    path.write_text(CONFIG.format("" if flags else "steps=7"), encoding="utf-8")
    with pytest.raises(UserError, match=r"^config\.recipe\.steps is config\.train\.steps now: give that$"):
        resolve.load(str(path), flags)


def test_a_saved_run_with_old_keys_is_read(tmp_path, monkeypatch):
    monkeypatch.setitem(moved.KEYS, "Attention.heads", "num_heads")
    tree = json.loads(resolve.to_json(config.Run(model=MODEL, train=config.Train(steps=7))))
    attention = tree["model"]["decoder"]["blocks"]["L"]["attention"]
    attention["heads"] = attention.pop("num_heads")
    tree["recipe"] = {"kind": "finetune", "steps": tree["train"].pop("steps")}
    before = json.dumps(tree)
    run = build_saved(config.Run, tree)
    assert run.model == MODEL and run.train.steps == 7 and json.dumps(tree) == before
    path = tmp_path / "config.json"
    path.write_text(before, encoding="utf-8")
    assert resolve.load(str(path)) == run == resolve.from_json(before)
    with pytest.raises(UserError, match=r"^config\.model\.decoder\.blocks\.L\.attention\.heads is config\..*\.num_heads now"):
        build(config.Run, {"model": tree["model"]})


def test_a_key_that_no_version_had_is_refused_in_what_is_saved():
    with pytest.raises(UserError, match="unknown key config.kernels; did you mean 'kernel'"):
        build_saved(config.Model, resolve.to_dict(MODEL) | {"kernels": "plain"})
