"""The collectives of a compiled program: along which mesh axes they communicate, and how many bytes they send. No jax.

    for c in collectives(compiled.as_text(), {"data": 2, "fsdp": 4}):
        print(c.kind, c.axes, c.shape, c.dtype, c.bytes, c.times)      # all-gather ('fsdp',) (4096, 1024) bf16 ...

Bytes are those that each device sends (it receives as many), by bandwidth-optimal algorithms (rings; Patarasuk and Yuan,
"Bandwidth optimal all-reduce algorithms", 2009), for a group of n devices and a full array of s bytes:

    all-gather            (n-1)/n s      s: the output
    reduce-scatter        (n-1)/n s      s: the input
    all-reduce           2(n-1)/n s      a reduce-scatter, then an all-gather
    all-to-all            (n-1)/n s
    collective-permute            s      for a device that sends to another

For a pod of several slices, XLA compiles a program per slice. Its device groups are within a slice, and data for other slices
is handed to the host (`send` with a megascale transfer type). Those transfers are along the mesh's first axis, `slice`.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tpu import hlo

SENT = {
    "all-gather": lambda n: (n - 1) / n,
    "reduce-scatter": lambda n: (n - 1) / n,
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1.0,
}


@dataclass(frozen=True)
class Collective:
    """One array of a collective. An all-reduce of several arrays is several of these with the same `name`."""

    kind: str  # a key of SENT
    axes: tuple[str, ...]  # mesh axes along which devices communicate, in the mesh's order
    shape: tuple[int, ...]  # of the full array: the output of a gather, the input of a reduce-scatter
    dtype: str  # XLA's name: "bf16"
    bytes: int  # sent per device, over all `times`
    times: int  # how often it runs in one run of the program
    name: str  # of the instruction
    op_name: str = ""  # its origin in the traced program


def collectives(text: str, mesh_axes: Mapping[str, int]) -> list[Collective]:
    """The collectives of a program, from its HLO text. Groups of one device send nothing and are left out.

    mesh_axes: axis -> size, in the mesh's order.

    libtpu repeats an asynchronous collective, with its `chain_id`, in every fusion from the one where it starts to the one
    where it ends, also within loops; it is counted where it starts. An all-reduce of which a fusion keeps only a part is
    counted as a reduce-scatter.
    """
    found: list[Collective] = []
    program, devices = hlo.parse(text), math.prod(mesh_axes.values())
    if "_xla_megascale_transfer_type" in text:
        devices //= next(iter(mesh_axes.values()))
    for step in program.walk():
        i = step.instruction
        kind = i.opcode.removesuffix("-start")
        if i.opcode == "send" and (transfer := i.attribute(r'_xla_megascale_transfer_type="(\w+)"')):
            found.append(_between_slices(i, transfer, step.times, mesh_axes))
        if kind not in SENT:
            continue
        if "chain_id=" in i.rest and "AsyncCollectiveStart" not in program.root(i.computation).rest:
            continue
        if kind == "all-reduce" and "all-reduce-scatter" in i.computation:
            kind = "reduce-scatter"
        groups = device_groups(i.rest, devices)
        axes = axes_of(groups, mesh_axes)
        if not axes:
            continue
        for array in _full_arrays(i, kind, groups.shape[1]):
            size = int(array.bytes * SENT[kind](groups.shape[1])) * step.times
            found.append(Collective(kind, axes, array.shape, array.dtype, size, step.times, i.name, i.op_name))
    return found


def _between_slices(i: hlo.Instruction, transfer: str, times: int, mesh_axes: Mapping[str, int]) -> Collective:
    """The collective that a `send` with megascale transfer type `transfer` is part of."""
    axis, n = next(iter(mesh_axes.items()))
    kind = {"ONE_TO_ONE": "collective-permute"}.get(transfer, transfer.lower().replace("_", "-"))
    array = i.arrays[0]
    full = array.bytes * (n if kind == "all-gather" else 1)
    return Collective(kind, (axis,), array.shape, array.dtype, int(full * SENT[kind](n)) * times, times, i.name, i.op_name)


def _full_arrays(i: hlo.Instruction, kind: str, n: int) -> list[hlo.Array]:
    """The full arrays of a collective over `n` devices: the outputs of a gather, the inputs of a reduce-scatter."""
    count = len(i.operands)
    arrays = list(i.arrays)
    if i.opcode in ("all-gather-start", "collective-permute-start"):  # (inputs, outputs, contexts)
        arrays = arrays[count : 2 * count]
    if i.opcode != "reduce-scatter":
        if kind == "all-to-all" and count > 1:  # one operand per device: slices of one array
            return [hlo.Array(arrays[0].dtype, (count, *arrays[0].shape))]
        return arrays[:count]
    axis = int(i.attribute(r"dimensions=\{(\d+)\}") or 0)
    grow = lambda shape: tuple(size * n if k == axis else size for k, size in enumerate(shape))
    return [hlo.Array(a.dtype, grow(a.shape)) for a in arrays]


def device_groups(rest: str, devices: int) -> np.ndarray:
    """int [groups, n]: the devices of each group, as indices into the flattened mesh, from the attributes of a collective.

    replica_groups={{0,1},{2,3}}                                     explicit; {}: all devices
    replica_groups=[2,4]<=[4,2]T(1,0)                                0..7 as [4,2], transposed, split into 2 groups of 4
    replica_groups=mesh['a'=4,'b'=2] {'a'}                           along axes of a mesh that XLA made up,
    replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a':(2)2}      with other device order, along part of an axis
    source_target_pairs={{0,1},{1,2}}                                pairs (source, target); (i, i) is left out
    """
    pairs = re.search(r"source_target_pairs=\{([{}\d, ]*)\}", rest)
    if pairs:
        return np.array([p for p in _lists(pairs[1]) if p[0] != p[1]], int).reshape(-1, 2)
    start = rest.find("replica_groups=")
    assert start >= 0, f"a collective without groups: {rest[:200]}"
    text = rest[start + len("replica_groups=") :]
    if text.startswith("mesh"):
        return _mesh_groups(text)
    if text.startswith("["):
        shape = re.match(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
        assert shape, f"unknown replica_groups: {text[:100]}"
        return _iota(shape[2], shape[3]).reshape(_ints(shape[1]))
    lists = _lists(text[: text.index("}}") + 1] if text.startswith("{{") else "")
    return np.array(lists or [list(range(devices))], int)


def _mesh_groups(text: str) -> np.ndarray:
    found = re.match(r"mesh\[([^\]]*)\](?:, device_ids=\((\S+)\))? \{([^}]*)\}", text)
    assert found, f"unknown replica_groups: {text[:100]}"
    sizes = {name: int(n) for name, n in re.findall(r"'?([\w.]+)'?=(\d+)", found[1])}
    ids = np.arange(math.prod(sizes.values()))
    if found[2]:
        order = re.fullmatch(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", found[2])
        ids = _iota(order[1], order[2]) if order else np.array(re.findall(r"\d+", found[2]), int)
    axes = {name: (int(pre or 1), int(n or 0)) for name, pre, n in re.findall(r"'?([\w.]+)'?(?::\((\d+)\)(\d+))?", found[3])}
    shape, inside = [], []  # each axis is split in three: before the grouped part, that part, after it
    for name, size in sizes.items():
        pre, n = axes.get(name, (size, 1))
        n = n or size
        inside.append(len(shape) + 1)
        shape += [pre, n, size // (pre * n)]
    outside = [k for k in range(len(shape)) if k not in inside]
    count = math.prod(shape[k] for k in inside)
    return ids.reshape(shape).transpose(outside + inside).reshape(-1, count)


def _iota(dims: str, order: str | None) -> np.ndarray:
    ids = np.arange(math.prod(_ints(dims))).reshape(_ints(dims))
    return (ids.transpose(_ints(order)) if order else ids).reshape(-1)


def _ints(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in text.split(","))


def _lists(text: str) -> list[list[int]]:
    return [list(_ints(part)) for part in re.findall(r"\{([\d,]+)\}", text.replace(" ", ""))]


def axes_of(groups: np.ndarray, mesh_axes: Mapping[str, int]) -> tuple[str, ...]:
    """The mesh axes along which the members of a group differ. `groups`: int [groups, n], indices into the flattened mesh."""
    if not groups.size:
        return ()
    coordinates = np.unravel_index(groups, tuple(mesh_axes.values()))
    return tuple(axis for axis, at in zip(mesh_axes, coordinates, strict=True) if (at != at[:, :1]).any())
