"""Compiles a run's step for a pod with libtpu, without the pod. Imports jax: call `tpu.libtpu.prepare` first."""

import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies as jax_topologies
from jax.sharding import Mesh

from lm import config, sharding
from lm.config import resolve
from lm.errors import UserError
from lm.training.advice import Candidate, Outcome, as_it_is, candidates, out_of_memory, remat_of, search
from lm.training.assembly import bytes_a_device, bytes_on_host
from tpu import faster as settings
from tpu import hlo, libtpu, program
from tpu.collectives import collectives
from tpu.jobs import Job, train_job
from tpu.planned import computation_of, forward_flops
from tpu.report import Flops, Hbm, Report, Roofline, roofline, summed
from tpu.topologies import GIB, Topology


def pod_mesh(run: config.Run, topology: Topology, slices: int) -> Mesh:
    """The run's mesh over all devices of these slices."""
    return sharding.make_mesh(run.mesh, devices(topology, slices))


def devices(topology: Topology, slices: int) -> list[Any]:
    """The devices that JAX would see on that pod, sorted by slice. Raises UserError if libtpu does not know the topology."""
    settings: dict[str, Any] = {"num_slices": slices} if slices > 1 else {}
    settings["wrap"] = topology.wrap
    if topology.generation == "v4":
        settings["chip_config_name"] = "megacore"  # both cores of a chip are one device
    if topology.chips == 1:
        settings["chips_per_host_bounds"] = (1, 1, 1)
    try:
        found = jax_topologies.get_topology_desc(platform="tpu", topology_name=str(topology), **settings).devices
    except (jax.errors.JaxRuntimeError, RuntimeError) as error:
        raise UserError(f"libtpu knows no topology {topology}: {str(error).strip().splitlines()[0]}") from None
    return sorted(found, key=lambda d: (getattr(d, "slice_index", None) or 0, d.id))


class OutOfMemory(Exception):
    """XLA found that a program does not fit; bytes per device."""

    def __init__(self, needed: float, capacity: float) -> None:
        super().__init__(f"{needed / GIB:.2f} GiB of {capacity / GIB:.2f} GiB")
        self.needed, self.capacity = needed, capacity


def compiled(job: Job) -> Any:
    """Compiles the job. Raises OutOfMemory if it does not fit the memory of a device."""
    try:
        return job.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        found = out_of_memory(str(error))
        if found is None:
            raise
        raise OutOfMemory(*found) from None


def peak_of(executable: Any) -> float:
    """Peak bytes of HBM per device of the program that was compiled last (libtpu's log does not name programs)."""
    return libtpu.peak(libtpu.memory(executable), libtpu.fragmentation(libtpu.log()))


def measure(run: config.Run, job: Job, topology: Topology, slices: int, *, name: str) -> Report:
    """Compiles the step and analyses the program. The report of a step that does not fit has only what needs no program."""
    mesh = job.mesh
    sizes = [bytes_a_device(part) for part in (job.parameters, job.optimizer, job.batch, job.frozen)]
    beside = bytes_a_device(job.beside)
    began, capacity = time.monotonic(), topology.chip.usable / topology.chip.devices
    found: list[Any] = []
    executed, roof, kept = None, Roofline(), 0.0
    try:
        executable = compiled(job)
        peak = peak_of(executable)
        fits = True
    except OutOfMemory as error:
        peak, capacity, fits = error.needed, error.capacity, False
    seconds = time.monotonic() - began
    if fits:
        text = executable.as_text()
        parsed = hlo.parse(text)
        found = collectives(text, dict(mesh.shape))
        executed = mesh.size * program.executed_flops(parsed, executable.cost_analysis()["flops"], pairs=unmasked_share(run))
        kept = min(float(program.activations(parsed)), max(peak - sum(sizes), 0.0))
        figures = dict(model_flops=job.model_flops, executed_flops=executed, hbm_bytes=program.hbm_traffic(parsed))
        figures |= dict(host_bytes=program.host_traffic(parsed), update_bytes=job.moved)
        roof = roofline(topology, slices, collectives=found, dims=torus_dims(mesh), **figures)
    *arguments, frozen = map(float, sizes)
    hbm = Hbm(capacity, *arguments, kept, peak - sum(sizes) - kept, peak, frozen, float(beside), bytes_on_host(job.optimizer))
    short = max(0.0, hbm.peak + hbm.beside - capacity) if job.beside is not None or not fits else 0
    count = lambda tree: sum(math.prod(x.shape) for x in jax.tree.leaves(tree))
    return Report(
        config=name,
        topology=str(topology),
        slices=slices,
        chips=topology.chips * slices,
        mesh=dict(mesh.shape),
        batch_size=job.rows,
        microbatches=run.train.microbatches,
        remat=" and ".join(dict.fromkeys(_remat(s) for s in (run.model.encoder, run.model.decoder) if s)),
        tokens_per_step=job.tokens,
        parameters=count(job.parameters),
        fits=fits and not short,
        short_by=short,
        hbm=hbm,
        flops=Flops(job.model_flops, executed),
        collectives=summed(found),
        roofline=roof,
        compile_seconds=seconds,
        libtpu=libtpu.version(),
        jax=jax.__version__,
        step=job.name,
        frozen_parameters=count(job.frozen),
    )


def _remat(stack: config.Stack) -> str:
    kept = f", keeping {', '.join(stack.keep)}" if stack.keep else ""
    return stack.remat + kept + (f", {', '.join(stack.offload)} on the host" if stack.offload else "")


def unmasked_share(run: config.Run) -> float:
    """The share of all query-key pairs that the masks leave, by `lm.flops`."""
    unmasked, every = (forward_flops(run, causal_share=share)[1].attention for share in (0.5, 1.0))
    return unmasked / every


def torus_dims(mesh: Mesh) -> dict[str, frozenset[int]]:
    """Mesh axis -> the dimensions of the torus along which its chips differ."""
    at = np.array([d.coords for d in mesh.devices.flat]).reshape(*mesh.devices.shape, -1)
    differ = lambda k: (at != at.take([0], axis=k)).reshape(-1, at.shape[-1]).any(axis=0)
    return {axis: frozenset(np.flatnonzero(differ(k)).tolist()) for k, axis in enumerate(mesh.axis_names)}


def advise(
    run: config.Run, topology: Topology, slices: int, report: Report, job: Job, say: Callable[[str], None]
) -> str | None:
    """The flags of the cheapest change of the config that fits; None if none is found. Prints each attempt by `say`.

    Where nothing else fits, the same changes with moments that wait in the host's memory.
    """
    remat = remat_of(run)
    found = candidates(report.mesh, run.train.batch_size, run.train.microbatches, remat)
    first = as_it_is(run, report.mesh, remat, Outcome(False, report.hbm.peak, job.state))
    states: dict[tuple[Any, ...], float | None] = {}  # by the changes on which alone they depend

    def job_of(c: Candidate) -> Job:
        other = resolve.replaced(run, c.changes)
        return train_job(computation_of(other, pod_mesh(other, topology, slices)))

    def state(c: Candidate) -> float | None:
        key = tuple((k, n) for k, n in c.changes.items() if k.startswith(("mesh.", "optimizer.")))
        if key not in states:
            try:
                states[key] = job_of(c).state
            except UserError:  # heads, hidden units or positions do not divide over this mesh
                states[key] = None
        return states[key]

    def attempt(c: Candidate) -> Outcome:
        job = job_of(c)
        try:
            peak = peak_of(compiled(job))
        except OutOfMemory as error:
            say(f"does not fit, {error}: {c.flags}")
            return Outcome(False, error.needed, job.state)
        say(f"fits, {peak / GIB:.2f} GiB: {c.flags}")
        return Outcome(True, peak, job.state)

    away = {"optimizer.offload": settings.waiting(run.optimizer)[-1]}
    others = [replace(c, changes=c.changes | away) for c in (Candidate({}, 1.0, *first[:2]), *found)]
    ways: dict[str, Any] = dict(first=first, capacity=report.hbm.capacity, state=state, attempt=attempt)
    best = search(found, **ways)
    if best is None and away["optimizer.offload"] != run.optimizer.offload:
        best = search(others, **ways)
    return best.flags if best else None


def faster(run: config.Run, topology: Topology, slices: int, report: Report, say: Callable[[str], None]) -> str | None:
    """The flags of the setting with the fastest step at best that fits, of those that `tpu.faster` finds most promising; None
    if the run as it is was not beaten. Prints each attempt by `say`."""

    def attempt(setting: settings.Setting) -> Report | None:
        other = resolve.replaced(run, setting.changes)
        try:
            job = train_job(computation_of(other, pod_mesh(other, topology, slices)))
        except UserError:  # heads or hidden units do not divide over this mesh
            return None
        found = measure(other, job, topology, slices, name=report.config)
        peak, step = found.hbm.peak / GIB, found.roofline.step_s
        if not found.fits or step is None:
            say(f"does not fit, {peak:.2f} GiB: {setting.flags}")
        else:
            bound, ceiling = found.roofline.bound, found.roofline.mfu_ceiling
            say(f"{step * 1e3:,.0f} ms by {bound}, MFU at most {ceiling:.1%}, {peak:.2f} GiB: {setting.flags}")
        return found

    best = settings.search(settings.settings(run, report, topology, *forward_flops(run)), report, attempt)
    return best.flags if best else None
