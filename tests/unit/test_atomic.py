"""A file is the old one or the new one, in the order that was given."""

import json

import numpy as np
import pytest

from lm import atomic
from lm.train.rundir import RunDir


def test_a_write_that_is_cut_short_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    atomic.write_json(path, {"a": 1})

    def killed(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(atomic.os, "fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        atomic.write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1}


def test_a_run_keeps_the_order_of_its_sources(tmp_path):
    """It decides the rows: config.json, given to `--config`, is the same run."""
    rundir = RunDir(tmp_path)
    rundir.write_json("config.json", {"sources": {"web": 1, "books": 2}})
    rundir.close()
    assert list(json.loads((tmp_path / "config.json").read_text())["sources"]) == ["web", "books"]


def test_what_is_no_number_is_written_as_text(tmp_path):
    """Python would write NaN, which is not JSON."""
    value = {"loss": float("nan"), "of": [float("inf"), 1.5, (np.float64("-inf"), None)], 2: {"flag": True, "n": 3}}
    atomic.write_json(tmp_path / "x.json", value)
    read = json.loads((tmp_path / "x.json").read_text(), parse_constant=pytest.fail)
    assert read == {"loss": "nan", "of": ["inf", 1.5, ["-inf", None]], "2": {"flag": True, "n": 3}}
