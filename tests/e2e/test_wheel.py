"""A wheel, made from the source distribution as `python -m build` makes it, runs the front door from an empty folder."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("setuptools", minversion="69")
ROOT = Path(__file__).parents[2]
FILES = ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "lm", "configs")


def done(folder, *words, **env):
    ran = subprocess.run(words, cwd=folder, env=os.environ | env, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The folder that a wheel is unpacked to."""
    source, made, target = (tmp_path_factory.mktemp(name) for name in ("source", "made", "installed"))
    for name in FILES:
        path, ignored = ROOT / name, shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(path, source / name, ignore=ignored) if path.is_dir() else shutil.copy(path, source)
    done(source, sys.executable, "setup.py", "-q", "sdist", "--dist-dir", made)
    with tarfile.open(next(made.glob("*.tar.gz"))) as archive:
        archive.extractall(made, filter="data")
    unpacked = next(path for path in made.iterdir() if path.is_dir())
    done(unpacked, sys.executable, "setup.py", "-q", "bdist_wheel", "--dist-dir", made)
    with zipfile.ZipFile(next(made.glob("*.whl"))) as archive:
        archive.extractall(target)
    return target


def test_what_a_wheel_has(installed):
    named = {str(path.relative_to(installed)) for path in installed.rglob("*") if path.is_file()}
    assert {"lm_harness.pth", "lm/serving/page.html", "lm/configs/quickstart.py", "lm/configs/life/sft.py"} <= named
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "lm").rglob("*.py")}
    assert modules <= named and {name.split("/")[0] for name in named if name.endswith(".py")} == {"lm"}
    assert "lm = lm.__main__:main" in next(installed.glob("*.dist-info/entry_points.txt")).read_text(encoding="utf-8")


def test_it_trains_in_an_empty_folder(installed, tmp_path):
    flags = ["--config=quickstart", "--dry_run"]
    out = done(tmp_path, sys.executable, "-m", "lm", "train", *flags, PYTHONPATH=str(installed))
    assert "721,792  parameters" in out and list(tmp_path.iterdir()) == []
