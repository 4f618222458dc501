"""What a compiled program does on each device, read from its HLO: products, traffic with HBM, what waits for the backward pass.

XLA's own analysis (`compiled.cost_analysis()`) counts what stands in a loop once; here the loops' turns count.
"""

import math
import re
from collections.abc import Iterator

import numpy as np

from tpu.hlo import Array, Instruction, Program

# Products of the queries' size in each of splash attention's kernels, which say nothing to XLA: queries with keys and weights
# with values; in the backward pass the former again, and two or three for the gradients (jax.experimental.pallas.ops.tpu).
KERNELS = {"fwd": 2, "dq": 3, "dkv": 4}


def executed_flops(program: Program, xla: float, *, pairs: float = 1.0) -> float:
    """FLOPs of a device: XLA's count, by so much larger as the products run more often than they stand in the program.

    Kernels are not in XLA's count. They are added: of their pairs of queries and keys the share `pairs`, which a mask
    leaves of all.
    """
    each = [(product_flops(program, step.instruction), step.times) for step in program.walk()]
    once = sum(flops for flops, _ in each)
    turns = sum(flops * times for flops, times in each) / once if once else 1.0
    kernels = sum(_kernel_flops(program, step.instruction) * step.times for step in program.walk())
    return xla * turns + kernels * pairs


def _kernel_flops(program: Program, i: Instruction) -> float:
    """Of a kernel of splash attention over all pairs: queries [B, N, T, H] and keys [B, K, S, H] are what it reads first."""
    found = re.search(r"splash_m[hq]a_(fwd|dq|dkv)", i.name) if i.opcode == "custom-call" else None
    if found is None:
        return 0.0
    queries, keys = [a for x in program.inputs(i) for a in x.arrays[:1] if a.dtype[:1] in "bf" and len(a.shape) > 2][:2]
    return 2.0 * KERNELS[found[1]] * math.prod(queries.shape) * keys.shape[-2]


def product_flops(program: Program, i: Instruction) -> float:
    """FLOPs of a dot, or of a convolution, which is what a TPU makes of a dot; of all else 0."""
    if i.opcode not in ("dot", "convolution"):
        return 0.0
    left, right = (x.arrays[0] for x in program.inputs(i))
    if i.opcode == "dot":
        axes = [int(n) for n in (i.attribute(r"lhs_contracting_dims=\{([\d,]*)\}") or "").split(",") if n]
        return 2.0 * math.prod(i.arrays[0].shape) * math.prod(left.shape[axis] for axis in axes)
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", i.rest)
    assert labels, i
    sizes = [dict(zip(l, a.shape, strict=True)) for l, a in zip(labels.groups(), (left, right, i.arrays[0]), strict=True)]
    lhs, rhs, out = sizes
    pairs = math.prod(_pairs(i, k, lhs[str(k)], rhs[str(k)], out[str(k)]) for k in range(len(lhs) - 2))
    return 2.0 * out["b"] * out["f"] * rhs["i"] * pairs


def _pairs(i: Instruction, k: int, size: int, window: int, out: int) -> int:
    """Places of the output and the window, along spatial axis k, that meet a number and no padding and no hole."""

    def setting(name: str, default: str) -> str:
        found = i.attribute(rf"window=\{{[^}}]*\b{name}=([\dx_-]+)")
        return found.split("x")[k] if found else default

    low = int(setting("pad", "0_0").split("_")[0])
    stride, holes, spread = (int(setting(name, "1")) for name in ("stride", "lhs_dilate", "rhs_dilate"))
    at = np.arange(out)[:, None] * stride - low + np.arange(window) * spread
    return int(((at >= 0) & (at <= (size - 1) * holes) & (at % holes == 0)).sum())


# Instructions that move nothing themselves: names of what is there, ends of what was begun, loops whose bodies count.
STILL = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "iota", "after-all", "partition-id", "replica-id"),
    *("while", "conditional", "call", "async-start", "async-update", "async-done", "optimization-barrier"),
    *("copy-done", "slice-done", "all-gather-done", "all-reduce-done", "collective-permute-done", "send-done", "recv-done"),
}
SLICES = ("dynamic-slice", "slice", "gather")


def hbm_traffic(program: Program) -> float:
    """Bytes that a device reads from HBM and writes to it: operands and results of all that runs outside of fusions.

    Of an array of which a slice is read or replaced only the slice counts; what lies on the chip does not.
    """
    return float(sum(step.times * _moved(program, step.instruction) for step in program.walk() if not step.fused))


def _moved(program: Program, i: Instruction) -> int:
    inputs = program.inputs(i)
    if i.opcode in STILL:
        return 0
    if i.opcode == "fusion":
        return _moved_by_fusion(program, i, inputs)
    written = _arrives(i, len(inputs))
    if i.opcode in (*SLICES, "slice-start"):
        return written[0].held + (written[0].bytes if inputs[0].arrays[0].held else 0)
    if i.opcode == "dynamic-update-slice":
        return inputs[1].arrays[0].held + (inputs[1].arrays[0].bytes if i.arrays[0].held else 0)
    return sum(a.held for a in written) + sum(a.held for x in inputs for a in x.arrays[:1])


def _arrives(i: Instruction, inputs: int) -> tuple[Array, ...]:
    """Of an instruction's result what it makes: where it begins something that goes on, what goes in stands there as well."""
    if i.opcode == "copy-start":
        return i.arrays[:1]  # (what comes, what goes, a context)
    if i.opcode.endswith("-start"):
        return i.arrays[inputs:] or i.arrays  # (what goes, what comes, a context), or what comes alone
    return i.arrays


def _moved_by_fusion(program: Program, i: Instruction, inputs: list[Instruction]) -> int:
    """A collective that goes on beside the products of several fusions is handed through all: it counts where it starts."""
    root = program.root(i.called[0])
    if "AsyncCollectiveStart" in root.rest:
        return sum(a.held for a in i.arrays)
    if "AsyncCollectiveDone" in root.rest:
        return 0
    moved = 0
    for k, source in enumerate(inputs):
        moved += _read(program, i.called[0], k, sum(a.held for a in source.arrays[:1]))
    results = program.inputs(root) if root.opcode == "tuple" else [root]
    return moved + sum(_written(program, result, array.held) for result, array in zip(results, i.arrays, strict=False))


def _read(program: Program, computation: str, k: int, whole: int) -> int:
    """Bytes that a fused computation reads of its parameter `k`, which has `whole`."""
    inside = program.computations[computation]
    names = [i.name for i in inside if i.opcode == "parameter" and i.literal == str(k)]
    total = 0
    for user in inside:  # users stand behind what they use, so a bitcast's name is known when its users come
        for place in [place for place, name in enumerate(user.operands) if name in names]:
            if user.opcode == "bitcast":
                names.append(user.name)
            elif user.opcode in SLICES and place == 0:
                total += user.arrays[0].bytes
            elif user.opcode == "fusion":
                total += _read(program, user.called[0], place, whole)
            elif not (user.opcode == "dynamic-update-slice" and place == 0) and not _handed_on(user):
                total += whole
    return min(whole, total)


def _handed_on(i: Instruction) -> bool:
    return i.opcode in ("tuple", "parameter") or "chain_id=" in i.rest


def _written(program: Program, result: Instruction, whole: int) -> int:
    """Bytes that a fused computation writes of a result, which has `whole`."""
    if _handed_on(result):
        return 0
    if result.opcode == "dynamic-update-slice":
        return min(whole, program.inputs(result)[1].arrays[0].bytes)
    if result.opcode == "bitcast":
        return _written(program, program.inputs(result)[0], whole)
    if result.opcode == "fusion":
        return _written(program, program.root(result.called[0]), whole)
    return whole


# ------------------------------------------------------------------------------------------------------- activations


def activations(program: Program) -> int:
    """Bytes of HBM that the forward pass keeps for the backward pass: what the one makes and the other reads.

    JAX writes into each instruction's metadata which pass it is of: `jvp(...)` forward, `transpose(...)` backward. A buffer
    that an instruction of the first writes, and one of the second in the same computation reads, has waited between them:
    the stacks that scanned layers leave as well as the results of unrolled ones. Each counts once, tiles whole. What XLA
    kept on the chip takes no HBM and does not count, nor do the parameters, whoever reads them. What the loss has made
    of the gradient in its forward pass (`lm.losses.chunked`) counts: that of the hidden vectors, and of an unrolled model the
    head's.
    """
    kept: dict[tuple[str, str, int], int] = {}
    seen = set()
    for step in program.walk():
        i = step.instruction
        if step.fused or (i.computation, i.name) in seen or _pass(i) != "transpose":
            continue
        seen.add((i.computation, i.name))
        for source, index, held in _sources(program, i):
            if _pass(source) == "jvp":
                key = (source.computation, source.name, index)
                kept[key] = max(kept.get(key, 0), held)
    return sum(kept.values())


def _pass(i: Instruction) -> str | None:
    found = re.search(r"(?:^|/)(jvp|transpose)\(", i.op_name)
    return found[1] if found else None


NAMES = ("bitcast", "copy", "copy-start", "copy-done", "optimization-barrier")  # the same numbers, perhaps elsewhere


def _sources(program: Program, i: Instruction) -> Iterator[tuple[Instruction, int, int]]:
    """(maker, which of its results, bytes that wait in HBM) of all that `i` reads, through tuples and copies."""
    pending = [(x, 0, 0) for x in program.inputs(i)]
    while pending:
        x, index, held = pending.pop()
        if x.opcode == "tuple":
            pending += [(y, 0, 0) for y in program.inputs(x)]
        elif x.opcode in NAMES:
            pending += [(y, index, max(held, x.arrays[0].held)) for y in program.inputs(x)[:1]]
        elif x.opcode == "get-tuple-element":
            index = int(x.attribute(r"index=(\d+)") or 0)
            for maker in program.inputs(x):
                through = _carried(program, maker, index)
                pending.append((through, 0, held)) if through else pending.append((maker, index, max(held, x.arrays[0].held)))
        else:
            yield x, index, max(held, x.arrays[index].held if index < len(x.arrays) else 0)


def _carried(program: Program, loop: Instruction, index: int) -> Instruction | None:
    """What went into a loop at this place of its tuple, if the loop hands it through as it is."""
    if loop.opcode != "while":
        return None
    body = str(loop.attribute(r"body=%([\w.-]+)"))
    result = program.inputs(program.root(body))
    kept = result[index] if index < len(result) else None
    if kept is None or kept.opcode != "get-tuple-element" or f"index={index}" != kept.rest.strip(", ").split(",")[0].strip():
        return None
    if program.inputs(kept)[0].opcode != "parameter":
        return None
    start = program.inputs(loop)[0]
    return program.inputs(start)[index] if start.opcode == "tuple" else None
