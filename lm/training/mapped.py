"""Parameters of a model from those of another architecture, stack by stack (`train.init_map`)."""

from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import NamedSharding, PartitionSpec

from lm.errors import UserError
from lm.models.transformer import abstract_params
from lm.saved import Saved

Path = tuple[str, ...]


def params(saved: Saved, target: Any, first: Any, stacks: Mapping[Any, str], fresh: Collection[str] = ()) -> dict[str, Any]:
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


def _all(saved: Saved, wanted: dict[Path, Any], uses: dict[Path, Path], known: dict[Path, Any]) -> dict[Path, jax.Array]:
    """All parameters of the saved model, those that are used with dtype and sharding of their use."""
    mesh = next(iter(wanted.values())).sharding.mesh
    whole = NamedSharding(mesh, PartitionSpec())

    def abstract(path: Path, x: Any) -> jax.ShapeDtypeStruct:
        use = wanted[uses[path]] if path in uses else x
        return jax.ShapeDtypeStruct(x.shape, use.dtype, sharding=use.sharding if path in uses else whole)

    return flatten_dict(saved.params(unflatten_dict({path: abstract(path, x) for path, x in known.items()})))
