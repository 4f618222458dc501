"""The compute ledger: FLOPs of a model under an objective, from its config alone, and the peaks of chips.

Only matrix products count, a multiply-add as two, as in PaLM (arXiv 2204.02311, appendix B); a backward pass costs twice
its forward pass, and what remat recomputes is not counted: these are model FLOPs. A causal query sees half the keys.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import numpy as np

from lm import config

# Dense bf16 FLOP/s of what JAX calls one device (v2, v3 and TPU7x have two to a chip), by `device_kind`; from Google's
# system architecture pages and NVIDIA's data sheets.
PEAK_FLOPS = {
    "TPU v2": 23e12,
    "TPU v3": 61.5e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU7x": 1153.5e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
}


@dataclass(frozen=True)
class Flops:
    """Of one forward pass over a batch."""

    projections: float = 0.0  # of attention: q, k, v, out
    attention: float = 0.0  # products of queries with keys, and of weights with values
    ffn: float = 0.0
    head: float = 0.0
    embed: float = 0.0  # from narrower tables to the model's width

    def __add__(self, other: "Flops") -> "Flops":
        return Flops(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    @property
    def forward(self) -> float:
        return self.projections + self.attention + self.ffn + self.head + self.embed

    @property
    def train(self) -> float:
        return 3 * self.forward


def count(
    model: config.Model,
    *,
    batch: int,
    encoder: int | None = None,
    decoder: int | None = None,
    predicted: int | None = None,
    causal_share: float = 0.5,
) -> Flops:
    """FLOPs of a forward pass over `batch` rows of these lengths, with logits at `predicted` places a row (None: all).

    `causal_share` 1.0 counts every pair, visible or not: what plain XLA attention computes for rows of up to
    `lm.models.mask.MIN_BLOCK` tokens.
    """
    total, every = Flops(), causal_share == 1.0
    if model.encoder:
        assert encoder, "an encoder needs the length of its rows"
        total += _stack(model.encoder, model.width, encoder, partial(_area, encoder, share=1.0, every=every))
    if model.decoder:
        assert decoder, "a decoder needs the length of its rows"
        source = encoder if model.encoder and encoder else 0
        area = partial(_area, decoder, share=causal_share, every=every)
        total += _stack(model.decoder, model.width, decoder, area, source, source * decoder)
    total += Flops(head=_head(model, predicted if predicted is not None else decoder or encoder or 0))
    total += _embed(model, (encoder or 0) * bool(model.encoder) + (decoder or 0) * bool(model.decoder))
    return Flops(*(batch * getattr(total, f.name) for f in fields(total)))


def of_rows(model: config.Model, example: Any, *, everywhere: bool = False) -> Flops:
    """FLOPs of a forward pass over these very rows (an Example of numpy arrays, [B, T]), without what is padding.

    Tokens are those of a segment, pairs those that the mask lets through (each document by itself, a prefix from both
    sides), and logits are formed where a weight is, or `everywhere`.
    """
    total, source, across = Flops(), 0, 0
    if model.encoder and example.encoder is not None:
        lengths = _segments(example.encoder.segments)
        source = int(lengths.sum())
        total += _stack(model.encoder, model.width, source, partial(_both_ways, lengths))
    if model.decoder and example.decoder is not None:
        stream = example.decoder
        lengths = _segments(stream.segments)
        prefixes = _segments(stream.segments * stream.prefix) if stream.prefix is not None else np.zeros_like(lengths)
        if source:
            read = _segments(example.encoder.segments)
            shared = min(read.shape[1], lengths.shape[1])
            across = int((read[:, :shared] * lengths[:, :shared]).sum())
        pairs = partial(_causal, lengths, np.pad(prefixes, ((0, 0), (0, lengths.shape[1] - prefixes.shape[1]))))
        total += _stack(model.decoder, model.width, int(lengths.sum()), pairs, source, across)
    streams = [stream for stream in (example.encoder, example.decoder) if stream is not None]
    tokens = sum(int((stream.segments > 0).sum()) for stream in streams)
    places = tokens if everywhere else int((example.weights > 0).sum())
    return total + Flops(head=_head(model, places)) + _embed(model, tokens)


def _segments(segments: np.ndarray) -> np.ndarray:
    """int [B, T] numbers of documents, 0 padding -> int64 [B, documents] lengths."""
    rows = np.arange(len(segments))[:, None]
    lengths = np.zeros((len(segments), int(segments.max(initial=0)) + 1), np.int64)
    np.add.at(lengths, (np.broadcast_to(rows, segments.shape), segments), 1)
    return lengths[:, 1:]


def _area(length: int, window: int | None, *, share: float, every: bool) -> float:
    """Pairs of a full row: its keys or the window's, less what lies ahead of the queries at its start; or every pair."""
    seen = length if every or window is None else min(window, length)
    return length * seen * (1 - (1 - share) * seen / length)


def _both_ways(lengths: np.ndarray, window: int | None) -> int:
    half = lengths - 1 if window is None else np.minimum(window // 2, lengths - 1)
    return int((lengths + 2 * half * lengths - half * (half + 1))[lengths > 0].sum())


def _causal(lengths: np.ndarray, prefixes: np.ndarray, window: int | None) -> int:
    near = lengths if window is None else np.minimum(window, lengths)
    past = near * (near + 1) // 2 + (lengths - near) * near
    return int((past + prefixes * (prefixes - 1) // 2).sum())


def _embed(model: config.Model, tokens: int) -> Flops:
    """Tables narrower or wider than the model are projected to its width."""
    return Flops(embed=0 if model.embed.width is None else 2 * tokens * model.embed.width * model.width)


def _head(model: config.Model, places: int) -> float:
    head, width = model.head, model.width
    if head is None:
        return 0.0
    middle = (model.embed.width or width) if head.tied else width  # what the logits are made from
    return 2 * places * ((width * middle if head.transform else 0) + middle * (head.outputs or model.vocab_size))


def _stack(
    stack: config.Stack,
    width: int,
    tokens: int,
    pairs: Callable[[int | None], float],
    source: int = 0,
    across: float = 0,
) -> Flops:
    """Of `tokens` that look at each other in `pairs(window)` and, in `across` pairs, at `source` encoded ones."""
    total = Flops()
    for letter in stack.letters():
        block = stack.blocks[letter]
        a = block.attention
        head_dim = a.size(width)
        heads, kv = a.num_heads * head_dim, a.kv_heads * head_dim
        total += Flops(
            projections=2 * tokens * width * (2 * heads + 2 * kv),
            attention=2 * 2 * pairs(a.window) * heads,
            ffn=2 * tokens * width * _ffn(block.ffn),
        )
        if block.cross and source:
            total += Flops(projections=2 * width * (tokens * 2 * heads + source * 2 * kv), attention=2 * 2 * across * heads)
    return total


def _ffn(ffn: config.Ffn) -> int:
    """Multiply-adds of a token for each number of the width: of the experts it goes to alone, and of their router."""
    if isinstance(ffn, config.Moe):
        return ffn.num_experts + ffn.top_k * _ffn(ffn.expert)
    return ffn.hidden * (3 if ffn.gated else 2)


def peak(device_kind: str) -> float | None:
    """bf16 FLOP/s of a device, None where unknown: then no MFU is logged."""
    return PEAK_FLOPS.get(device_kind)
