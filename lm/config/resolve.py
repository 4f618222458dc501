"""Makes a `lm.config.Run` of dicts, JSON, config files and flags, and writes one back. Imports no jax.

A config file (`--config=F`) returns an `ml_collections.ConfigDict`; `load` executes it, applies `--config.a.b=value`
overrides and hands the result to `build`, which checks every key, type and range and returns frozen dataclasses.

Where a field allows several dataclasses (a position, an objective), the dict's `kind` is the class name in snake case; the
first class is the default.
"""

import ast
import copy
import dataclasses
import functools
import importlib.util
import inspect
import json
import operator
import re
import traceback
import types
import typing
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from lm import moved
from lm.config import Run, kind_of, suggest
from lm.config.ranges import Conflict, Only, show
from lm.errors import UserError, nearest
from lm.untrusted import strict_json


class Renamed(UserError):
    """A key that an earlier version had. `old` and `new` are dotted keys from the root, such as "config.train.steps"."""

    def __init__(self, old: str, new: str) -> None:
        super().__init__(f"{old} is {new} now: give that")
        self.old, self.new = old, new


def union_members(hint: Any) -> tuple[Any, ...]:
    """The types of a union; of another type itself."""
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def dataclasses_of(hint: Any) -> list[type]:
    """The dataclasses among the types of a union."""
    return [m for m in union_members(hint) if dataclasses.is_dataclass(m) and isinstance(m, type)]


@functools.cache
def field_hints(cls: type) -> dict[str, Any]:
    """The types of a dataclass's fields, with the ranges that `lm.config.ranges` declares."""
    return typing.get_type_hints(cls, include_extras=True)


def build(hint: Any, value: Any, path: str = "config") -> Any:
    """Converts `value` (dicts, tuples, scalars) to the type `hint`; UserError names the dotted path of what is wrong."""
    classes, members = dataclasses_of(hint), union_members(hint)
    if value is None and types.NoneType in members:
        return None
    if classes:
        # A dataclass that a config file made has not been checked for types and ranges, so it is built again.
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
        kind, rules = ruled(member)
        if typing.get_origin(kind) is Literal:
            return _choice(typing.get_args(kind), value, path, rules)
        if type(value) is kind or (kind is float and type(value) is int):
            for rule in rules:
                if words := rule.wrong(value):
                    raise UserError(f"{path}={show(value)}{words}")
            return kind(value)
    names = " or ".join(getattr(ruled(m)[0], "__name__", str(m)) for m in members if m is not types.NoneType)
    whole = f" (write {int(value)})" if isinstance(value, float) and names == "int" and value.is_integer() else ""
    raise UserError(f"{path} is {show(value)}; it must be {names}" + (" or None" if types.NoneType in members else "") + whole)


def of_flags(cls: Any, flags: Any) -> Any:
    """The dataclass of scalars whose fields are command-line flags of the same names; UserError names the flag."""
    return cls(**{name: build(hint, getattr(flags, name), f"--{name}") for name, hint in field_hints(cls).items()})


def ruled(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """`Annotated[int, Range(1)]` -> `int, (Range(1),)`."""
    return typing.get_args(hint)[0] if typing.get_origin(hint) is Annotated else hint, getattr(hint, "__metadata__", ())


def _choice(known: tuple[str, ...], value: Any, path: str, only: tuple[Only, ...] = ()) -> str:
    if value is None and "none" in known:
        return "none"  # flags read this word as None
    if isinstance(value, str) and value in known:
        return value
    if only:
        known = tuple(next((f"{k} ({o.where})" for o in only if o.choice == k), k) for k in known)
        raise UserError(f"{path} is {show(value)}; known: {', '.join(known)}")
    raise UserError(f"{path} is {show(value)}{nearest(str(value)[:100] if isinstance(value, str) else '', known)}")


def _build_dataclass(classes: list[Any], value: Any, path: str) -> Any:
    kinds = {kind_of(c): c for c in classes}
    if not isinstance(value, Mapping):
        cure = f": set {path}.kind={value}" if isinstance(value, str) and len(kinds) > 1 and value in kinds else ""
        raise UserError(f"{path} is {show(value)}; it must be a section with the fields of {classes[0].__name__}{cure}")
    given = dict(value)
    # In a dataclass that has a field `kind` (Norm, Source) it is that field, elsewhere it names the class.
    first = classes[0]
    kind = kind_of(first) if "kind" in field_hints(first) else given.pop("kind", kind_of(first))
    cls = kinds[_choice(tuple(kinds), kind, f"{path}.kind")]
    hints, fields = field_hints(cls), {f.name: f for f in dataclasses.fields(cls)}
    for key in given:
        if key not in fields:
            if new := moved.KEYS.get(f"{cls.__name__}.{key}"):
                raise Renamed(f"{path}.{key}", f"{path.partition('.')[0] if '.' in new else path}.{new}")
            raise UserError(f"unknown key {path}.{str(key)[:100]}{suggest.key(cls, str(key)[:100], Run, path)}")
    for name, f in fields.items():
        if name not in given and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise UserError(f"{path}.{name} is missing; {cls.__name__} needs it")
    # None is also allowed as the default of a field whose type does not include it (`Run.model`).
    values = {
        key: None if v is None and fields[key].default is None else build(hints[key], v, f"{path}.{key}")
        for key, v in given.items()
    }
    try:
        return cls(**values)
    except Conflict as error:
        raise Conflict(f"{path}: {error}", *(f"{path}.{field}" for field in error.fields)) from None
    except UserError as error:  # fields that do not go together; the message names them within the section
        raise UserError(f"{path}: {error}") from None


def build_saved(hint: Any, tree: Any) -> Any:
    """`build` of what a run or a conversion saved: keys of earlier versions are read under the names that they have now."""
    while True:
        try:
            return build(hint, tree)
        except Renamed as error:
            tree = copy.deepcopy(tree)
            *sections, last = error.old.split(".")[1:]
            value = functools.reduce(operator.getitem, sections, tree).pop(last)
            _put(tree, error.new.partition(".")[2], value)


def to_dict(value: Any, hint: Any = None) -> Any:
    """The inverse of `build`: nested dicts that a config file edits and JSON holds."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        hints = field_hints(type(value))
        kind = {"kind": kind_of(type(value))} if len(dataclasses_of(hint)) > 1 else {}
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
    return build_saved(Run, parsed(text, "config.json"))


def parsed(text: str, name: str) -> Any:
    """The value of a JSON file of this name, read strictly; UserError if it is not JSON."""
    try:
        return strict_json(text)
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


def replaced(run: Run, values: Mapping[str, Any]) -> Run:
    """The run with other values under these dotted keys."""
    if not values:
        return run
    tree = to_dict(run)
    for key, value in values.items():
        _put(tree, key, value)
    return build(Run, tree)


def diff(old: Run, new: Run) -> dict[str, tuple[Any, Any]]:
    """Dotted keys whose values differ: `{"train.steps": (100, 200)}`."""
    a, b = flatten(to_dict(old)), flatten(to_dict(new))
    return {k: (a.get(k), b.get(k)) for k in sorted(a.keys() | b.keys()) if a.get(k) != b.get(k)}


# ---------------------------------------------------------------------------------------------------- files and flags


def load(file: str, overrides: Mapping[str, str] | None = None) -> Run:
    """The run that a config file describes. A Python file is executed, so it must be trusted.

    `file.py` calls its `get_config()`, and `file.py:argument` calls `get_config(argument)`.

    `overrides` maps dotted keys to text, `{"train.steps": "100"}`: a Python literal, or else a string.
    """
    path, argument = _found(file)
    tree = _read_json(path) if path.suffix == ".json" else _executed(path, argument)
    if not isinstance(tree, dict):
        raise UserError(
            f"config file {path} gives {show(tree)}: it must give a dict of sections, as configs/quickstart.py does"
        )
    for key, text in (overrides or {}).items():
        _put(tree, key, literal(text))
    try:
        return build_saved(Run, tree) if path.suffix == ".json" else build(Run, tree)
    except Conflict as error:
        keys = tuple(field.removeprefix("config.") for field in error.fields)
        raise UserError(f"{error} ({suggest.origins(keys, overrides or {}, tree, str(path))})") from None
    except RecursionError:
        raise UserError(f"config file {path} is nested too deeply: a config has a dozen levels") from None


def _found(file: str) -> tuple[Path, str | None]:
    """Splits `file.py:argument`; UserError if there is no such file."""
    try:
        name, colon, argument = file.partition(":") if not Path(file).exists() else (file, "", "")
        path = Path(name)
        if not path.is_file():
            path = _of_the_library(name) or path
        if name and path.is_dir():
            raise UserError(f"--config={name} is a folder: give a file in it, such as {path / 'config.json'}")
        if not path.is_file():
            raise UserError(f"no config file {name or show(name)}{suggest.files(path)}")
    except (OSError, ValueError) as error:  # a name that is too long, or contains a zero byte
        raise UserError(f"no config file {show(file)}: {getattr(error, 'strerror', None) or error}; give another") from None
    if path.suffix not in (".py", ".json"):
        raise UserError(f"config file {name} ends in neither .py nor .json: rename it to what it is")
    if argument and path.suffix == ".json":
        raise UserError(f"config file {name} is JSON and takes no argument: leave out ':{argument}'")
    return path, argument if colon and argument else None


def _of_the_library(name: str) -> Path | None:
    """The config of this library with that name, in whatever folder a command runs: quickstart, life/sft, configs/pod.py."""
    short = name.removeprefix("configs/").removesuffix(".py")
    found = (folder / f"{short}.py" for folder in suggest.LIBRARY)
    return next((path for path in found if short and path.is_file()), None)


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
    except (Exception, SystemExit) as error:  # the file is the user's program and can fail in any way
        words = " ".join(str(error).split())
        raise UserError(
            f"config file {path} failed: {type(error).__name__}: {words}{_other_keyword(words)}{_where(error)}"
        ) from error


def _other_keyword(message: str) -> str:
    """What may be meant by a keyword that a class of `lm.config` has not; "" of any other error."""
    found = re.match(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'$", message)
    named = getattr(importlib.import_module("lm.config"), found[1], None) if found else None
    return nearest(found[2], [f.name for f in dataclasses.fields(named)]) if found and dataclasses.is_dataclass(named) else ""


def _where(error: BaseException) -> str:
    """The line of the user's that raised it, as " (my.py, line 7)"; "" where Python names it itself, or there is none."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    ours = Path(last.filename) == Path(__file__) or not Path(last.filename).is_file() or isinstance(error, SyntaxError)
    return "" if ours else f" ({last.filename}, line {last.lineno})"


def _dicts(value: Any) -> Any:
    """Copies all mappings to dicts. Dataclasses in them stay: only `build` knows which class a field takes."""
    return {key: _dicts(v) for key, v in value.items()} if isinstance(value, Mapping) else value


def _takes(function: Any, arguments: list[str]) -> bool:
    """Whether the function can be called with these arguments."""
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError:
        return False
    except ValueError:  # a built-in function without a signature
        return True
    return True


def _put(tree: dict[str, Any], key: str, value: Any) -> None:
    """Sets the value of a dotted key in nested dicts."""
    *sections, last = key.split(".")
    if not all([*sections, last]):
        raise UserError(f"--config.{key} has an empty part in its key: give a key such as --config.train.steps=100")
    for name in sections:
        if tree.get(name) is None:
            tree[name] = {}
        if dataclasses.is_dataclass(tree[name]):  # from a Python config; the override changes one of its fields
            tree[name] = {"kind": kind_of(type(tree[name]))} | to_dict(tree[name])
        if not isinstance(below := tree[name], dict):
            raise UserError(f"--config.{key}: '{name}' is {show(below)}, not a section")
        tree = below
    tree[last] = value


def literal(text: str) -> Any:
    """The value of a Python literal, or the text itself if it is not one."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # texts that are almost literals, such as "1or 2"
            return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return {"true": True, "false": False, "none": None}.get(text, text)


def split_flags(argv: list[str]) -> tuple[list[str], dict[str, str]]:
    """Splits argv into the other arguments and the overrides: `--config.key=value` or `--config.key value`."""
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
