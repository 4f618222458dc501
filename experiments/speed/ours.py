"""This library on the workloads: its model, loss, optimizer and jitted step, built from a config. Data loading and hooks are
left out, as they are for the peers.
"""

import itertools

import numpy as np

from experiments.speed.workloads import (
    B1,
    B2,
    EPS,
    LEARNING_RATE,
    VOCAB,
    WEIGHT_DECAY,
    WORKLOADS,
    Batch,
    Workload,
    batches,
)
from lm import config, startup


def make_config(w: Workload, dtype: str, *, gpu: bool = False) -> config.Run:
    """The run of a workload, with the same model as the peers' (`Workload.about`); on a GPU with its kernel of attention, where
    that knows the positions."""
    relative = bool(w.encoder and w.decoder)
    biased = not relative
    norm = config.Norm("rms") if relative else config.Norm("layer")
    attention = config.Attention(num_heads=w.heads, bias=biased, out_bias=biased)
    ffn = config.Mlp(w.hidden, bias=biased)

    def stack(length: int | None, cross: bool) -> config.Stack | None:
        position = config.Buckets() if relative else config.Learned(length or 1)
        block = config.Block(attention, ffn, norm, cross=cross)
        return config.Stack(w.layers, {"L": block}, position=position) if length else None

    return config.Run(
        model=config.Model(
            vocab_size=VOCAB,
            width=w.width,
            encoder=stack(w.encoder, cross=False),
            decoder=stack(w.decoder, cross=relative),
            head=config.Head(transform="gelu_tanh", bias=True) if w.masked else config.Head(),
            init_std=0.02,
            dtype=dtype,
            kernel="cudnn" if gpu and dtype == "bfloat16" and not relative else "plain",
        ),
        optimizer=config.Optimizer(
            learning_rate=LEARNING_RATE,
            schedule=config.Schedule("constant", warmup=0),
            weight_decay=WEIGHT_DECAY,
            clip=None,
            b1=B1,
            b2=B2,
            eps=EPS,
        ),
        train=config.Train(batch_size=w.batch),
    )


class Ours:
    """A model in training; a `Contender` of the worker."""

    def __init__(self, w: Workload, dtype: str):
        startup.before_jax()
        import flax
        import jax

        gpu = jax.default_backend() == "gpu"
        run = make_config(w, dtype, gpu=gpu)

        from lm import optim, sharding
        from lm.losses.cross_entropy import cross_entropy
        from lm.models.transformer import Transformer, head_params
        from lm.training.step import make_step, plan_state

        self.versions = {"jax": jax.__version__, "flax": flax.__version__}
        self.device = jax.devices()[0]
        self.mesh, model = sharding.make_mesh(run.mesh), Transformer(run.model)
        tx, _ = optim.make(run.optimizer, run.train.steps)
        made = [example(b) for b in batches(w)]
        self.use = lambda: sharding.use(self.mesh)

        def loss(params, frozen, example, rngs):
            settings = dict(head_params=head_params, vocab_size=VOCAB)
            return cross_entropy(params, model.apply, example, rngs=rngs, **settings), {}

        with self.use():
            plan = plan_state(lambda key: model.init(key, made[0])["params"], tx, self.mesh, ema=False)
            self.step = make_step(loss, tx, plan, optimizer=run.optimizer, train=run.train)
            self.state = plan.create(run.train.seed)
        self.parameters = sum(p.size for p in jax.tree.leaves(self.state.params))
        index = np.arange(w.batch)
        # Batches are transferred at every step, as the loader does, because that is part of the cost of a step.
        place = lambda b: sharding.global_batch(lambda rows: jax.tree.map(lambda x: x[rows], b), index, self.mesh)
        self.batches = (place(b) for b in itertools.cycle(made))

    def run(self, steps: int) -> float:
        with self.use():
            for _ in range(steps):
                self.state, metrics = self.step(self.state, None, next(self.batches))
            return float(metrics["loss"])

    def device_mb(self) -> int | None:
        statistics = self.device.memory_stats()
        return statistics["peak_bytes_in_use"] // 2**20 if statistics else None


def example(b: Batch):
    """An Example of a batch: each row is one document, and every target has loss."""
    from lm.types import Example, TokenStream

    def stream(tokens: np.ndarray | None) -> TokenStream | None:
        if tokens is None:
            return None
        positions = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
        return TokenStream(tokens, positions, np.ones_like(tokens))

    return Example(stream(b.encoder), stream(b.decoder), b.targets, np.ones(b.targets.shape, np.float32), b.where)


def build(workload: str, dtype: str) -> Ours:
    return Ours(WORKLOADS[workload], dtype)
