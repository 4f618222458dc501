"""The workloads and their batches, alike for all contenders: four for a CPU, five for a GPU. Imports neither jax nor torch."""

from dataclasses import dataclass

import numpy as np

VOCAB = 8192
LEARNING_RATE, WEIGHT_DECAY, B1, B2, EPS = 1e-3, 0.1, 0.9, 0.95, 1e-8


@dataclass(frozen=True)
class Workload:
    """Pre-norm blocks with a GELU (tanh) feed-forward layer of 4 x width, heads of 64 dimensions, and a tied output head."""

    name: str
    about: str
    layers: int  # of each stack
    width: int
    batch: int
    encoder: int | None = None  # tokens in a row of the encoder
    decoder: int | None = None
    masked: int | None = None  # positions predicted in each row; None: all

    @property
    def heads(self) -> int:
        return self.width // 64

    @property
    def hidden(self) -> int:
        return 4 * self.width

    @property
    def tokens(self) -> int:
        """Tokens per step, encoder and decoder together."""
        return self.batch * ((self.encoder or 0) + (self.decoder or 0))


ON_CPU = ("W1", "W2", "W3", "W4")
WORKLOADS = {
    w.name: w
    for w in (
        Workload("W1", "decoder-only, layer norms and biases, learned positions", 4, 256, 16, decoder=256),
        Workload("W2", "decoder-only, layer norms and biases, learned positions", 6, 384, 8, decoder=512),
        Workload("W3", "encoder-only, as W1, logits at masked positions only", 4, 256, 16, encoder=256, masked=38),
        Workload("W4", "encoder-decoder, rms norms, no biases, relative buckets", 4, 256, 16, encoder=256, decoder=64),
        Workload("G1", "as W1, with the layers of GPT-2 124M", 12, 768, 16, decoder=1024),
        Workload("G2", "as W3, with the layers of BERT-base", 12, 768, 32, encoder=512, masked=77),
        Workload("G3", "as W4, with the layers of T5-base", 12, 768, 32, encoder=512, decoder=128),
        Workload("G4", "as W1, with 16 layers of width 2,048", 16, 2048, 4, decoder=2048),
        Workload("G5", "as G1, in rows of 8,192 tokens", 12, 768, 2, decoder=8192),
    )
}


@dataclass(frozen=True)
class Batch:
    """int32 arrays: `encoder` and `decoder` [B, T]; `targets` [B, T], or [B, P] at the positions `where` [B, P] of each row."""

    encoder: np.ndarray | None
    decoder: np.ndarray | None
    targets: np.ndarray
    where: np.ndarray | None


def batches(w: Workload, count: int = 4) -> list[Batch]:
    """Batches of random tokens, the same for all contenders; speed does not depend on their values."""
    rng = np.random.default_rng(0)

    def tokens(length: int | None) -> np.ndarray | None:
        return rng.integers(0, VOCAB, (w.batch, length), dtype=np.int32) if length else None

    def positions() -> np.ndarray | None:
        rows = [np.sort(rng.permutation(w.encoder)[: w.masked]) for _ in range(w.batch)] if w.masked else None
        return np.stack(rows).astype(np.int32) if rows else None

    return [
        Batch(tokens(w.encoder), tokens(w.decoder), tokens(w.masked or w.decoder or w.encoder), positions())
        for _ in range(count)
    ]
