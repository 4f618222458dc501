"""`lm VERB` runs `python -m lm.VERB`, and the shell completes it."""

import json
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

import lm
from lm import __main__ as entry
from lm import cli, config
from lm.completion import candidates
from lm.config import resolve


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("lm tr", ["train ", "transcribe "]),
        ("lm train --work", ["--workdir="]),
        ("lm train --dry", ["--dry_run "]),
        ("lm train --config.trai", ["--config.train."]),
        ("lm train --config.train.step", ["--config.train.steps="]),
        ("lm train --dry_run --config.optimizer.name=adam", ["--config.optimizer.name=adamw "]),
        ("lm train --config.data.sources.mine.pat", ["--config.data.sources.mine.path="]),  # whatever a source is called
        ("lm train --config.model.decoder.final_norm=F", ["--config.model.decoder.final_norm=False "]),
        ("lm convert to_h", ["to_hf "]),
        ("lm convert to_hf --shar", ["--shard_gb="]),
        ("lm completion z", ["zsh "]),
        ("lm chat --config.train.st", []),  # takes no config
        ("lm nothing --x", []),
        ('lm generate "a b', []),
    ],
)
def test_candidates(line, found):
    assert candidates(line) == found


def test_every_verb_is_offered_and_every_first_key():
    assert candidates("lm ") == candidates("lm") == sorted(f"{verb} " for verb in entry.VERBS)
    keys = {word.removeprefix("--config.").rstrip(".=") for word in candidates("lm train --config.") if not word.endswith(" ")}
    assert keys == {field.name for field in fields(config.Run)}


def bash(tmp_path, line):
    """What bash completes, with a command `lm` on the path."""
    (tmp_path / "lm").write_text(f'#!/bin/sh\nexec {sys.executable} -m lm "$@"\n', encoding="utf-8")
    (tmp_path / "lm").chmod(0o755)
    script = 'eval "$(lm completion bash)"; COMP_LINE=$1 COMP_POINT=${#1}; _lm; printf "%s|" "${COMPREPLY[@]}"'
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(Path(lm.__file__).parents[1])}
    return subprocess.run(["bash", "-c", script, "bash", line], env=env, capture_output=True, text=True, check=True).stdout


def test_bash_gets_what_follows_the_equals_sign(tmp_path):
    assert bash(tmp_path, "lm train --config.optimizer.name=adam") == "adamw |"


def ended(capsys, *words):
    with pytest.raises(SystemExit) as end:
        entry.main(list(words))
    return (end.value.code or 0, *capsys.readouterr())


@pytest.fixture
def here(monkeypatch):
    """`cli.enter` ends this process in pytest's way."""
    monkeypatch.setattr(cli, "enter", lambda main, hosts=False: sys.exit(main()))
    monkeypatch.setattr(sys, "argv", ["lm"])


def test_verbs(here, capsys):
    code, out, _ = ended(capsys, "train", "--help")
    assert code == 0 and out.startswith("usage: python -m lm.train ")
    assert ended(capsys, "trian") == (2, "", "error: lm has no verb 'trian'; did you mean 'train'?\n")
    assert ended(capsys, "completion", "bsh")[2].startswith("error: no shell 'bsh'; did you mean 'bash'?")
    for words in ([], ["--help"]):
        entry.main(words)
        out = capsys.readouterr().out
        assert all(f"\n  {verb} " in out for verb in entry.VERBS) and max(map(len, out.splitlines())) <= 80


def test_the_verbs_are_the_commands():
    root = Path(lm.__file__).parent
    commands = {path.stem for path in root.glob("*.py") if "cli.enter(main" in path.read_text(encoding="utf-8")}
    assert commands - {"cli"} == {*entry.VERBS} - {"completion"}


def test_configs_are_found_by_name_in_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("quickstart", "configs/quickstart.py", "life/reward"):
        assert resolve.load(name).train.steps > 1
    tree = resolve.to_dict(resolve.load("quickstart"))
    tree["train"]["seed"] = 7
    (tmp_path / "quickstart").mkdir()  # a run, which may have the name of its config
    assert resolve.load("quickstart") == resolve.load("configs/quickstart.py")
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/quickstart.json").write_text(json.dumps(tree), encoding="utf-8")
    assert resolve.load("configs/quickstart.json").train.seed == 7
