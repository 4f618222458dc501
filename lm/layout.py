"""Parameter names of earlier checkpoints, which are read by a table of old names and saved under the new ones.

    first layout                        now
    decoder/turns/block_0/...           decoder/groups/block_0/...
    decoder/turn_0/block_0/...          decoder/group_0/block_0/...

The names are those on disk, at any depth: in parameters, their average and the optimizer's moments alike. Orbax restores by
name, so a tree is restored under its names on disk and renamed afterwards.
"""

import re
from collections.abc import Callable, Iterable
from typing import Any

import jax

from lm.errors import UserError

TURNS, GROUPS = re.compile(r"turn(s|_\d+)"), re.compile(r"group(s|_\d+)")


def current_path(path: str) -> str:
    """The name of today for a path such as `"params/decoder/turn_0/block_0/ffn/up/kernel"`."""
    return "/".join(map(_current, path.split("/")))


def is_first(paths: Iterable[str], source: Any) -> bool:
    """Whether these paths of a saved tree have names of the first layout. UserError if it has both old and new names."""
    names = {name for path in paths for name in path.split("/")}
    old, new = (sorted(filter(pattern.fullmatch, names)) for pattern in (TURNS, GROUPS))
    if old and new:
        raise UserError(
            f"{source} has parameters named '{old[0]}', as the first layout named them, beside '{new[0]}': two checkpoints "
            "were merged there; bring back one of them"
        )
    return bool(old)


def to_first(tree: Any) -> Any:
    """The tree with the keys of its dicts as the first layout named them."""
    return _renamed(tree, _first)


def to_current(tree: Any) -> Any:
    """The tree of the first layout with the keys of today."""
    return _renamed(tree, _current)


def _current(name: str) -> str:
    return TURNS.sub(r"group\1", name) if TURNS.fullmatch(name) else name


def _first(name: str) -> str:
    return GROUPS.sub(r"turn\1", name) if GROUPS.fullmatch(name) else name


def _renamed(tree: Any, name: Callable[[str], str]) -> Any:
    """Renames the keys of dicts, which may be anywhere in the tree: an optimizer's state has them in tuples."""
    if isinstance(tree, dict):
        return {name(key): _renamed(below, name) for key, below in tree.items()}
    return jax.tree.map(lambda x: _renamed(x, name) if isinstance(x, dict) else x, tree, is_leaf=lambda x: isinstance(x, dict))


def described(tree: Any, *, dtypes: bool = True) -> dict[str, str]:
    """`{"params/embed/tokens/embedding": "float32[512,64]"}` for a tree of arrays or of array metadata."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): f"{leaf.dtype if dtypes else ''}{list(leaf.shape)}"
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
        if hasattr(leaf, "shape")
    }


def differences(saved: dict[str, str], wanted: dict[str, str]) -> str:
    """Up to three differences between two results of `described`, as text; empty where there are none. `saved` may have the
    names of the first layout."""
    saved = {current_path(name): text for name, text in saved.items()}
    wrong = [
        f"{name}: saved {saved.get(name, 'nothing')}, wanted {wanted.get(name, 'nothing')}"
        for name in sorted(saved.keys() | wanted.keys())
        if saved.get(name) != wanted.get(name)
    ]
    return "; ".join(wrong[:3]) + (f" (and {len(wrong) - 3} more)" if len(wrong) > 3 else "")
