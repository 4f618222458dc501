"""Synthetic data for tests with several devices."""

import numpy as np

from lm import config
from lm.data.rows import Rows
from lm.objectives import build


class Words:
    """A token store in memory: 40 documents of 50 to 90 tokens."""

    def __init__(self, vocab=512, reserved=110):
        rng = np.random.default_rng(0)
        documents = [rng.integers(reserved, vocab, rng.integers(50, 90)).astype(np.int32) for _ in range(40)]
        self.tokens = np.concatenate(documents)
        self.offsets = np.concatenate([[0], np.cumsum([len(d) for d in documents])])
        self.num_tokens, self.num_documents, self.num_bytes = len(self.tokens), len(documents), 4 * len(self.tokens)

    def read(self, starts, length):
        return self.tokens[np.asarray(starts)[:, None] + np.arange(length)]


class Vocabulary:
    vocab_size, bos_id, eos_id, mask_id = 512, 1, 2, 4
    sentinel_ids = tuple(range(5, 105))
    special = np.arange(512) < 110

    def boundaries(self, tokens):
        return 1 + (tokens % 2 == 0)


def rows(architecture, objective, **lengths):
    return Rows({"words": Words()}, build(objective, architecture, config.Data(**lengths), Vocabulary()), seed=3)


def run(architecture, objective, mesh, **model):
    """A tiny run whose axes are divisible by 8."""
    block = config.Block(config.Attention(4, num_kv_heads=4), model.pop("ffn", config.Mlp(64)))
    stack = config.Stack(model.pop("layers", 2), {"L": block}, position=config.Rope(), scan=model.pop("scan", False))
    cross = config.Stack(2, {"L": config.Block(config.Attention(4), config.Mlp(64), cross=True)}, position=config.Rope())
    both = architecture == "encoder_decoder"
    shape = config.Model(
        512,
        32,
        encoder=stack if "encoder" in architecture else None,
        decoder=(cross if both else stack) if "decoder" in architecture else None,
        **model,
    )
    optimizer = config.Optimizer(learning_rate=0.01, schedule=config.Schedule(warmup=2))
    return config.Run(shape, objective=objective, optimizer=optimizer, train=config.Train(steps=6, batch_size=8), mesh=mesh)
