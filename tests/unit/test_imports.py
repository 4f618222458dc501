"""Imports go one way (see CONTRIBUTING.md): what a part of lm may import of lm, and what of others it must not."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMMANDS = {"train", "prepare", "evaluate", "convert"}  # verbs: each may import all of lm, and nothing imports one
CORE = {"process", "config", "types", "errors", "atomic", "paths", "untrusted", "distributed"}
MODELS = CORE | {"sharding", "flops", "models"}
DATA = CORE | {"data", "objectives"}
TRAINING = MODELS | DATA | {"redact", "losses", "checkpoint", "saved", "optim", "training"}
MAY = {
    "errors": set(),
    "redact": set(),
    "integrity": {"errors"},
    "config": {"errors", "moved", "untrusted", "config"},
    "types": {"errors"},
    "startup": {"errors", "paths"},
    "completion": {"errors", "cli", "config"},
    "__main__": {"errors", "cli", "completion"},
    "moved": {"errors"},
    "process": {"errors", "redact"},
    "distributed": {"errors", "process"},
    "cli": {"errors", "process", "startup", "config", "distributed"},
    "atomic": {"errors"},
    "paths": {"errors"},
    "untrusted": {"errors"},
    "sharding": CORE,
    "flops": CORE,
    "optim": CORE,
    "losses": {"types", "errors", "sharding", "losses"},
    "layout": {"errors"},
    "checkpoint": CORE | {"integrity", "layout"},
    "models": MODELS,
    "saved": MODELS | {"checkpoint", "data", "integrity", "layout"},
    "generation": MODELS | {"losses", "generation", "objectives", "startup"},
    "generate": {"types", "errors", "cli", "atomic", "paths", "untrusted", "config", "saved", "data", "models", "generation"},
    "embed": {"errors", "cli", "config", "atomic", "paths", "untrusted", "saved", "models", "generation", "data"},
    "latent": {"errors", "cli", "config", "atomic", "paths", "saved", "generation", "evaluation"},
    "score": {"errors", "cli", "paths", "untrusted", "config", "saved", "models", "objectives", "evaluation"},
    "predict": {"errors", "cli", "paths", "untrusted", "config", "saved", "data", "evaluation"},
    "transcribe": {"errors", "cli", "paths", "untrusted", "config", "saved", "data", "models", "generation", "evaluation"},
    "talk": {"errors", "config", "untrusted", "atomic", "paths", "saved", "data", "models", "generation", "objectives", "talk"},
    "chat": {"errors", "cli", "process", "config", "saved", "talk"},
    "ask": {"errors", "cli", "config", "paths", "saved", "models", "generation", "talk"},
    "serving": MODELS | DATA | {"saved", "losses", "generation", "evaluation", "serving"},
    "serve": {"errors", "cli", "process", "paths", "untrusted", "config", "serving"},
    "conversion": MODELS | {"conversion", "checkpoint", "data", "saved"},
    "objectives": CORE | {"objectives"},
    "data": DATA,
    "training": TRAINING | {"startup"},
    "report": {"errors", "cli", "training"},
    "show": {"errors", "cli", "config", "view"},
    "view": {"errors", "config", "types", "data", "objectives", "saved", "training", "recipes", "view"},
    "evaluation": TRAINING | {"generation", "evaluation", "startup"},
    "recipes": TRAINING | {"generation", "integrity", "evaluation", "startup", "recipes"},
}
NEVER = {"configs", "experiments", "tests", "tpu"}
# No jax: config and flops of a laptop, data on the host.
LIGHT = {"errors", "cli", "process", "moved", "atomic", "redact", "paths", "untrusted", "config", "flops", "objectives", "data"}
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
    of_lm = {n.split(".")[1] for n in names if n.split(".")[0] == "lm" and "." in n}
    assert not of_lm & COMMANDS - {part(path)}, f"{path} imports a command; what both need belongs into a package"
    if part(path) in COMMANDS | {"__init__"}:
        return
    assert part(path) in MAY, f"lm/{part(path)} is not in the table of this test; say what it may import"
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
