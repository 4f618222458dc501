"""Settings, as dicts, JSON, files and flags hold them, and the `lm.config.Run` that they make: there and back. Imports no jax.

A config file (`--config=F`) returns an `ml_collections.ConfigDict`; `load` executes it, applies `--config.a.b=value`
overrides and hands the result to `build`, which checks every key and every type. What lives on is frozen.

Where a field allows several dataclasses (a position, an objective), the dict's `kind` is the class name in snake case;
without it the first is meant.
"""

import ast
import dataclasses
import importlib.util
import json
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from lm.config import Run, kind_of
from lm.errors import UserError, nearest


def _members(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _dataclasses(hint: Any) -> list[type]:
    return [m for m in _members(hint) if dataclasses.is_dataclass(m) and isinstance(m, type)]


def build(hint: Any, value: Any, path: str = "config") -> Any:
    """`value`, of dicts, tuples and scalars, as the type `hint`; raises UserError that names the path of what is wrong."""
    classes, members = _dataclasses(hint), _members(hint)
    if value is None and types.NoneType in members:
        return None
    if classes:
        return value if isinstance(value, tuple(classes)) else _build_dataclass(classes, value, path)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Mapping and isinstance(value, Mapping):
        return {str(k): build(args[1], v, f"{path}.{k}") for k, v in value.items()}
    if origin is tuple and isinstance(value, (tuple, list)):
        return tuple(build(args[0], v, f"{path}[{i}]") for i, v in enumerate(value))
    for member in members:
        if typing.get_origin(member) is Literal:
            if value is None and "none" in typing.get_args(member):
                return "none"  # of a flag, which reads that word as None
            if value in typing.get_args(member):
                return value
            raise UserError(f"{path} is {value!r}{nearest(str(value), map(str, typing.get_args(member)))}")
        if member is float and isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
        if member in (int, bool, str) and type(value) is member:
            return value
    names = " or ".join(getattr(m, "__name__", str(m)) for m in members if m is not types.NoneType)
    raise UserError(f"{path} is {value!r}; it must be {names}" + (" or None" if types.NoneType in members else ""))


def _build_dataclass(classes: list[Any], value: Any, path: str) -> Any:
    if not isinstance(value, Mapping):
        raise UserError(f"{path} is {value!r}; it must be a section with the fields of {classes[0].__name__}")
    given = dict(value)
    kinds = {kind_of(c): c for c in classes}
    # A dataclass may have a field of its own named `kind` (Norm, Source); only a choice of classes reads it as one.
    kind = given.pop("kind", kind_of(classes[0])) if len(classes) > 1 else kind_of(classes[0])
    if kind not in kinds:
        raise UserError(f"{path}.kind is {kind!r}{nearest(str(kind), kinds)}")
    cls = kinds[kind]
    hints, fields = typing.get_type_hints(cls), {f.name: f for f in dataclasses.fields(cls)}
    for key in given:
        if key not in fields:
            raise UserError(f"unknown key {path}.{key}{nearest(str(key), fields)}")
    for name, f in fields.items():
        if name not in given and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise UserError(f"{path}.{name} is missing; {cls.__name__} needs it")
    return cls(**{key: build(hints[key], v, f"{path}.{key}") for key, v in given.items()})


def to_dict(value: Any, hint: Any = None) -> Any:
    """The inverse of `build`: nested dicts that a config file edits and JSON holds."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        hints = typing.get_type_hints(type(value))
        kind = {"kind": kind_of(type(value))} if len(_dataclasses(hint)) > 1 else {}
        return kind | {f.name: to_dict(getattr(value, f.name), hints[f.name]) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {k: to_dict(v, typing.get_args(hint)[1] if typing.get_args(hint) else None) for k, v in value.items()}
    return tuple(to_dict(v) for v in value) if isinstance(value, (tuple, list)) else value


def told(value: Any) -> Any:
    """What of a config is not as it is by default, `{"class": ..., field: ...}`: fields that the code gains change nothing."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        own = {"class": type(value).__name__}
        for f in dataclasses.fields(value):
            default = f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
            if getattr(value, f.name) != default:
                own[f.name] = told(getattr(value, f.name))
        return own
    if isinstance(value, Mapping):
        return {k: told(v) for k, v in sorted(value.items())}
    return [told(v) for v in value] if isinstance(value, (tuple, list)) else value


def to_json(run: Run) -> str:
    return json.dumps(to_dict(run), indent=2, sort_keys=True)


def from_json(text: str) -> Run:
    return build(Run, json.loads(text))


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as `{"train.steps": 1000, ...}`."""
    flat: dict[str, Any] = {}
    for key, v in tree.items():
        flat |= flatten(v, f"{prefix}{key}.") if isinstance(v, Mapping) else {f"{prefix}{key}": v}
    return flat


def diff(old: Run, new: Run) -> dict[str, tuple[Any, Any]]:
    """Dotted keys whose values differ: `{"train.steps": (100, 200)}`."""
    a, b = flatten(to_dict(old)), flatten(to_dict(new))
    return {k: (a.get(k), b.get(k)) for k in sorted(a.keys() | b.keys()) if a.get(k) != b.get(k)}


# ---------------------------------------------------------------------------------------------------- files and flags


def load(file: str, overrides: Mapping[str, str] | None = None) -> Run:
    """The run that `file` describes. `file.py:argument` calls `get_config(argument)`. The file is executed: trust it.

    `overrides` maps dotted keys to text, `{"train.steps": "100"}`: Python literals, and bare words are strings.
    """
    name, _, argument = file.partition(":") if not Path(file).exists() else (file, "", "")
    path = Path(name)
    if not path.is_file():
        offers = [p.stem for p in path.parent.glob("*.py")] if path.parent.is_dir() else []
        raise UserError(f"no config file {name}{nearest(path.stem, offers)}")
    if path.suffix == ".json":
        try:
            tree = json.loads(path.read_text())
        except ValueError as error:
            raise UserError(f"config file {name} is not JSON: {error}") from error
    else:
        spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
            if not hasattr(module, "get_config"):
                raise UserError(f"{name} has no get_config(); see configs/quickstart.py")
            tree = module.get_config(*([argument] if argument else []))
        except UserError:
            raise
        except Exception as error:  # the file is the user's program, and may fail in any way
            raise UserError(f"config file {name} failed: {type(error).__name__}: {error}") from error
        tree = tree.to_dict() if hasattr(tree, "to_dict") else to_dict(tree)
    for key, text in (overrides or {}).items():
        _override(tree, key.split("."), text, key)
    return build(Run, tree)


def _override(tree: dict[str, Any], keys: list[str], text: str, whole: str) -> None:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = {"true": True, "false": False, "none": None}.get(text, text)
    for key in keys[:-1]:
        below = tree.setdefault(key, {})
        if not isinstance(below, dict):
            raise UserError(f"--config.{whole}: '{key}' is {below!r}, not a section")
        tree = below
    tree[keys[-1]] = value


def split_flags(argv: list[str]) -> tuple[list[str], dict[str, str]]:
    """Takes `--config.key=value` and `--config.key value` out of argv: the rest, and the overrides."""
    rest: list[str] = []
    overrides: dict[str, str] = {}
    words = iter(argv)
    for word in words:
        if not word.startswith("--config."):
            rest.append(word)
            continue
        key, equals, text = word.removeprefix("--config.").partition("=")
        try:
            overrides[key] = text if equals else next(words)
        except StopIteration:
            raise UserError(f"{word} needs a value: {word}=...") from None
    return rest, overrides
