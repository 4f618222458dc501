"""A recipe that is all seams, of a matrix: pairs of Examples, a frozen teacher, a source that reads the state, metrics."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct

from lm import config, sharding
from lm.objectives import Lengths
from lm.training.recipe import Recipe
from lm.training.task import Frozen, Task
from lm.types import Example, TokenStream, WeightedMean

D, T, ROWS = 8, 6, 40


@struct.dataclass
class Pair:
    """Two texts to compare, a batch of another kind than an Example."""

    better: Example
    worse: Example

    def tokens_read(self):
        return self.better.tokens_read() + self.worse.tokens_read()

    def tokens_asked(self):
        return self.better.tokens_asked() + self.worse.tokens_asked()


def example(index, salt):
    """Rows `index` (int [B]): each of one to T tokens of D, of which about half have loss."""
    rngs = [np.random.default_rng((int(i), salt)) for i in index]
    tokens = np.stack([rng.integers(0, D, T) for rng in rngs]).astype(np.int32)
    segments = np.stack([np.arange(T) < rng.integers(1, T + 1) for rng in rngs]).astype(np.int32)
    weights = (np.stack([rng.random(T) < 0.5 for rng in rngs]) * segments).astype(np.float32)
    positions = np.broadcast_to(np.arange(T, dtype=np.int32), tokens.shape)
    return Example(None, TokenStream(tokens, positions, segments), tokens, weights)


def pairs(index):
    return Pair(example(index, 0), example(index, 1))


def init(key, batch):
    assert batch.better.weights.shape == batch.worse.weights.shape
    make = nn.with_logical_partitioning(nn.initializers.normal(1.0), ("embed", "hidden"))
    return {"kernel": make(key, (D, D), jnp.float32)}


def loss(params, frozen, batch, rngs):
    """The squared distance of the student's rows from the teacher's, of each token with loss; `margin` over the pairs."""

    def distance(e):
        d = (params["kernel"] - frozen["kernel"])[e.decoder.tokens]
        return jnp.sum(e.weights[..., None] * d**2), jnp.sum(e.weights)

    (better, n), (worse, m) = distance(batch.better), distance(batch.worse)
    count = jnp.float32(batch.better.weights.shape[0])
    more = {"margin": WeightedMean(better - worse, count), "worse_loss": WeightedMean(worse, m)}
    return WeightedMean(better + worse, n + m), more


def teacher(targets):
    """The frozen arrays, placed as `targets` (abstract) says."""
    return jax.tree.map(lambda x: jax.device_put(np.arange(x.size, dtype=x.dtype).reshape(x.shape) / 9, x.sharding), targets)


TASK = Task(
    models={},
    init=init,
    loss=loss,
    scores=lambda params, frozen, batch: {},
    passes=lambda lengths: [],
    writer=lambda params, frozen: None,
    frozen=Frozen(init, teacher),
)


class Toy(Recipe):
    """Which rows a step reads depends on the parameters. `fails_at`: the step before which its process dies."""

    def __init__(self, fails_at=None):
        self.fails_at, self.asked = fails_at, []

    def check(self, run, task, mesh):
        pass

    def task(self, run):
        return TASK

    def data(self, run, *, progress):
        tokenizer = SimpleNamespace(vocab_size=D, proto=b"letters", fingerprint="letters")
        return SimpleNamespace(tokenizer=tokenizer, fingerprint="pairs")

    def rows(self, run, data):
        left_out = lambda index: 0.0
        return {"train": SimpleNamespace(rows=pairs, count=ROWS, lengths=Lengths(None, T), bytes_a_row=9.0, left_out=left_out)}

    def row(self, rows):
        return jax.tree.map(lambda x: np.zeros_like(x[0]), pairs(np.arange(1)))

    def source(self, parts, position, steps):
        def batch(step, state):
            if step == self.fails_at:
                raise RuntimeError("the process dies")
            self.asked.append(step)
            shift = int(jnp.abs(state.params["kernel"]).sum() * 100)
            return sharding.global_batch(pairs, (position.of(step) + shift) % ROWS, parts.mesh)

        return batch

    def evaluators(self, parts, frozen):
        distance = lambda params: {"distance": float(jnp.abs(params["kernel"] - frozen["kernel"]).max())}
        return [distance, lambda params: {"norm": float(jnp.abs(params["kernel"]).max())}]


def run(**changes):
    """Six steps of two microbatches, saved every two and logged every four."""
    stack = config.Stack(1, {"L": config.Block(config.Attention(1), config.Mlp(4))})
    settings = dict(
        optimizer=config.Optimizer(learning_rate=0.1, schedule=config.Schedule("constant", warmup=0), ema=0.5),
        train=config.Train(steps=6, batch_size=4, microbatches=2),
        checkpoint=config.Checkpoint(every=2),
        evaluate=config.Evaluate(every=3),
        log=config.Log(every=4, tensorboard=False),
    )
    return config.Run(config.Model(D, D, decoder=stack), **settings | changes)
