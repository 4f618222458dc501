"""Reads checkpoints with the parameter names of the first layout, which are converted to the current names:

    first layout                        current
    decoder/turns/block_0/...           decoder/groups/block_0/...
    decoder/turn_0/block_0/...          decoder/group_0/block_0/...

They are renamed at any depth, in parameters, their average and the optimizer's moments. Orbax restores by name, so a tree is
restored under its names on disk and renamed afterwards.
"""

import re
from collections.abc import Callable, Iterable
from typing import Any

import jax

from lm.errors import UserError

TURNS, GROUPS = re.compile(r"turn(s|_\d+)"), re.compile(r"group(s|_\d+)")


def current_path(path: str) -> str:
    """Returns the current name of a path such as `"params/decoder/turn_0/block_0/ffn/up/kernel"`."""
    return "/".join(map(_current, path.split("/")))


def is_first(paths: Iterable[str], source: Any) -> bool:
    """Whether the paths of a saved tree have names of the first layout. UserError, naming `source`, if it has both layouts'."""
    names = {name for path in paths for name in path.split("/")}
    old, new = (sorted(filter(pattern.fullmatch, names)) for pattern in (TURNS, GROUPS))
    if old and new:
        raise UserError(
            f"{source} has parameters named '{old[0]}', as the first layout named them, beside '{new[0]}': two checkpoints "
            "were merged there; restore one of them"
        )
    return bool(old)


def to_first(tree: Any) -> Any:
    """Returns the tree with the keys of its dicts renamed to the first layout's."""
    return _renamed(tree, _first)


def to_current(tree: Any) -> Any:
    """Returns a tree of the first layout with the keys of its dicts renamed to the current ones."""
    return _renamed(tree, _current)


def _current(name: str) -> str:
    return TURNS.sub(r"group\1", name) if TURNS.fullmatch(name) else name


def _first(name: str) -> str:
    return GROUPS.sub(r"turn\1", name) if GROUPS.fullmatch(name) else name


def _renamed(tree: Any, name: Callable[[str], str]) -> Any:
    """Renames the keys of all dicts in the tree. They may be nested in other nodes: an optimizer's state has them in tuples."""
    if isinstance(tree, dict):
        return {name(key): _renamed(below, name) for key, below in tree.items()}
    return jax.tree.map(lambda x: _renamed(x, name) if isinstance(x, dict) else x, tree, is_leaf=lambda x: isinstance(x, dict))


def described(tree: Any, *, dtypes: bool = True) -> dict[str, str]:
    """Returns `{"params/embed/tokens/embedding": "float32[512, 64]"}`, or `"[512, 64]"` without `dtypes`, for a tree of
    arrays or array metadata."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): f"{leaf.dtype if dtypes else ''}{list(leaf.shape)}"
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
        if hasattr(leaf, "shape")
    }


def differences(saved: dict[str, str], wanted: dict[str, str]) -> str:
    """Returns a text with the first three differences between two results of `described`, or "" if they are equal.

    `saved` may have names of the first layout.
    """
    saved = {current_path(name): text for name, text in saved.items()}
    wrong = [
        f"{name}: saved {saved.get(name, 'nothing')}, wanted {wanted.get(name, 'nothing')}"
        for name in sorted(saved.keys() | wanted.keys())
        if saved.get(name) != wanted.get(name)
    ]
    return "; ".join(wrong[:3]) + (f" (and {len(wrong) - 3} more)" if len(wrong) > 3 else "")
