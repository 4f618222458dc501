"""Parameters of a model from those of another architecture, stack by stack (`train.init_map`), or of one with more layers
(`train.init_layers`)."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import NamedSharding, PartitionSpec

from lm import config
from lm.errors import UserError
from lm.models.transformer import abstract_params
from lm.saved import Saved

Path = tuple[str, ...]
Layers = Mapping[Any, tuple[int, ...]]  # by stack


def thinned_model(model: config.Model, layers: Layers) -> config.Model:
    """The model with these layers of its stacks alone. UserError if it lacks one, or if a layer would be of another kind."""
    for name, taken in layers.items():
        stack: config.Stack | None = getattr(model, name)
        if stack is None:
            raise UserError(
                f"train.init_layers has layers of an {name}, and the model in train.init_from has none: leave it out"
            )
        if not taken or max(taken) >= stack.num_layers:
            raise UserError(
                f"train.init_layers={{{name!r}: {taken}}}: the {name} in train.init_from has layers 0 to "
                f"{stack.num_layers - 1}; give some of these"
            )
        thin, letters = replace(stack, num_layers=len(taken)), stack.letters()
        if [letters[layer] for layer in taken] != list(thin.letters()):
            raise UserError(
                f"train.init_layers={{{name!r}: {taken}}}: layers repeat the kinds {stack.pattern!r}, and these would not: "
                "take them in that order"
            )
        model = replace(model, **{name: thin})
    return model


@dataclass(frozen=True)
class Thinned:
    """A saved model of which only some layers are read: `folder`, `model` and `params` are as those of `Saved`."""

    saved: Saved
    layers: Layers

    @property
    def folder(self) -> epath.Path:
        return self.saved.folder

    @property
    def model(self) -> config.Model:
        return thinned_model(self.saved.model, self.layers)

    def params(self, target: Any) -> dict[str, Any]:
        """The parameters in the dtypes and shardings of `target`, whose names are those of `model`."""
        whole = flatten_dict(self.saved.params())  # NumPy arrays

        def placed(path: Path, x: Any) -> jax.Array:
            found = self._taken(whole, path).astype(x.dtype)
            return jax.make_array_from_callback(found.shape, x.sharding, lambda index: found[index])

        return unflatten_dict({path: placed(path, x) for path, x in flatten_dict(target).items()})

    def _taken(self, whole: dict[Path, Any], path: Path) -> Any:
        """The array at `path` of the thinned model, as a NumPy array."""
        taken = self.layers.get(path[0])
        if taken is None or not path[1].startswith("group"):
            return whole[path]
        stack: Any = getattr(self.saved.model, path[0])
        size, block = len(stack.pattern), int(path[2].removeprefix("block_"))
        if not stack.scan:
            group, block = divmod(taken[int(path[1].removeprefix("group_")) * size + block], size)
            return whole[(path[0], f"group_{group}", f"block_{block}", *path[3:])]
        return np.stack([whole[(*path[:2], f"block_{n % size}", *path[3:])][n // size] for n in taken[block::size]])


def params(
    saved: Saved | Thinned, target: Any, first: Any, stacks: Mapping[Any, str], fresh: Collection[str] = ()
) -> dict[str, Any]:
    """The parameters that `target` describes (abstract arrays with shardings): those of the saved model, where the stack `new`
    has those of the saved stack `stacks[new]`, and where that lacks one, as in `first`. Below the top-level names `fresh`, such
    as a new head, all are as in `first`.

    {"encoder": "decoder"}:
    encoder/groups/attention/query      is the saved  decoder/groups/attention/query
    embed/encoder_positions/embedding                 embed/decoder_positions/embedding

    UserError if a stack is in neither model, if the shapes of a parameter differ, or if one outside of the mapped stacks is
    not saved.
    """
    wanted, known = flatten_dict(target), flatten_dict(abstract_params(saved.model))
    for new, old in stacks.items():
        for name, tree, whose in ((new, wanted, "the model"), (old, known, f"the one in {saved.folder}")):
            if not any(path[0] == name for path in tree):
                raise UserError(f"train.init_map={{{new!r}: {old!r}}}: {whose} has no {name}; leave it out")
    source = {path: saved_path(path, stacks) for path in wanted}
    lacks = {path for path, old in source.items() if old not in known or path[0] in fresh}
    if outside := sorted("/".join(path) for path in lacks if path[0] not in (*stacks, *fresh)):
        raise UserError(
            f"the model in {saved.folder} has no {outside[0]}, which train.init_map says nothing of: take a model with the "
            "same parts beside the stacks"
        )
    for path, old in source.items():
        if path not in lacks and known[old].shape != wanted[path].shape:
            raise UserError(
                f"{'/'.join(path)} has shape {wanted[path].shape}, and {'/'.join(old)} in {saved.folder} has "
                f"{known[old].shape}: give both models the same sizes"
            )
    read = _all(saved, wanted, {old: path for path, old in source.items() if path not in lacks}, known)
    begun, taken, found = flatten_dict(first), set[Path](), {}
    for path, old in source.items():
        if path in lacks:
            found[path] = begun[path]
        else:  # two parameters must not be one array, which a step could not update in place
            found[path] = jnp.copy(read[old]) if old in taken else read[old]
            taken.add(old)
    return unflatten_dict(found)


def saved_path(path: Path, stacks: Mapping[Any, str]) -> Path:
    """The path in the saved model of the parameter at `path`."""
    if path[0] == "embed" and (stack := path[1].partition("_")[0]) in stacks:
        return path[0], path[1].replace(stack, stacks[stack], 1), *path[2:]
    return stacks.get(path[0], path[0]), *path[1:]


def _all(
    saved: Saved | Thinned, wanted: dict[Path, Any], uses: dict[Path, Path], known: dict[Path, Any]
) -> dict[Path, jax.Array]:
    """All parameters of the saved model, those that are used with dtype and sharding of their use."""
    mesh = next(iter(wanted.values())).sharding.mesh
    whole = NamedSharding(mesh, PartitionSpec())

    def abstract(path: Path, x: Any) -> jax.ShapeDtypeStruct:
        use = wanted[uses[path]] if path in uses else x
        return jax.ShapeDtypeStruct(x.shape, use.dtype, sharding=use.sharding if path in uses else whole)

    return flatten_dict(saved.params(unflatten_dict({path: abstract(path, x) for path, x in known.items()})))
