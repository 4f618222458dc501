"""What a program will do on a pod, as figures and as a table: memory, FLOPs, collectives, and how fast it could run at best."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from tpu.collectives import Collective
from tpu.topologies import GIB, Topology


@dataclass(frozen=True)
class Hbm:
    """Bytes of a device. The parts from `parameters` on add up to `peak`, which is XLA's.

    XLA makes no program of what does not fit: `temporaries` then holds activations as well.
    """

    capacity: float  # what XLA may plan with
    parameters: float
    optimizer: float  # and all else of the state: an average of the parameters, counters
    batch: float  # what a step reads; in decoding the cache
    activations: float  # kept by the forward pass for the backward pass
    temporaries: float  # all else: gradients, gathered parameters, what single operations need, padding
    peak: float


@dataclass(frozen=True)
class Flops:
    """Of a step, over all devices."""

    model: float  # by the ledger, `lm.flops`
    executed: float | None  # by XLA, what is recomputed and what several devices do alike included


@dataclass(frozen=True)
class Roofline:
    """Seconds of a step in which nothing but one resource is waited for. None where nothing was compiled."""

    compute_s: float | None = None
    hbm_s: float | None = None
    ici_s: float | None = None
    dcn_s: float | None = None
    step_s: float | None = None  # the longest of them
    bound: str | None = None  # whose it is
    mfu_ceiling: float | None = None


@dataclass(frozen=True)
class Report:
    config: str
    topology: str
    slices: int
    chips: int
    mesh: dict[str, int]
    batch_size: int
    microbatches: int
    remat: str
    tokens_per_step: int
    parameters: int
    fits: bool
    short_by: float  # bytes of a device; 0 where it fits
    hbm: Hbm
    flops: Flops
    collectives: list[dict[str, Any]]
    roofline: Roofline
    compile_seconds: float
    libtpu: str
    jax: str
    step: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def roofline(
    topology: Topology,
    slices: int,
    *,
    model_flops: float,
    executed_flops: float,
    hbm_bytes: float,
    collectives: Iterable[Collective],
    dims: Mapping[str, frozenset[int]],
) -> Roofline:
    """The ceiling: compute, memory and both networks are each as busy as they can be, all at the same time.

    FLOPs are of all devices, bytes of one. `dims` are the dimensions of the torus that each axis of the mesh lies along.
    A collective along some axes goes over the links of all dimensions that these lie along, in both directions at once,
    evenly; collectives on the same dimension wait for each other. Within a chip it takes no time; along the slices'
    axis ("slice") it goes through the data-centre network. Real steps are slower: products do not fill the matrix units,
    a line of chips without wrap-around has half a ring's bandwidth, and collectives and products wait for each other.
    """
    chip, links, dcn = topology.chip, dict.fromkeys(range(3), 0.0), 0.0
    for c in collectives:
        along = frozenset().union(*(dims.get(axis, frozenset()) for axis in c.axes))
        if "slice" in c.axes:
            dcn += c.bytes
        for dim in along if "slice" not in c.axes else ():
            links[dim] += c.bytes / len(along)
    devices = topology.devices * slices
    seconds = {
        "compute": executed_flops / devices / (chip.flops / chip.devices),
        "hbm": hbm_bytes / (chip.hbm_bandwidth / chip.devices),
        "ici": max(links.values()) / (2 * chip.link_bandwidth / chip.devices),
        "dcn": dcn / (chip.dcn_bandwidth / chip.devices),
    }
    bound = max(seconds, key=lambda name: seconds[name])
    step = seconds[bound]
    mfu = model_flops / devices / (chip.flops / chip.devices) / step if step else None
    return Roofline(*seconds.values(), step_s=step, bound=bound, mfu_ceiling=mfu)


def summed(collectives: Iterable[Collective]) -> list[dict[str, Any]]:
    """`{"kind", "axes", "count", "bytes"}` for each kind along the same axes, the most bytes first.

    `count`: how often one runs in a step. `bytes`: what a device sends in a step.
    """
    found: dict[tuple[str, tuple[str, ...]], dict[str, Any]] = {}
    counted = set()
    for c in collectives:
        entry = found.setdefault((c.kind, c.axes), {"kind": c.kind, "axes": list(c.axes), "count": 0, "bytes": 0})
        entry["bytes"] += c.bytes
        entry["count"] += 0 if c.name in counted else c.times
        counted.add(c.name)
    return sorted(found.values(), key=lambda e: -e["bytes"])


def table(r: Report) -> str:
    """For people."""
    mesh = " x ".join(f"{axis}={n}" for axis, n in r.mesh.items() if n > 1) or "one device"
    pod = f"{r.slices} x {r.topology}" if r.slices > 1 else r.topology
    lines = [
        f"{r.config}: {r.step} step on {pod} ({r.chips} chips), {mesh}",
        f"batch {r.batch_size} in {r.microbatches} part(s), remat {r.remat}, {r.tokens_per_step:,} tokens a step, "
        f"{r.parameters:,} parameters; compiled in {r.compile_seconds:.0f} s (jax {r.jax}, libtpu {r.libtpu})",
        "",
        "HBM of a device",
    ]
    h = asdict(r.hbm)
    lines += [f"{h[name] / GIB:>10.3f} GiB  {name}" for name in ("parameters", "optimizer", "batch", "activations")]
    state = "fits" if r.fits else f"DOES NOT FIT: {r.short_by / GIB:.3f} GiB too much"
    if r.fits and r.hbm.peak > r.hbm.capacity:
        state = "XLA, which checks, takes it; the sum counts some twice, as libtpu's log does not tell how much"
    lines += [
        f"{h['temporaries'] / GIB:>10.3f} GiB  temporaries" + ("" if r.fits else ", and activations: XLA did not say"),
        f"{h['peak'] / GIB:>10.3f} GiB  peak of {h['capacity'] / GIB:.2f} GiB: {state}",
        "",
        f"{r.flops.model:>14.3e}  model FLOPs a step",
    ]
    if r.flops.executed is not None:
        lines.append(f"{r.flops.executed:>14.3e}  executed, {r.flops.executed / r.flops.model:.2f} of them")
    for c in r.collectives:
        lines.append(f"{c['bytes'] / 2**20:>10.1f} MiB  {c['kind']} along {' and '.join(c['axes'])}, {c['count']} a step")
    roof = r.roofline
    if roof.step_s is not None:
        each = {"compute": roof.compute_s, "HBM": roof.hbm_s, "ICI": roof.ici_s, "DCN": roof.dcn_s}
        lines += ["", *(f"{(s or 0) * 1e3:>10.3f} ms   {name}" for name, s in each.items())]
        lines.append(
            f"{roof.step_s * 1e3:>10.3f} ms   a step at best, bound by {roof.bound}: MFU at most {roof.mfu_ceiling:.1%}"
        )
    return "\n".join(lines)
