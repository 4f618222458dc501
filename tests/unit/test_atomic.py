"""Writes are atomic, keep the order of keys, and write strict JSON; what is put aside overwrites nothing."""

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest

from lm import atomic, config
from lm.checkpoint import Checkpoints
from lm.errors import UserError
from lm.training.rundir import RunDir


def test_a_write_that_is_cut_short_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    atomic.write_json(path, {"a": 1})

    def killed(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(atomic.os, "fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        atomic.write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_temporary_files_of_killed_processes_are_removed(tmp_path):
    for name in ("summary.json", "metrics.jsonl"):
        (tmp_path / f"{name}.123.tmp").write_text("{")
    (tmp_path / "notes.tmp").write_text("of the user")
    (tmp_path / "summary.json.7.tmp").mkdir()
    RunDir(tmp_path).close()
    assert {p.name for p in tmp_path.iterdir()} == {".lock", "notes.tmp", "summary.json.7.tmp"}


def test_a_run_keeps_the_order_of_its_sources(tmp_path):
    """The order decides the rows, so that config.json given to `--config` is the same run."""
    rundir = RunDir(tmp_path)
    rundir.write_json("config.json", {"sources": {"web": 1, "books": 2}})
    rundir.close()
    assert list(json.loads((tmp_path / "config.json").read_text())["sources"]) == ["web", "books"]


def test_numbers_that_json_lacks_are_written_as_strings(tmp_path):
    """Python would write NaN, which is not JSON."""
    value = {"loss": float("nan"), "of": [float("inf"), 1.5, (np.float64("-inf"), None)], 2: {"flag": True, "n": 3}}
    atomic.write_json(tmp_path / "x.json", value)
    read = json.loads((tmp_path / "x.json").read_text(), parse_constant=pytest.fail)
    assert read == {"loss": "nan", "of": ["inf", 1.5, ["-inf", None]], "2": {"flag": True, "n": 3}}


# ---------------------------------------------------------------------------------------------------------- put aside


class InBucket(type(Path())):
    """A bucket: folders are only parts of names, so `mkdir` does nothing and writing a file creates its parents."""

    def mkdir(self, *args, **kwargs):
        pass

    def write_bytes(self, data):
        os.makedirs(self.parent, exist_ok=True)
        return super().write_bytes(data)


def test_putting_aside_in_a_bucket(tmp_path):
    for step in (3, 4):
        (InBucket(tmp_path) / f"checkpoints/{step}/state").write_bytes(b"x")
        target = atomic.put_aside(InBucket(tmp_path) / f"checkpoints/{step}", InBucket(tmp_path) / "damaged")
        assert (target / "state").read_bytes() == b"x" and target == tmp_path / f"damaged/{step}"


@pytest.fixture
def other_disk(tmp_path, monkeypatch):
    """A folder that no file can be renamed into or out of."""
    other, rename = tmp_path / "other", os.rename
    other.mkdir()

    def within(source, target):
        def there(p):
            return os.path.realpath(os.path.dirname(p)).startswith(f"{other}")

        if there(source) != there(target):
            raise OSError(errno.EXDEV, "Invalid cross-device link", str(source))
        rename(source, target)

    monkeypatch.setattr(os, "rename", within)
    return other


def test_checkpoints_on_another_disk_are_put_aside_there(tmp_path, other_disk):
    run = tmp_path / "run"
    run.mkdir()
    (run / "checkpoints").symlink_to(other_disk)
    (other_disk / "7").write_bytes(b"a file in place of a step")
    with pytest.warns(UserWarning, match="checkpoints/7 is damaged; moved to .*checkpoints/damaged/7; the run continues"):
        found = Checkpoints(run, config.Checkpoint(), config.Run(config.Model(8, 8)), b"tokenizer")
    assert found.latest_intact() is None and found.steps() == []
    found.close()
    assert (other_disk / "damaged/7").read_bytes() == b"a file in place of a step"


def test_a_folder_of_damaged_files_that_is_on_another_disk(tmp_path, other_disk):
    (tmp_path / "damaged").symlink_to(other_disk)
    (tmp_path / "x").mkdir()
    (tmp_path / "x/y").write_text("y")
    assert atomic.put_aside(tmp_path / "x", tmp_path / "damaged") == tmp_path / "damaged/x"
    assert (other_disk / "x/y").read_text() == "y" and not (tmp_path / "x").exists()


def test_a_folder_that_is_not_finished_leaves_none_above_it(tmp_path):
    with pytest.raises(UserError, match="no such model"), atomic.new_folder(tmp_path / "a" / "b" / "c"):
        raise UserError("no such model")
    assert not any(tmp_path.iterdir())
    with pytest.raises(UserError, match="no such model"), atomic.new_folder(tmp_path / "a" / "b"):
        (tmp_path / "a" / "other").mkdir()
        raise UserError("no such model")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["other"]
