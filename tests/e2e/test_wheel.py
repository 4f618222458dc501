"""A wheel and a source distribution as a release makes them, their versions, and the front door in an empty folder."""

import io
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("build")
pytest.importorskip("setuptools_scm")
ROOT = Path(__file__).parents[2]
FILES = ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "lm", "configs", ".gitattributes")
FILES += (".git_archival.txt",)
PRUNED = (".ci", "docs", "experiments", "notebooks", "tests", "tpu")  # not in a source distribution


def done(folder, *words, **env):
    ran = subprocess.run(words, cwd=folder, env=os.environ | env, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def git(folder, *words):
    return done(folder, "git", "-c", "user.name=a", "-c", "user.email=a@b.c", *words)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A checkout of a commit with the tag v1.2.3."""
    source = tmp_path_factory.mktemp("source")
    for name in FILES:
        path, ignored = ROOT / name, shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(path, source / name, ignore=ignored) if path.is_dir() else shutil.copy(path, source)
    for name in PRUNED:
        (source / name).mkdir()
        (source / name / "of_a_checkout.py").touch()
    git(source, "init", "-q")
    git(source, "add", "-A")
    git(source, "commit", "-q", "-m", "all")
    git(source, "tag", "v1.2.3")
    return source


@pytest.fixture(scope="module")
def installed(source, tmp_path_factory):
    """The folder that a wheel is unpacked to, which is made of a source distribution."""
    made, target = (tmp_path_factory.mktemp(name) for name in ("made", "installed"))
    # The build's own isolation would fetch packages: what it needs is here.
    done(source, sys.executable, "-m", "build", "-q", "--no-isolation", "--outdir", made)
    assert {path.name for path in made.iterdir()} == {"lm-1.2.3.tar.gz", "lm-1.2.3-py3-none-any.whl"}
    with tarfile.open(made / "lm-1.2.3.tar.gz") as archive:
        parts = {name.partition("/")[2] for name in archive.getnames()}
    assert "configs/quickstart.py" in parts and not [name for name in parts if name.partition("/")[0] in PRUNED]
    with zipfile.ZipFile(made / "lm-1.2.3-py3-none-any.whl") as archive:
        archive.extractall(target)
    return target


def test_what_a_wheel_has(installed, tmp_path):
    named = {str(path.relative_to(installed)) for path in installed.rglob("*") if path.is_file()}
    assert {"lm_harness.pth", "lm/serving/page.html", "lm/configs/quickstart.py", "lm/configs/life/sft.py"} <= named
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "lm").rglob("*.py")}
    assert modules <= named and {name.split("/")[0] for name in named if name.endswith(".py")} == {"lm"}
    for command in (("lm", "--version"), ("lm.train", "--version")):
        assert done(tmp_path, sys.executable, "-m", *command, PYTHONPATH=str(installed)) == "lm 1.2.3\n"
    assert "lm = lm.__main__:main" in next(installed.glob("*.dist-info/entry_points.txt")).read_text(encoding="utf-8")


def test_it_trains_in_an_empty_folder(installed, tmp_path):
    flags = ["--config=quickstart", "--dry_run"]
    out = done(tmp_path, sys.executable, "-m", "lm", "train", *flags, PYTHONPATH=str(installed))
    assert "721,792  parameters" in out and list(tmp_path.iterdir()) == []


def version_of(folder):
    return done(folder, sys.executable, "-m", "setuptools_scm").strip()


def test_versions_with_and_without_git_and_tags(source, tmp_path):
    bare, shallow, plain = (tmp_path / name for name in ("bare", "shallow", "plain"))
    git(tmp_path, "clone", "-q", "--no-tags", "--single-branch", f"file://{source}", bare)
    git(tmp_path, "clone", "-q", "--no-tags", "--depth=1", f"file://{source}", shallow)
    assert version_of(source) == "1.2.3"
    assert version_of(bare).startswith("0.1.dev1+g") and version_of(shallow).startswith("0.1.dev1+g")
    git(bare, "commit", "-q", "--allow-empty", "-m", "more")
    git(bare, "tag", "v1.2.4")
    git(bare, "commit", "-q", "--allow-empty", "-m", "more")
    assert version_of(bare).startswith("1.2.5.dev1+g")
    with tarfile.open(fileobj=io.BytesIO(archived(source))) as archive:
        archive.extractall(plain, filter="data")
    assert version_of(plain) == "1.2.3"  # from what git puts into .git_archival.txt
    (plain / ".git_archival.txt").unlink()
    assert version_of(plain) == "0.0"


def archived(folder):
    return subprocess.run(["git", "archive", "v1.2.3"], cwd=folder, capture_output=True, check=True).stdout
