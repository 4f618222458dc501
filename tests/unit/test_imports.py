"""Imports go one way (see CONTRIBUTING.md): what a part of lm may import of lm, and what of others it must not."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CORE = {"shell", "config", "resolve", "types", "errors", "atomic", "paths", "foreign", "distributed"}
MODELS = CORE | {"sharding", "flops", "models"}
DATA = CORE | {"data", "objectives"}
LOOP = CORE | {"shown", "sharding", "flops", "losses", "checkpoint", "optim", "train"}
MAY = {
    "errors": set(),
    "ranges": {"errors"},
    "config": {"errors", "ranges"},
    "resolve": {"errors", "config", "ranges"},
    "types": {"errors"},
    "startup": {"errors"},
    "shell": {"errors", "shown"},
    "distributed": {"errors", "shell"},
    "atomic": {"errors"},
    "paths": {"errors"},
    "foreign": {"errors"},
    "sharding": CORE,
    "flops": CORE,
    "optim": CORE,
    "losses": {"types", "errors", "sharding"},
    "replaced": {"types", "errors", "losses"},
    "shown": set(),
    "whole": set(),
    "checkpoint": CORE | {"whole"},
    "models": MODELS,
    "generate": MODELS | {"generate", "objectives", "startup"},  # which marks a prompt has; what a compiler is told
    "convert": MODELS | {"convert"},
    "objectives": CORE | {"objectives"},
    "data": DATA,
    "train": LOOP,
    "evaluate": MODELS | DATA | {"generate", "losses", "evaluate"},
}
FREE = {"recipes"}  # all of lm, and so may every __main__
NEVER = {"configs", "experiments", "tests", "tpu"}
# No jax: config and flops of a laptop, data on the host.
LIGHT = {"errors", "shell", "atomic", "shown", "paths", "foreign", "ranges", "config", "resolve", "flops", "objectives", "data"}
HEAVY = {"jax", "flax", "optax", "orbax"}

FILES = sorted((ROOT / "lm").rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Dotted names of all that a file imports, wherever in it; `from lm import x` is `lm.x`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            found |= {f"{node.module}.{name.name}" for name in node.names}
    return found


def part(path: Path) -> str:
    return path.relative_to(ROOT / "lm").with_suffix("").parts[0]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_one_way(path):
    names = imported(path)
    assert not {n.split(".")[0] for n in names} & NEVER
    if path.name == "__main__.py" or part(path) in FREE | {"__init__"}:
        return
    assert part(path) in MAY, f"lm/{part(path)} is not in the table of this test; say what it may import"
    of_lm = {n.split(".")[1] for n in names if n.split(".")[0] == "lm" and "." in n}
    assert of_lm <= MAY[part(path)], f"lm/{part(path)} must not import lm.{', lm.'.join(of_lm - MAY[part(path)])}"


# Objectives make Examples, whose module names jax's types; nothing of theirs runs on a device.
@pytest.mark.parametrize("path", [p for p in FILES if part(p) in LIGHT], ids=lambda p: str(p.relative_to(ROOT)))
def test_the_host_side_imports_no_jax(path):
    assert not {n.split(".")[0] for n in imported(path)} & HEAVY


def test_the_table_has_no_circle():
    """Parts sort so that each imports only those before it."""
    left, done = {name: of - {name} for name, of in MAY.items()}, set()
    while ready := {name for name, of in left.items() if of - set(MAY) <= set() and of <= done}:
        done |= ready
        left = {name: of for name, of in left.items() if name not in done}
    assert not left, f"in a circle: {left}"


def test_presets_are_pure_data():
    for path in (ROOT / "lm/models/presets").glob("*.py"):
        assert all(n.startswith("lm.config.") for n in imported(path)), path
        assert len(path.read_text().splitlines()) <= 100
