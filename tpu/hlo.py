"""Parses compiled HLO text (`compiled.as_text()`) into computations and instructions, and counts how often each runs. No jax.

    %while.1 = (s32[], bf16[2,256]) while(%tuple.1), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"24"}}
    %fusion.3 = bf16[8,128]{1,0:T(8,128)(2,1)S(1)} fusion(%get-tuple-element.1), kind=kLoop, calls=%fused_computation.3

`Program.walk` visits every instruction from the entry on, also those in fusions and loops; trip counts of loops multiply.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Array:
    dtype: str
    shape: tuple[int, ...]
    layout: str = ""  # "1,0:T(8,128)(2,1)S(1)": axes from the fastest on, tiles, memory space

    @property
    def bytes(self) -> int:
        """Size without padding."""
        return -(-math.prod(self.shape) * bits(self.dtype) // 8)

    @property
    def on_host(self) -> bool:
        """Whether it lies in the host's memory."""
        return "S(5)" in self.layout

    @property
    def hbm_bytes(self) -> int:
        """Bytes of HBM that it occupies, with its fastest axes padded to tiles; 0 in on-chip or host memory."""
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
    """`bf16` -> 16, `f8e4m3fn` -> 8, `pred` -> 8; `token` -> 0."""
    number = re.search(r"\d+", dtype)
    return int(number[0]) if number else 8 * (dtype == "pred")


@dataclass(frozen=True)
class Instruction:
    computation: str  # name of the computation that contains it
    name: str
    opcode: str
    arrays: tuple[Array, ...]  # its result, tuples flattened
    operands: tuple[str, ...]  # names
    rest: str  # the text after the operands: attributes and metadata
    root: bool = False
    literal: str = ""  # of a constant or a parameter: the text between the parentheses

    def attribute(self, pattern: str) -> str | None:
        """The first group of the first match of `pattern` in `rest`; None without a match."""
        found = re.search(pattern, self.rest)
        return found[1] if found else None

    @cached_property
    def op_name(self) -> str:
        """Its origin in the traced program: "jit(step)/jvp(Transformer.hidden)/..."; empty if XLA lost it."""
        return self.attribute(r'op_name="([^"]*)"') or ""

    @cached_property
    def called(self) -> tuple[str, ...]:
        """The computations that it runs, without those that a reduction applies per element."""
        if self.opcode not in ("fusion", "call", "conditional", "async-start", "custom-call"):
            return ()
        names = re.findall(r"(?:calls|_computations?|to_apply)=(\{[^}]*\}|%[\w.-]+)", self.rest)
        return tuple(name for part in names for name in re.findall(r"%([\w.-]+)", part))


@dataclass(frozen=True)
class Step:
    """A visit of `Program.walk`: an instruction that runs `times` times in this context."""

    instruction: Instruction
    times: int
    fused: bool  # inside a fusion


@dataclass(frozen=True)
class Program:
    computations: dict[str, list[Instruction]]
    entry: str

    @cached_property
    def named(self) -> dict[str, dict[str, Instruction]]:
        """Computation -> name -> instruction."""
        return {name: {i.name: i for i in inside} for name, inside in self.computations.items()}

    def inputs(self, i: Instruction) -> list[Instruction]:
        """The operands of `i`."""
        return [self.named[i.computation][name] for name in i.operands if name in self.named[i.computation]]

    def root(self, computation: str) -> Instruction:
        return next((i for i in self.computations[computation] if i.root), self.computations[computation][-1])

    def walk(self) -> Iterator[Step]:
        """Every instruction in every context in which it runs, callers before callees."""
        return self._walk(self.entry, 1, False)

    def _walk(self, name: str, times: int, fused: bool) -> Iterator[Step]:
        for i in self.computations[name]:
            yield Step(i, times, fused)
            if i.opcode == "while":
                for part in ("condition", "body"):
                    yield from self._walk(str(i.attribute(rf"{part}=%([\w.-]+)")), self.trip_count(i) * times, fused)
            for callee in i.called:
                yield from self._walk(callee, times, fused or i.opcode == "fusion")

    def trip_count(self, loop: Instruction) -> int:
        """How often a loop runs: XLA's known_trip_count, or the one constant that its condition compares a counter with; else
        1.

        This covers `lax.scan`, `map` and `fori_loop`, and libtpu's loops that pass parts of an operand around a ring during a
        matmul, two parts per iteration. The trip count of a loop that ends by its data is unknown, and counts as 1.
        """
        known = loop.attribute(r"known_trip_count\W+n\W+(\d+)")
        if known:
            return int(known)
        condition = self.computations[str(loop.attribute(r"condition=%([\w.-]+)"))]
        inner = [i for c in condition for name in c.called for i in self.computations[name]]
        limits = {i.literal for i in condition + inner if i.opcode == "constant" and re.fullmatch(r"\d+", i.literal)}
        directions = {i.attribute(r"direction=(\w+)") for i in condition + inner if i.opcode == "compare"}
        if len(limits) != 1 or len(directions) != 1 or not directions <= {"LT", "NE", "LE"}:
            return 1
        indices = [i.attribute(r"index=(\d+)") for i in condition if i.opcode == "get-tuple-element"]
        step = self._counter_step(loop, int(indices[0] or 0)) if len(indices) == 1 else 1
        return -(-(int(limits.pop()) + (directions == {"LE"})) // step)

    def _counter_step(self, loop: Instruction, index: int) -> int:
        """The constant that each iteration adds to the counter at `index` of the loop's tuple; 1 if it cannot be determined."""
        body = str(loop.attribute(r"body=%([\w.-]+)"))
        names = self.root(body).operands
        counter = self.named[body].get(names[index]) if index < len(names) else None
        added = self.inputs(counter) if counter is not None and counter.opcode == "add" else []
        steps = [int(i.literal) for i in added if i.opcode == "constant" and re.fullmatch(r"[1-9]\d*", i.literal)]
        return steps[0] if len(steps) == 1 else 1


# The type is everything before the first lower-case word with a parenthesis: "f32[8]{0:T(8)}", "(f32[], s32[2])".
LINE = re.compile(r"^\s+(ROOT )?%?([\w.-]+) = (.*?) ?\b([a-z][a-z0-9-]*)\((.*)$")
ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\](?:\{([^}]*)\})?")


def parse(text: str) -> Program:
    """Parses the text of a compiled module."""
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
    """The lines of the text, with each instruction joined to one line: the description of a kernel spans several.

    A computation on another core ends with `}, execution_thread="sparsecore"` instead of `}`.
    """
    joined = ""
    for line in text.splitlines():
        begins = line.startswith("  ") and LINE.match(line) is not None
        if begins or line == "}" or line.startswith("}, execution_thread=") or not joined.startswith(" "):
            yield joined
            joined = line
        else:
            joined += " " + line.strip()
    yield joined


def _instruction(computation: str, root: str | None, name: str, kind: str, opcode: str, tail: str) -> Instruction:
    """`tail`: the text after the opening parenthesis."""
    depth, end = 1, len(tail)
    for match in re.finditer(r"[()]", tail):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            end = match.start()
            break
    arguments = tail[:end]
    arrays = tuple(arrays_of(kind))
    literal = arguments if opcode in ("constant", "parameter") else ""
    operands = () if literal else tuple(re.findall(r"%([\w.-]+)", arguments))
    return Instruction(computation, name, opcode, arrays, operands, tail[end + 1 :], bool(root), literal)


def arrays_of(kind: str) -> list[Array]:
    """The arrays of a type: `(f32[8,4]{1,0}, s32[])` -> two."""
    sizes = lambda text: tuple(int(n) for n in text.split(",") if n)
    return [Array(dtype, sizes(shape), layout or "") for dtype, shape, layout in ARRAY.findall(kind)]
