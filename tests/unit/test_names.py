"""Modules and their members that docstrings, comments and READMEs name in backticks exist."""

import importlib
import re
from functools import reduce
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAMED = re.compile(r"`((?:lm|experiments|tpu)(?:\.\w+)+)(?:\(.*?\))?`")
PATHS = re.compile(r"(?<![\w/])(?:lm|configs|experiments|tpu)/[\w/]+\.py\b")
CODE = sorted(path for folder in ("lm", "configs", "experiments", "tpu") for path in (ROOT / folder).rglob("*.py"))
FILES = [
    *CODE,
    *sorted((ROOT / "experiments").rglob("README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
]


def exists(name: str) -> bool:
    """Whether a dotted name is that of a module, or of a member (or annotated field) of one."""
    parts = name.split(".")
    for k in range(len(parts), 0, -1):
        path = ROOT.joinpath(*parts[:k])
        if path.is_dir() or path.with_suffix(".py").exists():
            if k == len(parts):
                return True
            *through, last = parts[k:]
            holder = reduce(getattr, through, importlib.import_module(".".join(parts[:k])))
            return hasattr(holder, last) or last in getattr(holder, "__annotations__", {})
    return False


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_named_modules_and_files_exist(file):
    text = file.read_text()
    assert [name for name in NAMED.findall(text) if not exists(name)] == []
    assert [path for path in PATHS.findall(text) if not (ROOT / path).exists()] == []


def test_a_name_that_is_gone_is_found():
    assert exists("lm.data.rows.Rows.count") and exists("lm.config.Run") and exists("lm.objectives.declaration.Suit.build")
    assert not exists("lm.data.rows.Nothing") and not exists("lm.nothing")
