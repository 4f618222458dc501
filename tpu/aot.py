"""Compiles a run's step for a pod with libtpu, without the pod. Imports jax: call `tpu.libtpu.prepare` first."""

import dataclasses
import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies as jax_topologies
from jax.sharding import Mesh, NamedSharding

from lm import config, flops, recipes, sharding
from lm.config import resolve
from lm.data.rows import blank
from lm.errors import UserError
from lm.generation import cache, programs
from lm.models.transformer import Transformer
from lm.objectives import Lengths
from lm.objectives.dummy_vocabulary import DummyVocabulary
from lm.recipes import pretrain
from lm.training.assembly import bytes_a_device, check, computation
from lm.training.recipe import Computation
from lm.types import TokenStream
from tpu import hlo, libtpu, program
from tpu.advice import REMAT, Candidate, Outcome, candidates, search
from tpu.collectives import collectives
from tpu.report import Flops, Hbm, Report, Roofline, roofline, summed
from tpu.topologies import GIB, Topology


@dataclass(frozen=True)
class Job:
    """A step to compile, with its arguments as jax.ShapeDtypeStruct with shardings."""

    mesh: Mesh
    name: str  # "train", "decode" or "prefill"
    lower: Callable[[], Any]  # -> jax.stages.Lowered
    parameters: Any
    optimizer: Any  # the rest of the state
    batch: Any  # in decoding, the slots; in a prefill, the prompt
    model_flops: float  # per step, by `lm.flops`
    tokens: int  # per step

    @property
    def state(self) -> float:
        """Bytes per device of all arguments, which stay in memory for the whole step."""
        return sum(bytes_a_device(part) for part in (self.parameters, self.optimizer, self.batch))


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


def train_job(run: config.Run, mesh: Mesh) -> Job:
    """The training step of a run."""
    made = computation_of(run, mesh)
    state = made.plan.targets()
    rest = dataclasses.replace(state, params=None)
    tokens = run.train.batch_size * sum(n or 0 for n in (made.lengths.encoder, made.lengths.decoder))
    return Job(mesh, "train", made.lower, state.params, rest, made.batch, made.flops_per_step, tokens)


def computation_of(run: config.Run, mesh: Mesh) -> Computation:
    """What a pretraining run computes, known without its data."""
    lengths = lengths_of(run)
    return computation(run, check(run, recipes.recipe(run), mesh), mesh, lengths, blank(lengths))


def lengths_of(run: config.Run) -> Lengths:
    """Of the objective's rows."""
    if not isinstance(run.recipe, config.Pretrain):
        raise UserError("only pretraining is compiled ahead of time; a fine-tuning's rows and head depend on its records")
    return pretrain.objective_of(run, DummyVocabulary.of(run)).lengths


def serve_jobs(run: config.Run, mesh: Mesh) -> tuple[Job, Job]:
    """What an engine of `train.batch_size` slots, each with room for `data.decoder_length` tokens, does: one step of decoding,
    a token for each slot, and the reading of the longest prompt. UserError for an encoder alone.

    The cache is sharded by rows like a batch, and by heads like the parameters.
    """
    if run.model.decoder is None:
        raise UserError("an encoder does not decode; leave --serve out")
    size, length = run.train.batch_size, run.data.decoder_length
    sharding.check_batch(size, 1, mesh)
    lengths = lengths_of(run)
    assert length is not None
    model, source = Transformer(run.model), lengths.encoder or 0
    params = computation(run, recipes.task(run), mesh, lengths, blank(lengths)).plan.targets().params
    setup = programs.Setup(model)
    with sharding.use(mesh):
        kept = jax.eval_shape(lambda: programs.empty(setup, params, None, slots=size, length=length, source=source))
        slots = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), kept, _shardings(kept, mesh))
    eos = jax.ShapeDtypeStruct((1,), jnp.int32)
    count = partial(flops.count, run.model, encoder=lengths.encoder)
    last = [count(batch=size, decoder=n).forward for n in (length, length - 1)]  # of the row's last token

    def lower_decode() -> Any:
        with sharding.use(mesh):
            step = partial(programs.decode, setup, most=1, way="plain")
            return jax.jit(step, donate_argnums=2).lower(params, None, slots, eos, jax.ShapeDtypeStruct((), jnp.int32))

    everywhere = NamedSharding(mesh, sharding.spec())
    tokens, text = (jax.ShapeDtypeStruct((1, n), jnp.int32, sharding=everywhere) for n in (length - 1, source))
    encoder = TokenStream(text, text, text) if source else None

    def lower_prefill() -> Any:
        with sharding.use(mesh):
            read = partial(programs.prefill, model, prefix=False)
            return jax.jit(read).lower(params, tokens, jax.ShapeDtypeStruct((), jnp.int32), encoder)

    return (
        Job(mesh, "decode", lower_decode, params, None, slots, last[0] - last[1], size),
        Job(mesh, "prefill", lower_prefill, params, None, tokens, count(batch=1, decoder=length - 1).forward, length - 1),
    )


def _shardings(slots: programs.Slots, mesh: Mesh) -> Any:
    """What `programs.constrained` gives each array."""
    rows = lambda x: NamedSharding(mesh, sharding.spec("batch", *[None] * (x.ndim - 1)))
    kept = jax.tree.map(lambda s: NamedSharding(mesh, s), cache.specs(slots.cache))
    return dataclasses.replace(jax.tree.map(rows, dataclasses.replace(slots, cache=None)), cache=kept)


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


def measure(run: config.Run, job: Job, topology: Topology, slices: int, *, name: str) -> Report:
    """Compiles the step and analyses the program. The report of a step that does not fit has only what needs no program."""
    mesh = job.mesh
    sizes = [bytes_a_device(part) for part in (job.parameters, job.optimizer, job.batch)]
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
        roof = roofline(topology, slices, collectives=found, dims=torus_dims(mesh), **figures)
    hbm = Hbm(capacity, *map(float, sizes), kept, peak - sum(sizes) - kept, peak)
    return Report(
        config=name,
        topology=str(topology),
        slices=slices,
        chips=topology.chips * slices,
        mesh=dict(mesh.shape),
        batch_size=run.train.batch_size,
        microbatches=run.train.microbatches,
        remat=" and ".join(dict.fromkeys(remat_of(run).values())),
        tokens_per_step=job.tokens,
        parameters=sum(math.prod(x.shape) for x in jax.tree.leaves(job.parameters)),
        fits=fits,
        short_by=0 if fits else peak - capacity,
        hbm=hbm,
        flops=Flops(job.model_flops, executed),
        collectives=summed(found),
        roofline=roof,
        compile_seconds=seconds,
        libtpu=libtpu.version(),
        jax=jax.__version__,
        step=job.name,
    )


def unmasked_share(run: config.Run) -> float:
    """The share of all query-key pairs that the masks leave, by `lm.flops`."""
    lengths: dict[str, Any] = dict(batch=1, encoder=run.data.encoder_length, decoder=run.data.decoder_length)
    lengths["blocks"] = lengths_of(run).blocks
    unmasked, every = (flops.count(run.model, **lengths, causal_share=share).attention for share in (0.5, 1.0))
    return unmasked / every


def torus_dims(mesh: Mesh) -> dict[str, frozenset[int]]:
    """Mesh axis -> the dimensions of the torus along which its chips differ."""
    at = np.array([d.coords for d in mesh.devices.flat]).reshape(*mesh.devices.shape, -1)
    differ = lambda k: (at != at.take([0], axis=k)).reshape(-1, at.shape[-1]).any(axis=0)
    return {axis: frozenset(np.flatnonzero(differ(k)).tolist()) for k, axis in enumerate(mesh.axis_names)}


def remat_of(run: config.Run) -> dict[str, str]:
    """Config key -> remat policy of each stack: {"model.decoder.remat": "full"}."""
    stacks = {name: getattr(run.model, name) for name in ("encoder", "decoder")}
    return {f"model.{name}.remat": stack.remat for name, stack in stacks.items() if stack is not None}


def changed(run: config.Run, changes: Any) -> config.Run:
    """The run with `changes`, {dotted config key: value}, applied."""
    tree = resolve.to_dict(run)
    for key, value in changes.items():
        *sections, last = key.split(".")
        below = tree
        for section in sections:
            below = below[section]
        below[last] = value
    return resolve.build(config.Run, tree)


def advise(
    run: config.Run, topology: Topology, slices: int, report: Report, job: Job, say: Callable[[str], None]
) -> str | None:
    """The flags of the cheapest change of the config that fits; None if none is found. Prints each attempt by `say`."""
    remat = remat_of(run)
    found = candidates(report.mesh, run.train.batch_size, run.train.microbatches, remat)
    rows = math.prod(job.mesh.shape[axis] for axis in sharding.ROWS)
    split = job.mesh.shape["tensor"] * job.mesh.shape["sequence"]
    load = run.train.batch_size / (rows * run.train.microbatches * split)
    first = Outcome(False, report.hbm.peak, job.state)
    states: dict[tuple[Any, ...], float | None] = {}  # by the changes of the mesh, on which alone they depend

    def job_of(c: Candidate) -> Job:
        other = changed(run, c.changes)
        return train_job(other, pod_mesh(other, topology, slices))

    def state(c: Candidate) -> float | None:
        key = tuple((k, n) for k, n in c.changes.items() if k.startswith("mesh."))
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

    most = max(remat.values(), key=lambda r: REMAT[r])
    best = search(found, first=(most, load, first), capacity=report.hbm.capacity, state=state, attempt=attempt)
    return best.flags if best else None
