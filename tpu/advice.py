"""Searches for the cheapest change of a config that fits the memory of its devices. No jax.

Compiling is slow, so candidates are pruned by what is known without it: the size of their state, and the memory that earlier
candidates needed.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

TRIES = 8  # candidates that are compiled
# Estimated factors on the time of a step, by which candidates are sorted. Full remat runs the forward pass twice (4 passes
# instead of 3); dots keeps the results of matmuls; each halving of a microbatch gathers the parameters once more.
REMAT = {"none": 1.0, "dots": 1.1, "full": 4 / 3}
COST = {"microbatches": 1.04, "fsdp": 1.02, "tensor": 1.15, "sequence": 1.2}  # for each doubling
MOST = 6  # doublings of the number of microbatches


@dataclass(frozen=True)
class Candidate:
    """A change of a config, its estimated cost, and what determines the size of its activations."""

    changes: Mapping[str, Any] = field(hash=False)  # "mesh.fsdp": 16
    slowdown: float  # estimated factor on the time of a step
    remat: str
    load: float  # rows of a microbatch per device, divided by the other axes that shard activations, which grow with it

    @property
    def flags(self) -> str:
        return " ".join(f"--config.{key}={value}" for key, value in self.changes.items())


@dataclass(frozen=True)
class Outcome:
    """The memory of a compiled candidate, in bytes per device."""

    fits: bool
    peak: float
    state: float  # the part of the peak that is parameters, optimizer and batch


def candidates(mesh: Mapping[str, int], batch_size: int, microbatches: int, remat: Mapping[str, str]) -> list[Candidate]:
    """All sensible changes of remat, microbatches and mesh, cheapest first.

    mesh: axis -> size.
    remat: config key -> policy of each stack, {"model.decoder.remat": "none"}.
    """
    found = []
    least = max(REMAT[r] for r in remat.values())
    for sizes, moved in _meshes(mesh):
        rows = math.prod(sizes[a] for a in ("slice", "data", "fsdp", "expert"))
        for policy in (r for r in REMAT if REMAT[r] >= least):
            for doublings in range(MOST + 1):
                parts = microbatches * 2**doublings
                if batch_size % (parts * rows):
                    break
                changes = {f"mesh.{axis}": n for axis, n in sizes.items() if n != mesh[axis]}
                changes |= {"train.microbatches": parts} if doublings else {}
                changes |= {key: policy for key, now in remat.items() if now != policy}
                slowdown = REMAT[policy] / least * COST["microbatches"] ** doublings
                slowdown *= math.prod(COST[axis] ** n for axis, n in moved.items())
                load = batch_size / (rows * parts * sizes["tensor"] * sizes["sequence"])
                if changes:
                    found.append(Candidate(changes, slowdown, policy, load))
    return sorted(found, key=lambda c: (c.slowdown, len(c.changes)))


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
