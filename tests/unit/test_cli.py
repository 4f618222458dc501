"""The flags of every command: --help, mistakes in one line, old spellings."""

import argparse
import importlib
import os
import re
import subprocess
import sys

import pytest

import lm
from lm import cli, moved
from lm.config.ranges import Count
from lm.errors import UserError

COMMANDS = {  # module -> words that its parser takes
    "lm.train": ["--config=F", "--workdir=D"],
    "lm.prepare": ["--config=F"],
    "lm.evaluate": ["--from=D"],
    "lm.generate": ["--from=D", "a"],
    "lm.embed": ["--from=D", "a"],
    "lm.latent": ["reconstruct", "--from=D", "a"],
    "lm.score": ["--from=D", "a"],
    "lm.predict": ["--from=D", "a"],
    "lm.transcribe": ["--from=D", "a.wav"],
    "lm.serve": ["--from=D"],
    "lm.ask": ["--from=D", "--file=F", "--summary"],
    "lm.chat": ["--from=D"],
    "lm.convert": ["families"],
    "lm.report": ["D"],
    "lm.show": ["--config=F"],
    "experiments.run": ["scaling"],
    "experiments.report": ["D"],
    "experiments.code.run": ["--from=D"],
    "experiments.families.run": [],
    "experiments.maxtext.run": ["--work=D"],
    "experiments.objectives.run": [],
    "experiments.page": [],
    "experiments.quickstart.run": [],
    "experiments.speed.generate": [],
    "experiments.speed.growth": [],
    "experiments.speed.prepare": [],
    "experiments.speed.run": [],
    "experiments.serve.load": ["--from=D"],
    "experiments.sweep": ["--config=F"],
    "experiments.width.coordinates": [],
    "experiments.workers": ["D"],
    "tpu": ["create", "pod"],
    "tpu.compile": ["--config=F"],
    "tpu.cost": ["--config=F"],
    "tpu.table": [],
}


def module_of(name):
    """The module that `python -m name` executes."""
    return importlib.import_module(f"{name}.__main__" if name in ("tpu", "experiments.sweep") else name)


def main_of(name):
    return module_of(name).main


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_80_columns_examples_and_exit_codes(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as ended:
        main_of(name)(["--help"])
    text = capsys.readouterr().out
    assert ended.value.code == 0
    assert [line for line in text.splitlines() if len(line) > 80] == []
    usage, _, rest = text.partition("\n\n")
    assert usage.startswith(f"usage: python -m {name} ") and f"python -m {name} " in rest.replace("\n", " \n")
    codes = re.search(r"^exit codes:\n((?:  .*\n)+)", text, re.M)
    assert codes and {"0", "2", "75", "130"} <= {line.split()[0] for line in codes[1].splitlines()}


def test_commands_know_what_is_asked_before_they_import_what_takes_long():
    """A flag that is wrong, or --help, waits for none of it."""
    names = ["tpu.__main__" if name == "tpu" else name for name in COMMANDS if name != "experiments.families.run"]
    code = (
        "import importlib, sys\n"
        "slow = 'jax flax optax orbax numpy sentencepiece matplotlib pandas pyarrow tensorflow_datasets'.split()\n"
        f"for name in {names}:\n"
        "    importlib.import_module(name)\n"
        "    known = [each for each in slow if each in sys.modules]\n"
        "    assert known in ([], [] if name.startswith('lm.') else ['numpy']), (name, known)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_an_unknown_flag_is_one_line_with_the_nearest_name(name, capsys):
    assert main_of(name)([*COMMANDS[name], "--versoin=3"]) == 2
    assert capsys.readouterr().err == "error: unknown flag --versoin; did you mean '--version'?\n"


def arguments(parser):
    for action in parser._actions:
        yield action
        for below in action.choices.values() if isinstance(action, argparse._SubParsersAction) else ():
            yield from arguments(below)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_argument_has_a_text(name):
    module = module_of(name)
    if hasattr(module, "parser"):  # others make it as they parse
        bare = [a.option_strings or a.dest for a in arguments(module.parser()) if not a.help]
        assert bare in ([], ["command"])  # the actions of a command have a text each


@pytest.mark.parametrize("name", COMMANDS)
def test_version(name, capsys):
    with pytest.raises(SystemExit):
        main_of(name)(["--version"])
    assert capsys.readouterr().out == f"lm {lm.__version__}\n"


def parser():
    p = cli.parser("lm.example", "An example.", config=True)
    p.renamed = {"--source": "--from"}
    p.add_argument("--from")
    p.add_argument("--rows", hint=Count, default=8, help="how many")
    p.add_argument("--share", type=float)
    p.add_argument("--kind", choices=["suffix", "infill"])
    p.add_argument("--all", action="store_true")
    p.add_argument("name", nargs="?")
    return p


def test_flags_and_overrides():
    flags = parser().parse(["--config=F", "--config.train.steps=5", "--config.a", "b", "--rows", "3", "x"])
    assert (flags.config, flags.overrides, flags.rows, flags.name) == ("F", {"train.steps": "5", "a": "b"}, 3, "x")
    assert parser().parse(["--config=F"]).rows == 8


@pytest.mark.parametrize(
    ("words", "cause"),
    [
        (["--rows=3"], "--config is missing; python -m lm.example --help has examples"),
        (["--confg=F"], "unknown flag --confg; did you mean '--config'?"),
        (["--conf=F"], "unknown flag --conf; did you mean '--config'?"),
        (["--config=F", "--rows"], "--rows needs a value: --rows=..."),
        (["--config=F", "--rows=0"], "--rows=0 is too small: give "),
        (["--config=F", "--rows=many"], "--rows is 'many'; it must be int"),
        (["--config=F", "--rows=1.5"], "--rows is 1.5; it must be int"),
        (["--config=F", "--share=x"], "--share='x' is not a number; give another"),
        (["--config=F", "--kind=sufix"], "--kind 'sufix' is not known; did you mean 'suffix'?"),
        (["--config=F", "--all=yes"], "--all takes no value; leave out 'yes'"),
        (["--config=F", "a", "b"], "unexpected 'b'; python -m lm.example --help lists the arguments"),
        (["--config=F", "--config.train.steps"], "--config.train.steps needs a value: --config.train.steps=..."),
        (["--config=F", "--source=D"], "--source is --from now: give --from=D"),
    ],
)
def test_mistakes(words, cause):
    with pytest.raises(UserError) as error:
        parser().parse(words)
    assert str(error.value).startswith(cause)


def test_the_old_flag_of_evaluate_names_the_new_one(capsys):
    assert main_of("lm.evaluate")(["--workdir=runs/quickstart"]) == 2
    assert capsys.readouterr().err == "error: --workdir is --from now: give --from=runs/quickstart\n"


def test_overrides_without_a_config_are_refused(capsys):
    assert main_of("lm.evaluate")(["--from=D", "--config.data.holdout=0.1"]) == 2
    assert "error: --config.data.holdout changes a --config, and none is given" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------------ old names


@pytest.mark.parametrize("name", moved.COMMANDS)
def test_commands_by_their_old_names(name):
    done = subprocess.run([sys.executable, "-m", name, "--config=F"], capture_output=True, text=True, env=os.environ)
    assert done.returncode == 2, done.stderr
    assert done.stderr == f"error: python -m {name} is another command now: {moved.COMMANDS[name]}\n"


@pytest.mark.parametrize("name", moved.MODULES)
def test_modules_by_their_old_names(name):
    package, _, module = name.rpartition(".")
    for statement in (f"import {name}", f"from {package} import {module}", f"from {name} import x"):
        with pytest.raises(ImportError, match=f"^{re.escape(name)} is {re.escape(moved.MODULES[name])} now: import that$"):
            exec(statement)
    for new in moved.MODULES[name].split(" and "):
        importlib.import_module(new)


def test_a_config_file_that_imports_an_old_name(tmp_path):
    file = tmp_path / "old.py"
    file.write_text("from lm import resolve\ndef get_config(): return {}\n")
    with pytest.raises(UserError, match="old.py failed: ImportError: lm.resolve is lm.config.resolve now: import that"):
        cli.load(parser().parse([f"--config={file}"]))


def test_a_submodule_of_a_package_that_was_renamed():
    with pytest.raises(ImportError, match="^lm.generate.rank is lm.generation.rank now: import that$"):
        importlib.import_module("lm.generate.rank")


def test_unknown_submodules_of_commands_are_still_unknown():
    with pytest.raises(ModuleNotFoundError, match="No module named 'lm.train.nothing'"):
        importlib.import_module("lm.train.nothing")


def test_names_that_never_were_are_still_unknown():
    with pytest.raises(ModuleNotFoundError, match="No module named 'lm.nothing'"):
        importlib.import_module("lm.nothing")


@pytest.mark.parametrize("name", [name for name, words in COMMANDS.items() if name.startswith("lm.") and "--from=D" in words])
def test_what_is_loaded_is_said_before_jax_is_imported(name, monkeypatch, tmp_path, capsys):
    """At a terminal, whose screen would stay blank while a model is loaded and compiled; a server says it to its log too."""
    (tmp_path / "F").write_text("a text", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli.startup, "before_jax", lambda: sys.exit(capsys.readouterr().err))
    words = {"lm.score": ["--from=D", "F"], "lm.embed": ["--from=D", "a", "b"]}.get(name, COMMANDS[name])
    for terminal in (True, False):
        monkeypatch.setattr(sys.stderr, "isatty", lambda terminal=terminal: terminal)
        with pytest.raises(SystemExit) as ended:
            module_of(name).main(words)
        expected = "loading D\n" if name == "lm.serve" else "loading D, then compiling\n" if terminal else ""
        assert ended.value.code == expected
