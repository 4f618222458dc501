"""What is compiled for a run: its training step, and the programs of an engine that writes with its model."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from lm import config, flops, sharding
from lm.errors import UserError
from lm.generation import cache, programs
from lm.models.transformer import Transformer
from lm.training.assembly import bytes_a_device, bytes_on_host
from lm.training.recipe import Computation
from lm.types import TokenStream
from tpu.planned import computation_of


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
    rows: int
    frozen: Any = None  # what is read and not trained: a reference, the base under an adapter
    beside: Any = None  # what stays in memory, and this step does not read: the slots in an update, the optimizer's in decoding
    moved: float = 0.0  # bytes that its updates read from the host's memory, and write back there, on each device

    @property
    def state(self) -> float:
        """Bytes per device of all arguments, which stay in memory for the whole step."""
        return sum(bytes_a_device(part) for part in (self.parameters, self.optimizer, self.batch, self.frozen))


def of(run: config.Run, mesh: Mesh) -> tuple[Job, ...]:
    """All that a run compiles: its training step, and for a policy, which samples its own answers, those of the engine too."""
    made = computation_of(run, mesh)
    if not isinstance(run.recipe, config.Policy):
        return (train_job(made),)
    update, (decode, prefill) = train_job(made), rollout_jobs(made)
    beside = lambda job: dataclasses.replace(job, beside=(update.optimizer, update.frozen))
    return dataclasses.replace(update, beside=decode.batch), beside(decode), beside(prefill)


def train_job(made: Computation) -> Job:
    """The training step of a run."""
    state = made.plan.targets()
    rest, size = dataclasses.replace(state, params=None), made.run.train.batch_size
    tokens = size * sum(n or 0 for n in (made.lengths.encoder, made.lengths.decoder))
    model_flops = made.flops_per_step - _writing(made) if isinstance(made.run.recipe, config.Policy) else made.flops_per_step
    arguments = (state.params, rest, made.batch, model_flops, tokens, size, made.frozen)
    updates = made.task.updates.count if made.task.updates else 1
    return Job(made.mesh, "train", made.lower, *arguments, moved=2.0 * updates * bytes_on_host(rest))


def _writing(made: Computation) -> float:
    """The FLOPs of writing a step's samples, which the ledger counts as of the step and the engine computes."""
    lengths = made.lengths
    sizes: dict[str, Any] = dict(encoder=lengths.encoder, decoder=lengths.decoder, predicted=lengths.predicted)
    return flops.count(made.run.model, batch=made.run.train.batch_size, **sizes).forward


def rollout_jobs(made: Computation) -> tuple[Job, Job]:
    """The engine of `lm.recipes.rollout`: a slot for each sample of a step, with room for a question and its answer."""
    assert made.lengths.decoder is not None
    return _engine_jobs(made, made.lengths.decoder + 1)


def serve_jobs(run: config.Run, mesh: Mesh) -> tuple[Job, Job]:
    """What an engine of `train.batch_size` slots, each with room for `data.decoder_length` tokens, does: one step of decoding,
    a token for each slot, and the reading of the longest prompt. UserError for an encoder alone.

    The cache is sharded by rows like a batch, and by heads like the parameters.
    """
    if run.model.decoder is None:
        raise UserError("an encoder does not decode; leave --serve out")
    sharding.check_batch(run.train.batch_size, 1, mesh)
    made = computation_of(dataclasses.replace(run, train=dataclasses.replace(run.train, microbatches=1)), mesh)
    assert made.lengths.decoder is not None
    return _engine_jobs(made, run.data.decoder_length or made.lengths.decoder + 1)


def _engine_jobs(made: Computation, length: int) -> tuple[Job, Job]:
    """One step of decoding and the longest prompt of an engine with slots of `length` tokens, one for each row of a batch."""
    run, mesh, size = made.run, made.mesh, made.run.train.batch_size
    if run.adapter is not None:
        raise UserError("an adapter is merged into its model before that is served: leave config.adapter out")
    model, source = Transformer(run.model), made.lengths.encoder or 0
    state = made.plan.targets().params
    params = state["model"] if "critic" in state else state
    setup = programs.Setup(model)
    with sharding.use(mesh):
        kept = jax.eval_shape(lambda: programs.empty(setup, params, None, slots=size, length=length, source=source))
        slots = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), kept, _shardings(kept, mesh))
    eos = jax.ShapeDtypeStruct((1,), jnp.int32)
    count = partial(flops.count, run.model, encoder=made.lengths.encoder)
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

    read = count(batch=1, decoder=length - 1).forward
    return (
        Job(mesh, "decode", lower_decode, params, None, slots, last[0] - last[1], size, size),
        Job(mesh, "prefill", lower_prefill, params, None, tokens, read, length - 1, 1),
    )


def _shardings(slots: programs.Slots, mesh: Mesh) -> Any:
    """What `programs.constrained` gives each array."""
    rows = lambda x: NamedSharding(mesh, sharding.spec("batch", *[None] * (x.ndim - 1)))
    kept = jax.tree.map(lambda s: NamedSharding(mesh, s), cache.specs(slots.cache))
    return dataclasses.replace(jax.tree.map(rows, dataclasses.replace(slots, cache=None)), cache=kept)
