"""Searches for the cheapest change of a config that fits the memory of its devices, here and ahead of time (`tpu.aot`). No jax.

Compiling is slow, so candidates are pruned by what is known without it: the size of their state, and the memory that earlier
candidates needed.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from lm import config

TRIES = 8  # candidates that are compiled
# Estimated factors on the time of a step, by which candidates are sorted. Full remat runs the forward pass twice (4 passes
# instead of 3); dots keeps the results of matmuls; each halving of a microbatch gathers the parameters once more.
KEPT = ", kept"  # after a policy: with something else that is kept
REMAT = {"none": 1.0, f"dots{KEPT}": 1.05, "dots": 1.1, f"full{KEPT}": 1.2, "full": 4 / 3}
COST = {"microbatches": 1.04, "fsdp": 1.02, "tensor": 1.15, "sequence": 1.2}  # for each doubling
MOST = 6  # doublings of the number of microbatches
HALVINGS = 5  # of the batch, and of the length of rows
SHORTEST = 32  # tokens of a row


@dataclass(frozen=True)
class Candidate:
    """A change of a config, its estimated cost, and what determines the size of its activations."""

    changes: Mapping[str, Any] = field(hash=False)  # "mesh.fsdp": 16
    slowdown: float  # estimated factor on the time of a step
    remat: str
    load: float  # rows of a microbatch per device, divided by the other axes that shard activations, which grow with it

    @property
    def flags(self) -> str:
        return flags(self.changes)


def flags(changes: Mapping[str, Any]) -> str:
    """The changes as flags that a shell takes."""
    value = lambda v: f'"{v}"' if isinstance(v, tuple) else v
    return " ".join(f"--config.{key}={value(v)}" for key, v in changes.items())


@dataclass(frozen=True)
class Outcome:
    """The memory of a compiled candidate, in bytes per device."""

    fits: bool
    peak: float
    state: float  # the part of the peak that is parameters, optimizer and batch


def candidates(mesh: Mapping[str, int], batch_size: int, microbatches: int, remat: Mapping[str, str]) -> list[Candidate]:
    """All sensible changes of remat, microbatches and mesh, cheapest first.

    mesh: axis -> size.
    remat: config key -> policy of each stack, {"model.decoder.remat": "none"}; {} where it cannot be changed.
    """
    found = []
    least = max((REMAT[r] for r in remat.values()), default=REMAT["full"])
    for sizes, moved in _meshes(mesh):
        rows = rows_of(sizes)
        for policy in (r for r in REMAT if REMAT[r] >= least and (KEPT not in r or {*remat.values()} == {r})):
            for doublings in range(MOST + 1):
                parts = microbatches * 2**doublings
                if batch_size % (parts * rows):
                    break
                changes: dict[str, Any] = {f"mesh.{axis}": n for axis, n in sizes.items() if n != mesh[axis]}
                changes |= {"train.microbatches": parts} if doublings else {}
                changes |= _with_policy(remat, policy)
                slowdown = REMAT[policy] / least * COST["microbatches"] ** doublings
                slowdown *= math.prod(COST[axis] ** n for axis, n in moved.items())
                if changes:
                    found.append(Candidate(changes, slowdown, policy, _load(sizes, batch_size, parts)))
    return sorted(found, key=lambda c: (c.slowdown, len(c.changes)))


def _with_policy(remat: Mapping[str, str], policy: str) -> dict[str, Any]:
    """The changes that give each stack this policy."""
    changes: dict[str, Any] = {}
    for key, now in remat.items():
        if now != policy:
            changes |= {key: policy} if now.removesuffix(KEPT) != policy else {}
            changes |= {f"{key.removesuffix('remat')}keep": ()} if KEPT in now else {}
    return changes


def rows_of(mesh: Mapping[str, int]) -> int:
    """How many devices split a batch's rows: the axes are those of `lm.sharding.ROWS`."""
    return math.prod(mesh[axis] for axis in ("slice", "data", "fsdp", "expert"))


def _load(mesh: Mapping[str, int], batch_size: int, microbatches: int) -> float:
    """`Candidate.load`."""
    return batch_size / (rows_of(mesh) * microbatches * mesh["tensor"] * mesh["sequence"])


def as_it_is(
    run: config.Run, mesh: Mapping[str, int], remat: Mapping[str, str], outcome: Outcome
) -> tuple[str, float, Outcome]:
    """`first` of a search: the run as it is, which did not fit."""
    most = max(remat.values(), key=lambda policy: REMAT[policy], default="full")
    return most, _load(mesh, run.train.batch_size, run.train.microbatches), outcome


def smaller(
    batch_size: int, microbatches: int, remat: Mapping[str, str], rows: int, lengths: Mapping[str, int]
) -> list[Candidate]:
    """Changes of what is learned, for where none of `candidates` fits: fewer rows, then shorter ones too, nearest first.

    rows: how many devices split a batch's rows.
    lengths: config key -> tokens of a row, {"data.decoder_length": 1024}.
    """
    found = []
    whole = _with_policy(remat, "full")
    for halvings in range(1, HALVINGS + 1):
        size = batch_size // 2**halvings // rows * rows
        parts = math.gcd(size, microbatches) if size else 0
        if size and size % (parts * rows) == 0:
            changes = {"train.batch_size": size} | ({"train.microbatches": parts} if parts != microbatches else {})
            found.append(Candidate(changes | whole, 2.0**halvings, "full", size / (rows * parts)))
    parts = math.gcd(batch_size // rows, 2**MOST * microbatches)
    for halvings in range(1, HALVINGS + 1):
        short = {key: length >> halvings for key, length in lengths.items()}
        if not short or min(short.values()) < SHORTEST:
            break
        changes = short | ({"train.microbatches": parts} if parts != microbatches else {})
        load = batch_size / (rows * parts) / 4**halvings  # attention weights shrink with the square of the length
        found.append(Candidate(changes | whole, 64.0 * 2**halvings, "full", load))
    return found


def _meshes(mesh: Mapping[str, int]) -> Iterator[tuple[dict[str, int], dict[str, int]]]:
    """Yields (axis -> size, axis -> doublings): devices move from data to fsdp, and from both to tensor and sequence."""
    for tensor in range(4):
        for sequence in range(4):
            sizes = dict(mesh)
            if not _take(sizes, "tensor", 2**tensor) or not _take(sizes, "sequence", 2**sequence):
                continue
            for fsdp in range(sizes["data"].bit_length()):
                if sizes["data"] % 2**fsdp == 0:
                    moved = {"tensor": tensor, "sequence": sequence, "fsdp": fsdp}
                    yield sizes | {"data": sizes["data"] >> fsdp, "fsdp": sizes["fsdp"] << fsdp}, moved


def _take(sizes: dict[str, int], axis: str, factor: int) -> bool:
    """Multiplies `axis` by `factor` in place, dividing data, then fsdp. False if their sizes do not allow it."""
    for source in ("data", "fsdp"):
        part = math.gcd(sizes[source], factor)
        sizes[source] //= part
        sizes[axis] *= part
        factor //= part
    return factor == 1


def search(
    found: Iterable[Candidate],
    *,
    first: tuple[str, float, Outcome],
    capacity: float,
    state: Callable[[Candidate], float | None],
    attempt: Callable[[Candidate], Outcome],
    tries: int = TRIES,
) -> Candidate | None:
    """The first candidate that fits; None if none does, or if none of the first `tries` compiled ones does.

    first: (remat, load, outcome) of the config that did not fit.
    capacity: bytes per device.
    state: bytes per device of a candidate's parameters, optimizer and batch, without compiling; None if it is not a valid
    config. attempt: compiles a candidate.

    A failed attempt rules out others: memory beyond the state does not shrink faster than the load and the state, nor with less
    remat.
    """
    failed = [first]
    for c in found:
        if tries == 0:
            break
        size = state(c)
        if size is None or size > capacity:
            continue
        beyond = [
            (o.peak - o.state) * min(1.0, c.load / load, size / o.state)
            for remat, load, o in failed
            if REMAT[remat] >= REMAT[c.remat]
        ]
        if size + max(beyond, default=0.0) > capacity:
            continue
        tries -= 1
        outcome = attempt(c)
        if outcome.fits:
            return c
        failed.append((c.remat, c.load, outcome))
    return None


def remat_of(run: config.Run) -> dict[str, str]:
    """Config key -> remat policy of each stack, one of REMAT: {"model.decoder.remat": "full"}."""
    stacks = {name: getattr(run.model, name) for name in ("encoder", "decoder")}
    of = lambda stack: stack.remat + KEPT * bool(stack.keep)
    return {f"model.{name}.remat": of(stack) for name, stack in stacks.items() if stack is not None}


def out_of_memory(message: str) -> tuple[float, float] | None:
    """(needed, available) bytes per device, parsed from XLA's error; None for another error. What it calls temporaries includes
    the arguments.

    "... required for HLO temporaries (60.84G) exceeds available HBM (15.75G)", or "Used 18.10G of 15.75G hbm"
    """
    number = r"([\d.]+)([KMGT]?)"
    found = re.search(rf"\({number}\) exceeds available HBM \({number}\)", message)
    found = found or re.search(rf"Used {number} of {number} hbm", message)
    if not found:
        return None
    needed, unit, available, other = found.groups()
    factor = lambda letter: 1024 ** (" KMGT".index(letter) if letter else 0)
    return float(needed) * factor(unit), float(available) * factor(other)
