"""Modules and their members that docstrings, comments and READMEs name in backticks exist."""

import ast
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


def hidden_names(source: str) -> list[str]:
    """Each as "function: name": where a comprehension's variable has the name of a function, class or import of the module that
    the same function uses. Python 3.12.0 and 3.12.1 raise UnboundLocalError there."""
    tree, found = ast.parse(source), []
    defined = {node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    imports = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    defined |= {alias.asname or alias.name.split(".")[0] for node in imports for alias in node.names}
    for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
        hides = {name for node in ast.walk(function) for name in _bound(node)} & defined
        found += [f"{function.name}: {name}" for name in sorted(hides) if _uses(function, name)]
    return found


def _bound(node: ast.AST) -> set[str]:
    """The variables of a comprehension."""
    if not isinstance(node, (ast.ListComp, ast.SetComp, ast.DictComp)):
        return set()
    return {each.id for part in node.generators for each in ast.walk(part.target) if isinstance(each, ast.Name)}


def _uses(node: ast.AST, name: str) -> bool:
    """Whether the name stands outside of the comprehensions that bind it."""
    if isinstance(node, ast.Name) and node.id == name:
        return True
    return name not in _bound(node) and any(_uses(child, name) for child in ast.iter_child_nodes(node))


@pytest.mark.parametrize(
    "path", [path for path in CODE if "def " in path.read_text()], ids=lambda path: str(path.relative_to(ROOT))
)
def test_no_comprehension_hides_a_name_of_its_module_that_the_function_uses(path):
    assert hidden_names(path.read_text(encoding="utf-8")) == []


def test_a_hidden_name_is_found():
    text = "def answer(x): ...\ndef f(xs):\n    a = [answer for answer in xs]\n    return [answer(x) for x in a]\n"
    assert hidden_names(text) == ["f: answer"] and hidden_names(text.replace("answer for answer", "x for x")) == []
