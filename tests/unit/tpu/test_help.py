"""`python -m tpu ACTION --help` shows what the action takes, and nothing else."""

import argparse
import re

import pytest

from tpu.__main__ import ACTIONS, TAKEN, main, parser


def shown(capsys, *words):
    with pytest.raises(SystemExit) as end:
        main([*words, "--help"])
    assert end.value.code in (0, None)
    text = capsys.readouterr().out
    return text, set(re.findall(r"^  (?:-h, )?--([a-z_.A-Z]+)", text, re.M)) - {"help", "version", "dry_run"}


@pytest.mark.parametrize("action", ACTIONS)
def test_the_help_of_an_action(action, capsys):
    text, flags = shown(capsys, action)
    assert f"\n{action} " in text and "All actions: python -m tpu --help" in text
    expected = {name for name, actions in TAKEN.items() if action in actions.split()}
    assert flags == expected | ({"config.KEY"} if "config" in expected else set())
    assert max(map(len, text.splitlines())) <= 80


def test_the_help_of_all_actions_names_every_flag(capsys):
    text, flags = shown(capsys)
    assert flags == {*TAKEN, "config.KEY"} and all(f"\n  {action} " in text for action in ACTIONS)


def test_the_table_names_flags_and_actions_that_are_there():
    known = {action.dest for action in parser()._actions}
    assert set(TAKEN) <= known and {a for actions in TAKEN.values() for a in actions.split()} == set(ACTIONS)
    assert all(action.help not in (None, "", argparse.SUPPRESS) for action in parser()._actions)
