"""What an error suggests: config files that exist, where a key belongs, and who set the values that do not go together."""

import dataclasses
import difflib
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lm.errors import nearest

CONFIGS = Path("configs")  # below the working folder, where this repository and its copies have theirs
LISTED = 5
LIBRARY = [folder / "configs" for folder in Path(__file__).parents[1:3]]  # of a wheel, of a checkout


def files(path: Path) -> str:
    """What follows `no config file X`: the file that is meant, or some that exist, as --config takes them."""
    folders = dict.fromkeys((path.parent, CONFIGS))
    found = {str(p): p for p in _runs(path) or [p for folder in folders for p in _configs(folder)]}
    found = found or {p.stem: p for folder in LIBRARY for p in _configs(folder)}  # which have short names everywhere
    by_name = {(p.parent.name if p.suffix == ".json" else p.stem): name for name, p in reversed(found.items())}
    asked = path.parent.name if path.suffix == ".json" else path.stem
    if close := difflib.get_close_matches(asked, by_name, n=1):
        return f"; did you mean '{by_name[close[0]]}'?"
    if not found:
        return ": give a Python file with get_config(), or the config.json of a run"
    more = f" and {len(found) - LISTED} more" if len(found) > LISTED else ""
    return f"; known: {', '.join(sorted(found)[:LISTED])}{more}"


def _configs(folder: Path) -> list[Path]:
    """The Python files in a folder that have a `get_config`."""
    try:
        return [p for p in sorted(folder.glob("*.py")) if "def get_config(" in p.read_text("utf-8", errors="replace")]
    except OSError:  # a folder or a file that may not be read is not offered
        return []


def _runs(path: Path) -> list[Path]:
    """config.json of the runs beside the one that is asked for: runs/first/config.json for runs/frist/config.json."""
    return sorted(path.parent.parent.glob(f"*/{path.name}")) if path.name == "config.json" else []


def key(cls: Any, name: str, root: type, path: str) -> str:
    """What follows `unknown key PATH.NAME`: a field of the section `cls` that is similar, or the section of `root`, the whole
    config, that has a field of this very name."""
    fields = [f.name for f in dataclasses.fields(cls)]
    close = difflib.get_close_matches(name, fields, n=1)
    places = [] if close or not path.startswith("config") else [p for p in _paths(root, "config") if p.split(".")[-1] == name]
    if not places:
        return nearest(name, fields)
    return f"; did you mean {' or '.join(f'--{place}' for place in places[:3])}?"


def _paths(cls: type, path: str) -> Iterator[str]:
    """Dotted keys of all fields below a section, but for those whose section is one of several kinds, or has a name."""
    for name, hint in typing.get_type_hints(cls).items():
        yield f"{path}.{name}"
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            yield from _paths(hint, f"{path}.{name}")


def origins(keys: tuple[str, ...], overrides: Mapping[str, str], tree: Any, file: str) -> str:
    """Who set these dotted keys: `set by a flag: train.steps; set by configs/quickstart.py: optimizer.schedule.decay`.

    tree: the file's sections with the flags in them.
    """
    by: dict[str, list[str]] = {}
    for dotted in keys:
        flag = any(f"{dotted}.".startswith(f"{key}.") for key in overrides)
        by.setdefault("a flag" if flag else file if _has(tree, dotted) else "default", []).append(dotted)
    return "; ".join(f"set by {who}: {', '.join(names)}" for who, names in by.items())


def _has(tree: Any, dotted: str) -> bool:
    """Whether the nested mappings have this key; what is below a dataclass of a Python config counts as given."""
    for name in dotted.split("."):
        if dataclasses.is_dataclass(tree):
            return True
        if not isinstance(tree, Mapping) or name not in tree:
            return False
        tree = tree[name]
    return True
