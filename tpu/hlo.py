"""Compiled HLO text (`compiled.as_text()`) as data: computations of instructions, and how often each runs. No jax.

    %while.1 = (s32[], bf16[2,256]) while(%tuple.1), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"24"}}
    %fusion.3 = bf16[8,128]{1,0:T(8,128)(2,1)S(1)} fusion(%get-tuple-element.1), kind=kLoop, calls=%fused_computation.3

Both an instruction in a fusion and one in a loop are found by walking from the entry; the loop's turns multiply.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

FAST = 1  # XLA's number of a TPU's on-chip memory; 0 is HBM


@dataclass(frozen=True)
class Array:
    dtype: str
    shape: tuple[int, ...]
    layout: str = ""  # "1,0:T(8,128)(2,1)S(1)": axes from the fastest on, tiles, memory space

    @property
    def bytes(self) -> int:
        """Of its numbers alone."""
        return -(-math.prod(self.shape) * bits(self.dtype) // 8)

    @property
    def held(self) -> int:
        """Bytes of HBM that it takes, its two fastest axes filled up to whole tiles; 0 on the chip, or beside it."""
        if re.search(r"S\([1-9]", self.layout):
            return 0
        tile = re.search(r"T\(([\d,]+)\)", self.layout)
        order = [int(axis) for axis in self.layout.partition(":")[0].split(",") if axis]
        sizes = list(self.shape)
        if tile and len(order) == len(sizes):
            for axis, size in zip(order, reversed(tile[1].split(",")), strict=False):
                sizes[axis] = -(-sizes[axis] // int(size)) * int(size)
        return -(-math.prod(sizes) * bits(self.dtype) // 8)


def bits(dtype: str) -> int:
    """`bf16` -> 16, `f8e4m3fn` -> 8, `pred` -> 8; tokens hold nothing."""
    number = re.search(r"\d+", dtype)
    return int(number[0]) if number else 8 * (dtype == "pred")


@dataclass(frozen=True)
class Instruction:
    computation: str  # that it stands in
    name: str
    opcode: str
    arrays: tuple[Array, ...]  # of its result, tuples flattened
    operands: tuple[str, ...]
    rest: str  # what stands behind the operands
    root: bool = False
    literal: str = ""  # of a constant or a parameter: what stands between the parentheses

    def attribute(self, pattern: str) -> str | None:
        """The first group of the first match in what stands behind the operands."""
        found = re.search(pattern, self.rest)
        return found[1] if found else None

    @cached_property
    def op_name(self) -> str:
        """The place in the traced program: "jit(step)/jvp(Transformer.hidden)/..."; empty where XLA lost it."""
        return self.attribute(r'op_name="([^"]*)"') or ""

    @cached_property
    def called(self) -> tuple[str, ...]:
        """Computations that run where it stands. What a reduction applies to each number is not among them."""
        if self.opcode not in ("fusion", "call", "conditional", "async-start", "custom-call"):
            return ()
        names = re.findall(r"(?:calls|_computations?|to_apply)=(\{[^}]*\}|%[\w.-]+)", self.rest)
        return tuple(name for part in names for name in re.findall(r"%([\w.-]+)", part))


@dataclass(frozen=True)
class Step:
    """An instruction that runs `times` times where the walk has come to it."""

    instruction: Instruction
    times: int
    fused: bool


@dataclass(frozen=True)
class Program:
    computations: dict[str, list[Instruction]]
    entry: str

    @cached_property
    def named(self) -> dict[str, dict[str, Instruction]]:
        """The instructions of each computation by their names."""
        return {name: {i.name: i for i in inside} for name, inside in self.computations.items()}

    def inputs(self, i: Instruction) -> list[Instruction]:
        """The instructions whose results `i` reads."""
        return [self.named[i.computation][name] for name in i.operands if name in self.named[i.computation]]

    def root(self, computation: str) -> Instruction:
        return next((i for i in self.computations[computation] if i.root), self.computations[computation][-1])

    def walk(self) -> Iterator[Step]:
        """Every instruction wherever it runs, callers before what they call."""
        return self._walk(self.entry, 1, False)

    def _walk(self, name: str, times: int, fused: bool) -> Iterator[Step]:
        for i in self.computations[name]:
            yield Step(i, times, fused)
            if i.opcode == "while":
                for part in ("condition", "body"):
                    yield from self._walk(str(i.attribute(rf"{part}=%([\w.-]+)")), self.turns(i) * times, fused)
            for callee in i.called:
                yield from self._walk(callee, times, fused or i.opcode == "fusion")

    def turns(self, loop: Instruction) -> int:
        """Of a loop: what XLA knows, or the one constant that its condition compares a counter from 0 with; else 1.

        Loops of `lax.scan`, `map` and `fori_loop` count so, and those in which libtpu sends parts of an operand round
        beside a product, two parts a turn. Of a loop whose end depends on data nobody can say it.
        """
        known = loop.attribute(r"known_trip_count\W+n\W+(\d+)")
        if known:
            return int(known)
        condition = self.computations[str(loop.attribute(r"condition=%([\w.-]+)"))]
        inner = [i for c in condition for name in c.called for i in self.computations[name]]
        limits = {i.literal for i in condition + inner if i.opcode == "constant" and re.fullmatch(r"\d+", i.literal)}
        ways = {i.attribute(r"direction=(\w+)") for i in condition + inner if i.opcode == "compare"}
        if len(limits) != 1 or len(ways) != 1 or not ways <= {"LT", "NE", "LE"}:
            return 1
        places = [i.attribute(r"index=(\d+)") for i in condition if i.opcode == "get-tuple-element"]
        step = self._step(loop, int(places[0] or 0)) if len(places) == 1 else 1
        return -(-(int(limits.pop()) + (ways == {"LE"})) // step)

    def _step(self, loop: Instruction, place: int) -> int:
        """What a turn adds to the counter at this place of the loop's tuple; 1 where it cannot be read."""
        body = str(loop.attribute(r"body=%([\w.-]+)"))
        names = self.root(body).operands
        counter = self.named[body].get(names[place]) if place < len(names) else None
        added = self.inputs(counter) if counter is not None and counter.opcode == "add" else []
        steps = [int(i.literal) for i in added if i.opcode == "constant" and re.fullmatch(r"[1-9]\d*", i.literal)]
        return steps[0] if len(steps) == 1 else 1


# The type is whatever stands before the first lower-case word with a parenthesis: "f32[8]{0:T(8)}", "(f32[], s32[2])".
LINE = re.compile(r"^\s+(ROOT )?%?([\w.-]+) = (.*?) ?\b([a-z][a-z0-9-]*)\((.*)$")
ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\](?:\{([^}]*)\})?")


def parse(text: str) -> Program:
    computations: dict[str, list[Instruction]] = {}
    current, entry = "", ""
    for line in _joined(text):
        if line[:1] not in (" ", "}") and line.endswith("{"):
            head = re.match(r"(ENTRY )?%?([\w.-]+)", line)
            assert head
            current = head[2]
            computations[current] = []
            entry = current if head[1] else entry
        elif current and (found := LINE.match(line)):
            computations[current].append(_instruction(current, *found.groups()))
    return Program(computations, entry)


def _joined(text: str) -> Iterator[str]:
    """Lines, each instruction on one: what describes a kernel is written over several.

    Of a computation that runs beside the main one, the last line is `}, execution_thread="sparsecore"`.
    """
    whole = ""
    for line in text.splitlines():
        begins = line.startswith("  ") and LINE.match(line) is not None
        if begins or line == "}" or line.startswith("}, execution_thread=") or not whole.startswith(" "):
            yield whole
            whole = line
        else:
            whole += " " + line.strip()
    yield whole


def _instruction(computation: str, root: str | None, name: str, kind: str, opcode: str, behind: str) -> Instruction:
    depth, end = 1, len(behind)
    for match in re.finditer(r"[()]", behind):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            end = match.start()
            break
    between = behind[:end]
    arrays = tuple(arrays_of(kind))
    literal = between if opcode in ("constant", "parameter") else ""
    operands = () if literal else tuple(re.findall(r"%([\w.-]+)", between))
    return Instruction(computation, name, opcode, arrays, operands, behind[end + 1 :], bool(root), literal)


def arrays_of(kind: str) -> list[Array]:
    """`(f32[8,4]{1,0}, s32[])` -> both arrays."""
    sizes = lambda text: tuple(int(n) for n in text.split(",") if n)
    return [Array(dtype, sizes(shape), layout or "") for dtype, shape, layout in ARRAY.findall(kind)]
