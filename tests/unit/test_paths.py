"""Files go to exactly the folder that was given, or it is refused before anything is written."""

import os

import numpy as np
import orbax.checkpoint as ocp
import pytest

from lm import config, paths
from lm.data.corpus import files
from lm.errors import UserError
from lm.training.rundir import RunDir


def test_accepted_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert paths.local("runs/a", name="--workdir") == tmp_path / "runs/a"
    assert paths.local("~/a", name="--workdir") == tmp_path / "home/a"
    for plain in ("a b", "a%41", "a#b", "a?b", "é", "日本", "a\nb", "a:b", "12"):
        assert paths.local(plain, name="--workdir") == tmp_path / plain


def test_the_cache_lies_where_xdg_has_it(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for ignored in ("", "relative"):  # a relative one is to be ignored, says the specification
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        assert paths.expanded("~/.cache/lm") == tmp_path / "home/.cache/lm"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "fast"))
    assert paths.local("~/.cache/lm", name="data.cache") == tmp_path / "fast/lm"
    assert paths.expanded("~/.cache") == tmp_path / "fast" and paths.expanded("~/.cached") == tmp_path / "home/.cached"
    (tmp_path / "fast/lm").mkdir(parents=True)
    (tmp_path / "fast/lm/a.txt").write_text("one", encoding="utf-8")
    assert [f.path for f in files.find(config.Source("text", "~/.cache/lm/*.txt")).files] == [tmp_path / "fast/lm/a.txt"]


@pytest.mark.parametrize(
    ("given", "cause"),
    [
        ("", "--workdir is empty; give a folder"),
        ("  ", "--workdir is empty"),
        ("a\\b/r", r"changes '\\\\' in .*; give a folder without it"),
        ("x/gs:/r", "changes ':/' in"),
        (os.fsdecode(b"a\xff/r"), "not UTF-8; rename it"),
        ("a\0b", "is not a path"),
        ("~nobody-has-this-name/r", "home directory.*absolute path"),
    ],
)
def test_paths_refused_before_anything_is_written(tmp_path, monkeypatch, given, cause):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=cause):
        RunDir(given)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("given", ["gs://b/run", "s3://b/run", "https://h/run"])
def test_a_url_is_named_as_such(given):
    with pytest.raises(UserError, match=f"^--from={given} is a URL, and a local folder is needed; copy it"):
        paths.local(given, name="--from")
    with pytest.raises(UserError, match=f"^the target .{given}. is a URL"):
        paths.local(given, name="the target")


def test_without_a_home_directory(monkeypatch, tmp_path):
    """As in a container whose user has no entry in /etc/passwd."""

    def nobody(*_):
        raise KeyError("uid not found")

    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", nobody)
    with pytest.raises(UserError, match="^the local copy of the bucket .~/.cache/lm/runs.: .*home directory.*set HOME"):
        RunDir("gs://bucket/run")
    with pytest.raises(UserError, match="^--workdir=~/run: .*home directory.*set HOME"):
        RunDir("~/run")
    RunDir(tmp_path / "run").close()


def test_a_link_to_a_folder_that_is_refused(tmp_path):
    (tmp_path / "a\\b").mkdir()
    (tmp_path / "plain").symlink_to(tmp_path / "a\\b")
    with pytest.raises(UserError, match="without it"):
        paths.local(tmp_path / "plain" / "r", name="--workdir")


def test_orbax_writes_to_all_other_paths_unchanged(tmp_path):
    """If a later version rewrites another character, this fails; add it to `REWRITTEN`."""
    name = "".join(map(chr, range(1, 127))).replace("/", "").replace("\\", "") + "é日%41"
    target = paths.local(tmp_path / name, name="--workdir") / "state"
    with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
        checkpointer.save(target, args=ocp.args.StandardSave({"w": np.arange(4.0)}))
    assert os.listdir(target / "d") and [p.name for p in tmp_path.iterdir()] == [name]
