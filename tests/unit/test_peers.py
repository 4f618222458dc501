"""The table of docs/peers.md: every cell is filled, a peer's has its source, and what ours link to or name exists."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/peers.md"
PEERS = ["nanochat", "Levanter", "MaxText", "litgpt", "Hugging Face"]
ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in PAGE.read_text(encoding="utf-8").splitlines()
    if line.count(" | ") == 6
]
HEADERS = [row for row in ROWS if row[1:] == [*PEERS, "this library"]]
FILLED = [row for row in ROWS if row not in HEADERS]


def command_exists(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def faults(row: list[str]) -> list[str]:
    """What is wrong with a row."""
    found = []
    for cell in row[1:6]:
        sourced = re.match(r"(yes|partly|no)(, [^`]+)?: (`[^`]+`|.{15,})$", cell)
        if not sourced and cell != "not found":
            found.append(f"a peer's cell without a source: {cell}")
    ours = row[6]
    links = re.findall(r"\]\(([^)#]+)", ours)
    found += [f"no file {link}" for link in links if not (PAGE.parent / link).exists()]
    commands = re.findall(r"`python -m ([\w.]+)`", ours)
    found += [f"no command {name}" for name in commands if not command_exists(name)]
    if not re.match(r"(yes|partly|no)\b", ours):
        found.append(f"neither yes, partly nor no: {ours}")
    if ours.startswith("yes") and not links and not commands:
        found.append("yes without a test or a command")
    if not ours.startswith("yes") and len(re.sub(r"\[.*?\)", "", ours).split()) < 3:
        found.append("no reason")
    return found


def test_the_page_has_its_tables_and_the_state_of_each_peer():
    text = PAGE.read_text(encoding="utf-8")
    assert len(HEADERS) == text.count("\n## ") - 1 and len(FILLED) > 60
    for peer in PEERS:
        assert re.search(rf"^\| {peer} \| .*\d{{4}}-\d\d-\d\d", text, re.M), peer


@pytest.mark.parametrize("row", FILLED, ids=lambda row: row[0])
def test_a_row(row):
    assert faults(row) == []


def test_faults_are_found():
    good = ["what", *["yes: `a/b.py`"] * 5, "yes: [test](../tests/unit/test_peers.py), `python -m lm.train`"]
    assert faults(good) == []
    assert faults([*good[:5], "yes", good[6]]) == ["a peer's cell without a source: yes"]
    assert faults([*good[:6], "yes: [test](../tests/unit/test_nothing.py), `python -m lm.nothing`"]) == [
        "no file ../tests/unit/test_nothing.py",
        "no command lm.nothing",
    ]
    assert faults([*good[:6], "no"]) == ["no reason"] and faults([*good[:6], "yes"]) == ["yes without a test or a command"]
