"""Costs of a compiled program per device, from its HLO: FLOPs, HBM traffic, and activations kept for the backward pass.

XLA's own analysis (`compiled.cost_analysis()`) counts the body of a loop once; here it counts by the loop's trip count.
"""

import math
import re
from collections.abc import Iterator

import numpy as np

from tpu.hlo import Array, Instruction, Program

# Matmuls in each kernel of splash attention, whose FLOPs XLA does not know: queries with keys and weights with values; in the
# backward pass the former again, and two or three for the gradients, or four in one kernel (jax.experimental.pallas.ops.tpu).
KERNELS = {"fwd": 2, "dq": 3, "dkv": 4}
FUSED = 5


def executed_flops(program: Program, xla: float, *, pairs: float = 1.0) -> float:
    """FLOPs per device: XLA's count `xla`, scaled by the ratio of matmul FLOPs with and without the loops' trip counts.

    XLA does not count the attention kernels. They are added, for the share `pairs` of query-key pairs that the mask leaves.
    """
    each = [(matmul_flops(program, step.instruction), step.times) for step in program.walk()]
    once = sum(flops for flops, _ in each)
    repeated = sum(flops * times for flops, times in each) / once if once else 1.0
    kernels = sum(_kernel_flops(program, step.instruction) * step.times for step in program.walk())
    return xla * repeated + kernels * pairs


def _kernel_flops(program: Program, i: Instruction) -> float:
    """FLOPs of a splash attention kernel over all query-key pairs, 0 for other instructions. Its first floating-point operands
    are queries [B, N, T, H] and keys [B, K, S, H]."""
    found = re.search(r"splash_m[hq]a_(fwd|dq|dkv)", i.name) if i.opcode == "custom-call" else None
    if found is None:
        return 0.0
    queries, keys = [a for x in program.inputs(i) for a in x.arrays[:1] if a.dtype[:1] in "bf" and len(a.shape) > 2][:2]
    fused = found[1] == "dkv" and any(len(a.shape) > len(queries.shape) for a in i.arrays)  # the queries' gradient, in parts
    return 2.0 * (FUSED if fused else KERNELS[found[1]]) * math.prod(queries.shape) * keys.shape[-2]


def matmul_flops(program: Program, i: Instruction) -> float:
    """FLOPs of a dot, or of a convolution, into which libtpu turns dots; 0 for other instructions."""
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
    """The number of pairs (output position, window position) along spatial axis k that read an input element, not padding or a
    hole of dilation."""

    def setting(name: str, default: str) -> str:
        found = i.attribute(rf"window=\{{[^}}]*\b{name}=([\dx_-]+)")
        return found.split("x")[k] if found else default

    low = int(setting("pad", "0_0").split("_")[0])
    stride, holes, spread = (int(setting(name, "1")) for name in ("stride", "lhs_dilate", "rhs_dilate"))
    at = np.arange(out)[:, None] * stride - low + np.arange(window) * spread
    return int(((at >= 0) & (at <= (size - 1) * holes) & (at % holes == 0)).sum())


# Instructions that move no data themselves: aliases, the ends of asynchronous ones, loops and calls, whose bodies count.
NO_TRAFFIC = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "iota", "after-all", "partition-id", "replica-id"),
    *("while", "conditional", "call", "async-start", "async-update", "async-done", "optimization-barrier"),
    *("copy-done", "slice-done", "all-gather-done", "all-reduce-done", "collective-permute-done", "send-done", "recv-done"),
}
SLICES = ("dynamic-slice", "slice", "gather")


def hbm_traffic(program: Program) -> float:
    """Bytes that a device reads from and writes to HBM: operands and results of all instructions outside of fusions.

    If only a slice of an array is read or replaced, only the slice counts. Arrays in on-chip memory do not count.
    """
    return float(sum(step.times * _moved(program, step.instruction) for step in program.walk() if not step.fused))


def host_traffic(program: Program) -> float:
    """Bytes that a device sends to the host's memory and reads from it, where `lm.config.Stack.offload` puts arrays."""
    return float(sum(step.times * _over_link(program, step.instruction) for step in program.walk() if not step.fused))


def _over_link(program: Program, i: Instruction) -> int:
    """Bytes that one instruction moves between the host's memory and the device's."""
    inputs = [x.arrays[0] for x in program.inputs(i) if x.arrays]
    kind = i.opcode.removesuffix("-start")
    if kind == "dynamic-update-slice" and inputs[0].on_host:
        return inputs[1].bytes
    if kind in SLICES and inputs[0].on_host:
        return _outputs(i, len(i.operands))[0].bytes
    if kind == "copy" and i.arrays[0].on_host != inputs[0].on_host:
        return i.arrays[0].bytes
    return 0


def _moved(program: Program, i: Instruction) -> int:
    """Bytes of HBM traffic of one instruction outside of fusions."""
    inputs = program.inputs(i)
    if i.opcode in NO_TRAFFIC:
        return 0
    if i.opcode == "fusion":
        return _moved_by_fusion(program, i, inputs)
    written = _outputs(i, len(inputs))
    if i.opcode in (*SLICES, "slice-start"):
        return written[0].hbm_bytes + (written[0].bytes if inputs[0].arrays[0].hbm_bytes else 0)
    if i.opcode == "dynamic-update-slice":
        return inputs[1].arrays[0].hbm_bytes + (inputs[1].arrays[0].bytes if i.arrays[0].hbm_bytes else 0)
    return sum(a.hbm_bytes for a in written) + sum(a.hbm_bytes for x in inputs for a in x.arrays[:1])


def _outputs(i: Instruction, inputs: int) -> tuple[Array, ...]:
    """The arrays that an instruction writes. The result of an asynchronous start also contains its inputs and a context."""
    if i.opcode == "copy-start":
        return i.arrays[:1]  # (output, input, context)
    if i.opcode.endswith("-start"):
        return i.arrays[inputs:] or i.arrays  # (inputs, outputs, context), or outputs alone
    return i.arrays


def _moved_by_fusion(program: Program, i: Instruction, inputs: list[Instruction]) -> int:
    """Bytes of HBM traffic of a fusion. A collective that overlaps several fusions is passed through all of them, and counts in
    the first."""
    root = program.root(i.called[0])
    if "AsyncCollectiveStart" in root.rest:
        return sum(a.hbm_bytes for a in i.arrays)
    if "AsyncCollectiveDone" in root.rest:
        return 0
    moved = 0
    for k, source in enumerate(inputs):
        moved += _read(program, i.called[0], k, sum(a.hbm_bytes for a in source.arrays[:1]))
    results = program.inputs(root) if root.opcode == "tuple" else [root]
    return moved + sum(_written(program, result, array.hbm_bytes) for result, array in zip(results, i.arrays, strict=False))


def _read(program: Program, computation: str, k: int, size: int) -> int:
    """Bytes that a fused computation reads of its parameter `k`, which has `size` bytes."""
    inside = program.computations[computation]
    names = [i.name for i in inside if i.opcode == "parameter" and i.literal == str(k)]
    total = 0
    for user in inside:  # instructions follow their operands, so a bitcast is in `names` before its users come
        for position in [position for position, name in enumerate(user.operands) if name in names]:
            if user.opcode == "bitcast":
                names.append(user.name)
            elif user.opcode in SLICES and position == 0:
                total += user.arrays[0].bytes
            elif user.opcode == "fusion":
                total += _read(program, user.called[0], position, size)
            elif not (user.opcode == "dynamic-update-slice" and position == 0) and not _passed_through(user):
                total += size
    return min(size, total)


def _passed_through(i: Instruction) -> bool:
    """Whether it only passes its operands on, as tuples and the parts of an asynchronous collective do."""
    return i.opcode in ("tuple", "parameter") or "chain_id=" in i.rest


def _written(program: Program, result: Instruction, size: int) -> int:
    """Bytes that a fused computation writes of a result, which has `size` bytes."""
    if _passed_through(result):
        return 0
    if result.opcode == "dynamic-update-slice":
        return min(size, program.inputs(result)[1].arrays[0].bytes)
    if result.opcode == "bitcast":
        return _written(program, program.inputs(result)[0], size)
    if result.opcode == "fusion":
        return _written(program, program.root(result.called[0]), size)
    return size


# ------------------------------------------------------------------------------------------------------- activations


def activations(program: Program) -> int:
    """Bytes of HBM per device that the forward pass keeps for the backward pass.

    JAX writes an instruction's pass into its metadata: `jvp(...)` forward, `transpose(...)` backward. A buffer counts if a
    forward instruction writes it and a backward instruction of the same computation reads it. That covers the stacked results
    of scanned layers as well as those of unrolled ones. Each buffer counts once, with its padding. Parameters and buffers in
    on-chip memory do not count. Gradients that the loss computes in its forward pass (`lm.losses.chunked`) do: those of the
    hidden vectors, and in an unrolled model those of the head.
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


# Their result equals their operand, possibly in other memory.
ALIASES = ("bitcast", "copy", "copy-start", "copy-done", "optimization-barrier")


def _sources(program: Program, i: Instruction) -> Iterator[tuple[Instruction, int, int]]:
    """Yields (producer, index of its result, bytes in HBM) of all that `i` reads, looking through tuples and copies."""
    pending = [(x, 0, 0) for x in program.inputs(i)]
    while pending:
        x, index, held = pending.pop()
        if x.opcode == "tuple":
            pending += [(y, 0, 0) for y in program.inputs(x)]
        elif x.opcode in ALIASES:
            pending += [(y, index, max(held, x.arrays[0].hbm_bytes)) for y in program.inputs(x)[:1]]
        elif x.opcode == "get-tuple-element":
            index = int(x.attribute(r"index=(\d+)") or 0)
            for producer in program.inputs(x):
                origin = _loop_invariant(program, producer, index)
                pending.append((origin, 0, held) if origin else (producer, index, max(held, x.arrays[0].hbm_bytes)))
        else:
            yield x, index, max(held, x.arrays[index].hbm_bytes if index < len(x.arrays) else 0)


def _loop_invariant(program: Program, loop: Instruction, index: int) -> Instruction | None:
    """The input of a loop at `index` of its tuple, if the loop passes it through unchanged; otherwise None."""
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
