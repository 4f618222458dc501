"""Settings, as dicts, JSON, files and flags hold them, and the `lm.config.Run` that they make: there and back. Imports no jax.

A config file (`--config=F`) returns an `ml_collections.ConfigDict`; `load` executes it, applies `--config.a.b=value`
overrides and hands the result to `build`, which checks every key, every type and every range. What lives on is frozen.

Where a field allows several dataclasses (a position, an objective), the dict's `kind` is the class name in snake case;
without it the first is meant.
"""

import ast
import dataclasses
import functools
import importlib.util
import inspect
import json
import types
import typing
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from lm.config import Run, kind_of
from lm.config.ranges import show
from lm.errors import UserError, nearest


def _members(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _dataclasses(hint: Any) -> list[type]:
    return [m for m in _members(hint) if dataclasses.is_dataclass(m) and isinstance(m, type)]


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    """The types of a dataclass's fields, with the ranges that `lm.config.ranges` declares."""
    return typing.get_type_hints(cls, include_extras=True)


def build(hint: Any, value: Any, path: str = "config") -> Any:
    """`value`, of dicts, tuples and scalars, as the type `hint`; raises UserError that names the path of what is wrong."""
    classes, members = _dataclasses(hint), _members(hint)
    if value is None and types.NoneType in members:
        return None
    if classes:
        # A dataclass that a config file made has not been held against the types and ranges: it is built once more.
        return _build_dataclass(classes, to_dict(value, hint) if isinstance(value, tuple(classes)) else value, path)
    if len(members) > 1 and isinstance(value, (tuple, list)):  # of tuple[...] | None
        hint = next((member for member in members if typing.get_origin(member) is tuple), hint)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Mapping and isinstance(value, Mapping):
        return {build(args[0], k, f"{path} (a name)"): build(args[1], v, f"{path}.{k}") for k, v in value.items()}
    if origin is tuple:
        if not isinstance(value, (tuple, list)):
            raise UserError(f"{path} is {show(value)}; it must be a list, such as ('one', 'two') or ('one',)")
        return tuple(build(args[0], v, f"{path}[{i}]") for i, v in enumerate(value))
    for member in members:
        if typing.get_origin(member) is Literal:
            return _choice(typing.get_args(member), value, path)
        kind, rules = _ruled(member)
        if type(value) is kind or (kind is float and type(value) is int):
            for rule in rules:
                if words := rule.wrong(value):
                    raise UserError(f"{path}={show(value)}{words}")
            return kind(value)
    names = " or ".join(getattr(_ruled(m)[0], "__name__", str(m)) for m in members if m is not types.NoneType)
    whole = f" (write {int(value)})" if isinstance(value, float) and names == "int" and value.is_integer() else ""
    raise UserError(f"{path} is {show(value)}; it must be {names}" + (" or None" if types.NoneType in members else "") + whole)


def of_flags(cls: Any, flags: Any) -> Any:
    """A dataclass of scalars from command-line flags of the same names; a UserError names the flag."""
    return cls(**{name: build(hint, getattr(flags, name), f"--{name}") for name, hint in _hints(cls).items()})


def _ruled(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """`Annotated[int, Range(1)]` as the type and its rules."""
    return typing.get_args(hint)[0] if typing.get_origin(hint) is Annotated else hint, getattr(hint, "__metadata__", ())


def _choice(known: tuple[str, ...], value: Any, path: str) -> str:
    if value is None and "none" in known:
        return "none"  # of a flag, which reads that word as None
    if isinstance(value, str) and value in known:
        return value
    raise UserError(f"{path} is {show(value)}{nearest(str(value)[:100] if isinstance(value, str) else '', known)}")


def _build_dataclass(classes: list[Any], value: Any, path: str) -> Any:
    if not isinstance(value, Mapping):
        raise UserError(f"{path} is {show(value)}; it must be a section with the fields of {classes[0].__name__}")
    given = dict(value)
    kinds = {kind_of(c): c for c in classes}
    # In a dataclass with a field of that name (Norm, Source), `kind` is that field; elsewhere it is the class.
    first = classes[0]
    kind = kind_of(first) if "kind" in _hints(first) else given.pop("kind", kind_of(first))
    cls = kinds[_choice(tuple(kinds), kind, f"{path}.kind")]
    hints, fields = _hints(cls), {f.name: f for f in dataclasses.fields(cls)}
    for key in given:
        if key not in fields:
            raise UserError(f"unknown key {path}.{str(key)[:100]}{nearest(str(key)[:100], fields)}")
    for name, f in fields.items():
        if name not in given and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise UserError(f"{path}.{name} is missing; {cls.__name__} needs it")
    # None is also allowed where it is the default of a field whose type leaves it out (`Run.model`).
    values = {
        key: None if v is None and fields[key].default is None else build(hints[key], v, f"{path}.{key}")
        for key, v in given.items()
    }
    try:
        return cls(**values)
    except UserError as error:  # of fields that do not go together, by their names within the section
        raise UserError(f"{path}: {error}") from None


def to_dict(value: Any, hint: Any = None) -> Any:
    """The inverse of `build`: nested dicts that a config file edits and JSON holds."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        hints = _hints(type(value))
        kind = {"kind": kind_of(type(value))} if len(_dataclasses(hint)) > 1 else {}
        return kind | {f.name: to_dict(getattr(value, f.name), hints[f.name]) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {k: to_dict(v, typing.get_args(hint)[1] if typing.get_args(hint) else None) for k, v in value.items()}
    return tuple(to_dict(v) for v in value) if isinstance(value, (tuple, list)) else value


def non_defaults(value: Any) -> Any:
    """Non-default fields only, as `{"class": ..., field: ...}`, so that new fields keep old hashes."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        own = {"class": type(value).__name__}
        for f in dataclasses.fields(value):
            default = f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
            if getattr(value, f.name) != default:
                own[f.name] = non_defaults(getattr(value, f.name))
        return own
    if isinstance(value, Mapping):
        return {k: non_defaults(v) for k, v in sorted(value.items())}
    return [non_defaults(v) for v in value] if isinstance(value, (tuple, list)) else value


def to_json(run: Run) -> str:
    return json.dumps(to_dict(run), indent=2, sort_keys=True)


def from_json(text: str) -> Run:
    return build(Run, parsed(text, "config.json"))


def parsed(text: str, name: str) -> Any:
    """The JSON of a file of this name. What JSON has no word for, and a key that stands twice, is refused as well."""

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        section: dict[str, Any] = {}
        for key, value in items:
            if key in section:
                raise ValueError(f"the key {show(key)} stands twice")
            section[key] = value
        return section

    def constant(word: str) -> None:
        raise ValueError(f"{word} is no JSON")

    try:
        return json.loads(text, object_pairs_hook=pairs, parse_constant=constant)
    except RecursionError:
        raise UserError(f"config file {name} is nested too deeply: a config has a dozen levels") from None
    except ValueError as error:
        raise UserError(f"config file {name} is not JSON: {error}") from error


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
    path, argument = _found(file)
    tree = _read_json(path) if path.suffix == ".json" else _executed(path, argument)
    if not isinstance(tree, dict):
        raise UserError(
            f"config file {path} gives {show(tree)}: it must give a dict of sections, as configs/quickstart.py does"
        )
    for key, text in (overrides or {}).items():
        _override(tree, key, text)
    try:
        return build(Run, tree)
    except RecursionError:
        raise UserError(f"config file {path} is nested too deeply: a config has a dozen levels") from None


def _found(file: str) -> tuple[Path, str | None]:
    """The config file, and the argument that stands behind a colon."""
    try:
        name, colon, argument = file.partition(":") if not Path(file).exists() else (file, "", "")
        path = Path(name)
        if name and path.is_dir():
            raise UserError(f"--config={name} is a folder: give a file in it, such as {path / 'config.json'}")
        if not path.is_file():
            offers = [p.stem for p in path.parent.glob("*.py")] if path.parent.is_dir() else []
            raise UserError(f"no config file {name or show(name)}{nearest(path.stem, offers)}")
    except (OSError, ValueError) as error:  # a name that is too long, or has a zero byte
        raise UserError(f"no config file {show(file)}: {getattr(error, 'strerror', None) or error}; give another") from None
    if path.suffix not in (".py", ".json"):
        raise UserError(f"config file {name} ends in neither .py nor .json: rename it to what it is")
    if argument and path.suffix == ".json":
        raise UserError(f"config file {name} is JSON and takes no argument: leave out ':{argument}'")
    return path, argument if colon and argument else None


def _read_json(path: Path) -> Any:
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"config file {path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    return parsed(text, str(path))


def _executed(path: Path, argument: str | None) -> Any:
    """What `get_config` of a Python file returns, as dicts."""
    spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    given = [] if argument is None else [argument]
    try:
        spec.loader.exec_module(module)
        make = getattr(module, "get_config", None)
        if not callable(make):
            raise UserError(f"{path} has no get_config(); see configs/quickstart.py")
        if not _takes(make, given):
            cure = f"takes no argument: leave out ':{argument}'" if given else f"needs an argument: --config={path}:ARGUMENT"
            raise UserError(f"get_config() of {path} {cure}")
        tree = make(*given)
        if isinstance(tree, Run):
            return to_dict(tree)
        return _dicts(tree.to_dict() if hasattr(tree, "to_dict") else tree)
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # the file is the user's program, and may fail in any way
        words = " ".join(str(error).split())
        raise UserError(f"config file {path} failed: {type(error).__name__}: {words}") from error


def _dicts(value: Any) -> Any:
    """Copies of all mappings, as dicts; dataclasses in them stay, since `build` knows which class a field takes."""
    return {key: _dicts(v) for key, v in value.items()} if isinstance(value, Mapping) else value


def _takes(function: Any, arguments: list[str]) -> bool:
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError:
        return False
    except ValueError:  # built-in functions need not have a signature
        return True
    return True


def _override(tree: dict[str, Any], key: str, text: str) -> None:
    """Sets the value of a dotted key in nested dicts."""
    *sections, last = key.split(".")
    if not all([*sections, last]):
        raise UserError(f"--config.{key} has an empty part in its key: give a key such as --config.train.steps=100")
    for name in sections:
        if tree.get(name) is None:
            tree[name] = {}
        if dataclasses.is_dataclass(tree[name]):  # of a Python config: the override changes one of its fields
            tree[name] = {"kind": kind_of(type(tree[name]))} | to_dict(tree[name])
        if not isinstance(below := tree[name], dict):
            raise UserError(f"--config.{key}: '{name}' is {show(below)}, not a section")
        tree = below
    tree[last] = _literal(text)


def _literal(text: str) -> Any:
    """A Python literal, or the text itself, where it is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # of texts that are nearly a literal, such as "1or 2"
            return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return {"true": True, "false": False, "none": None}.get(text, text)


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
        if not equals and (text := next(words, "--")).startswith("--"):
            raise UserError(f"{word} needs a value: {word}=...")
        overrides[key] = text
    return rest, overrides
