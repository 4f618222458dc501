"""The report on a compiled program: memory, FLOPs, collectives and a roofline, as data and as a table."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from tpu.collectives import Collective
from tpu.topologies import GIB, Topology


@dataclass(frozen=True)
class Hbm:
    """Bytes per device. `frozen` and the parts from `parameters` to `temporaries` add up to `peak`, which is XLA's.

    If the step does not fit, there is no program, and `temporaries` includes the activations.
    """

    capacity: float  # available to XLA
    parameters: float
    optimizer: float  # with the rest of the state: an average of the parameters, counters
    batch: float  # in decoding, the cache
    activations: float  # kept by the forward pass for the backward pass
    temporaries: float  # the rest: gradients, gathered parameters, scratch memory, padding
    peak: float
    frozen: float = 0.0  # read and not trained: a reference, the base under an adapter
    beside: float = 0.0  # not in `peak`: what this step does not read, and the run's other steps leave in memory
    on_host: float = 0.0  # not in `optimizer`, nor in `peak` but in the update: what of it waits in the host's memory


@dataclass(frozen=True)
class Flops:
    """FLOPs of a step, over all devices."""

    model: float  # by `lm.flops`
    executed: float | None  # by XLA, including recomputation and work that several devices repeat


@dataclass(frozen=True)
class Roofline:
    """Seconds of a step if it were limited by one resource alone; None without a program."""

    compute_s: float | None = None
    hbm_s: float | None = None
    ici_s: float | None = None
    dcn_s: float | None = None
    step_s: float | None = None  # the longest of these, and `update_s`
    bound: str | None = None  # its resource: "compute", "hbm", "ici", "dcn" or "host"
    mfu_ceiling: float | None = None
    host_s: float | None = None  # between the device and the host's memory; None of reports from before it was counted
    update_s: float | None = None  # the part of `host_s` that nothing runs beside: what updates read there and write back


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
    short_by: float  # missing bytes per device; 0 if it fits
    hbm: Hbm
    flops: Flops
    collectives: list[dict[str, Any]]
    roofline: Roofline
    compile_seconds: float
    libtpu: str
    jax: str
    step: str
    frozen_parameters: int = 0

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
    host_bytes: float = 0.0,
    update_bytes: float = 0.0,
) -> Roofline:
    """The best possible time of a step: compute, memory, both networks and the link to the host run at full rate and overlap
    completely, but for the optimizer's state that waits on the host: an update reads it when the gradient is there, and the
    step ends when it is back.

    model_flops, executed_flops: of all devices.
    hbm_bytes, host_bytes: of one device.
    update_bytes: those of host_bytes that updates read and write.
    dims: mesh axis -> the dimensions of the torus that it spans.

    A collective uses the links of all torus dimensions that its axes span, evenly and in both directions; collectives on the
    same dimension add up. Within a chip it takes no time, and along the axis "slice" it uses the data-centre network. Real
    steps are slower: matmuls do not fill the matrix units, a line of chips without wrap-around has half the bandwidth of a
    ring, and collectives and matmuls wait for each other.
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
        "host": host_bytes / (chip.host_bandwidth / chip.devices),
    }
    bound = max(seconds, key=lambda name: seconds[name])
    update = update_bytes / (chip.host_bandwidth / chip.devices)
    step = max((seconds | {"host": seconds["host"] - update}).values()) + update
    mfu = model_flops / devices / (chip.flops / chip.devices) / step if step else None
    return Roofline(
        **{f"{name}_s": s for name, s in seconds.items()}, step_s=step, bound=bound, mfu_ceiling=mfu, update_s=update
    )


def summed(collectives: Iterable[Collective]) -> list[dict[str, Any]]:
    """Sums collectives of the same kind and axes; returns {"kind", "axes", "count", "bytes"} of each, most bytes first.

    count: how many run in a step. bytes: what a device sends in a step.
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
    """The report as text."""
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
    parts = [name for name in ("parameters", "frozen", "optimizer", "batch", "activations") if name != "frozen" or h[name]]
    lines += [f"{h[name] / GIB:>10.3f} GiB  {name}" for name in parts]
    lines += [f"{h['on_host'] / GIB:>10.3f} GiB  optimizer, in the host's memory: not in the sum"] if h["on_host"] else []
    beside = f", {h['beside'] / GIB:.3f} GiB beside it" if h["beside"] else ""
    state = "fits" if r.fits else f"DOES NOT FIT: {r.short_by / GIB:.3f} GiB too much"
    if r.fits and r.hbm.peak + r.hbm.beside > r.hbm.capacity:
        state = "XLA accepts it; the sum counts fragmentation twice, because libtpu's log does not have it"
    lines += [
        f"{h['temporaries'] / GIB:>10.3f} GiB  temporaries" + ("" if r.fits else " and activations"),
        f"{h['peak'] / GIB:>10.3f} GiB  peak of {h['capacity'] / GIB:.2f} GiB{beside}: {state}",
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
        each |= {"host": roof.host_s} if roof.host_s else {}
        each |= {"of it in the update, beside nothing else": roof.update_s} if roof.update_s else {}
        lines += ["", *(f"{(s or 0) * 1e3:>10.3f} ms   {name}" for name, s in each.items())]
        lines.append(
            f"{roof.step_s * 1e3:>10.3f} ms   a step at best, bound by {roof.bound}: MFU at most {roof.mfu_ceiling:.1%}"
        )
    return "\n".join(lines)
