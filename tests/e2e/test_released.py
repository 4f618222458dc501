"""What each released version saved opens, gives its logits and text, and trains on to where that version went."""

import json
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest

from tests.released import make

ROOT = Path(__file__).parents[2]
FOLDERS = sorted(path.parent for path in make.HOME.glob("*/expected.json"))
CLOSE = dict(rtol=1e-4, atol=2e-5)  # other versions of jax add up in another order


@pytest.mark.parametrize("home", FOLDERS, ids=lambda home: home.name)
def test_a_released_version_s_models_open_and_its_run_goes_on(home, tmp_path):
    expected = json.loads((home / "expected.json").read_text(encoding="utf-8"))
    with tarfile.open(home / "saved.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    for name in ("run", "model"):
        np.testing.assert_allclose(make.logits(tmp_path / name), expected["logits"], **CLOSE, err_msg=name)
    assert make.text(home, tmp_path / "run") == expected["text"]

    make.train(home, tmp_path / "run", tmp_path / "cache", steps=4)
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [3, 4]  # it went on; from the beginning it would log 1 and 2
    assert np.abs(np.subtract(expected["resumed"], expected["logits"])).max() > 0.01
    np.testing.assert_allclose(make.logits(tmp_path / "run"), expected["resumed"], **CLOSE)
    assert make.loss(tmp_path / "run") == pytest.approx(expected["loss"], rel=1e-5)


def test_each_release_in_the_changelog_has_a_folder():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    released = re.findall(r"^## \[(\d+\.\d+\.\d+)\] - \d{4}-\d{2}-\d{2}$", text, re.M)
    named = re.findall(r"^## \[(\d+\.\d+\.\d+)\]", text, re.M)
    assert {*released} <= {home.name for home in FOLDERS} <= {*named}
