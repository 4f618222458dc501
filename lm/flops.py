"""Model FLOPs from the config alone, and the peak FLOP/s of chips.

As in PaLM (arXiv 2204.02311, appendix B) only matrix products count, a multiply-add as two FLOPs; a backward pass costs twice
the forward pass, and recomputation (remat) is not counted.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import numpy as np

from lm import config

# Dense bf16 FLOP/s of one JAX device (v2, v3 and TPU7x have two per chip) by `device_kind`, from Google's system architecture
# pages and NVIDIA's data sheets.
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
    """FLOPs of one forward pass over a batch, by part."""

    projections: float = 0.0  # attention's query, key, value and output
    attention: float = 0.0  # queries times keys, and weights times values
    ffn: float = 0.0
    head: float = 0.0
    embed: float = 0.0  # projection of tables to the model's width, if theirs differs
    adapters: float = 0.0
    frozen: bool = False  # the model's matrices are, and their products have no gradient of weights

    def __add__(self, other: "Flops") -> "Flops":
        parts = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self) if f.name != "frozen"}
        return Flops(**parts, frozen=self.frozen or other.frozen)

    def times(self, rows: int) -> "Flops":
        return Flops(**{f.name: rows * getattr(self, f.name) for f in fields(self) if f.name != "frozen"}, frozen=self.frozen)

    @property
    def forward(self) -> float:
        return self.projections + self.attention + self.ffn + self.head + self.embed + self.adapters

    @property
    def train(self) -> float:
        without = self.projections + self.ffn + self.head + self.embed if self.frozen else 0.0
        return 3 * self.forward - without


def count(
    model: config.Model,
    *,
    batch: int,
    encoder: int | None = None,
    decoder: int | None = None,
    predicted: int | None = None,
    causal_share: float = 0.5,
    blocks: int = 0,
    lora: config.Lora | None = None,
) -> Flops:
    """Returns the FLOPs of a forward pass over `batch` rows of these lengths, with logits at `predicted` positions per row
    (None: all).

    causal_share: the share of a causal row's query-key pairs that counts. 1.0 counts pairs whether visible or not, as plain XLA
    attention computes them for rows of up to `lm.models.mask.MIN_BLOCK` tokens. `blocks`: tokens in a block of block diffusion,
    whose rows hold a text twice, each token with its block and the text before that in sight. `lora`: adapters beside the
    matrices of the stacks, which are frozen.
    """
    if blocks and decoder and causal_share != 1.0:
        causal_share = (1 + blocks / (decoder // 2)) / 4
    total, every = Flops(frozen=lora is not None), causal_share == 1.0
    if model.encoder:
        assert encoder, "an encoder needs the length of its rows"
        total += _stack(model.encoder, model.width, encoder, partial(_row_pairs, encoder, share=1.0, every=every), lora=lora)
    if model.decoder:
        assert decoder, "a decoder needs the length of its rows"
        source = encoder if model.encoder and encoder else 0
        pairs = partial(_row_pairs, decoder, share=causal_share, every=every)
        total += _stack(model.decoder, model.width, decoder, pairs, source, source * decoder, lora=lora)
    total += Flops(head=_head(model, predicted if predicted is not None else decoder or encoder or 0))
    total += _embed(model, (encoder or 0) * bool(model.encoder) + (decoder or 0) * bool(model.decoder))
    return total.times(batch)


def of_rows(model: config.Model, example: Any, *, everywhere: bool = False, lora: config.Lora | None = None) -> Flops:
    """Returns the FLOPs of a forward pass over exactly these rows (an Example of numpy arrays [B, T]), padding excluded.

    Counts the pairs that the mask allows (within a document; both ways in a prefix), and logits where weights are positive,
    or at all tokens (`everywhere`).
    """
    total, source, cross_pairs = Flops(frozen=lora is not None), 0, 0
    if model.encoder and example.encoder is not None:
        lengths = _segments(example.encoder.segments)
        source = int(lengths.sum())
        total += _stack(model.encoder, model.width, source, partial(_bidirectional_pairs, lengths), lora=lora)
    if model.decoder and example.decoder is not None:
        stream = example.decoder
        lengths = _segments(stream.segments)
        ahead = 0 if stream.prefix is None else int((_within(stream.segments) * stream.prefix).sum())
        if source:
            encoded = _segments(example.encoder.segments)
            shared = min(encoded.shape[1], lengths.shape[1])
            cross_pairs = int((encoded[:, :shared] * lengths[:, :shared]).sum())
        pairs = partial(_causal_pairs, lengths, ahead)
        if stream.blocks is not None:
            pairs = partial(_block_pairs, stream.segments, stream.blocks)
        total += _stack(model.decoder, model.width, int(lengths.sum()), pairs, source, cross_pairs, lora=lora)
    streams = [stream for stream in (example.encoder, example.decoder) if stream is not None]
    tokens = sum(int((stream.segments > 0).sum()) for stream in streams)
    predicted = tokens if everywhere else int((example.weights > 0).sum())
    return total + Flops(head=_head(model, predicted)) + _embed(model, tokens)


def _segments(segments: np.ndarray) -> np.ndarray:
    """Segments [B, T] (0 is padding) -> the lengths of the documents, int64 [B, documents]."""
    rows = np.arange(len(segments))[:, None]
    lengths = np.zeros((len(segments), int(segments.max(initial=0)) + 1), np.int64)
    np.add.at(lengths, (np.broadcast_to(rows, segments.shape), segments), 1)
    return lengths[:, 1:]


def _row_pairs(length: int, window: int | None, *, share: float, every: bool) -> float:
    """Returns the query-key pairs of a full row: each query sees the window (or row), but the first window's queries only
    `share` of it. `every`: all pairs, visible or not."""
    visible = length if every or window is None else min(window, length)
    return length * visible * (1 - (1 - share) * visible / length)


def _bidirectional_pairs(lengths: np.ndarray, window: int | None) -> int:
    """Returns the query-key pairs of documents of these lengths in an encoder."""
    half = lengths - 1 if window is None else np.minimum(window // 2, lengths - 1)
    return int((lengths + 2 * half * lengths - half * (half + 1))[lengths > 0].sum())


def _within(segments: np.ndarray) -> np.ndarray:
    """Segments [B, T] -> how many tokens of its document come before each token, int64 [B, T]; 0 at padding."""
    place = np.broadcast_to(np.arange(segments.shape[1]), segments.shape)
    begins = np.diff(segments, axis=1, prepend=0) != 0
    return (place - np.maximum.accumulate(np.where(begins, place, 0), axis=1)) * (segments > 0)


def _causal_pairs(lengths: np.ndarray, ahead: int, window: int | None) -> int:
    """Returns the query-key pairs of documents of these lengths in a decoder, `ahead` of them with a key after the query."""
    near = lengths if window is None else np.minimum(window, lengths)
    past = near * (near + 1) // 2 + (lengths - near) * near
    return int(past.sum()) + ahead


def _block_pairs(segments: np.ndarray, blocks: np.ndarray, window: int | None) -> int:
    """Returns the query-key pairs of block diffusion, for segments and blocks [B, T] (see `lm.models.mask`)."""
    sizes = np.zeros((len(segments), int(segments.max(initial=0)) + 1, int(blocks.max(initial=0)) + 2), np.int64)
    np.add.at(sizes, (np.broadcast_to(np.arange(len(segments))[:, None], segments.shape), segments, blocks), 1)
    noised, text = sizes[:, 1:, 0::2], sizes[:, 1:, 1::2]
    noised = noised[..., : text.shape[-1]]
    upto = np.cumsum(text, axis=-1)
    return int((text * upto).sum() + (noised * (upto - text + noised)).sum())


def _embed(model: config.Model, tokens: int) -> Flops:
    """Returns the FLOPs of projecting the tables' width to the model's."""
    return Flops(embed=0 if model.embed.width is None else 2 * tokens * model.embed.width * model.width)


def _head(model: config.Model, positions: int) -> float:
    """Returns the FLOPs of the logits at so many positions."""
    head, width = model.head, model.width
    if head is None:
        return 0.0
    table_width = (model.embed.width or width) if head.tied else width
    return 2 * positions * ((width * table_width if head.transform else 0) + table_width * (head.outputs or model.vocab_size))


def _stack(
    stack: config.Stack,
    width: int,
    tokens: int,
    pairs: Callable[[int | None], float],
    source: int = 0,
    cross_pairs: float = 0,
    lora: config.Lora | None = None,
) -> Flops:
    """Returns the FLOPs of a stack over `tokens` tokens, with `pairs(window)` query-key pairs in each self-attention and
    `cross_pairs` with `source` encoded tokens in each cross-attention."""
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
            adapters=0.0 if lora is None else 2 * _adapters(block, width, lora, tokens, source),
        )
        if block.cross and source:
            total += Flops(
                projections=2 * width * (tokens * 2 * heads + source * 2 * kv), attention=2 * 2 * cross_pairs * heads
            )
    return total


def _adapters(block: config.Block, width: int, lora: config.Lora, tokens: int, source: int) -> float:
    """Returns the multiply-adds of `x A B` beside the products of a block that have an adapter."""
    a, ffn = block.attention, block.ffn
    heads, kv = a.num_heads * a.size(width), a.kv_heads * a.size(width)
    sides: dict[str, float] = {}  # module -> tokens times its inputs and outputs
    read_by = {"attention": tokens} | ({"cross": source} if block.cross and source else {})
    for name, read in read_by.items():
        sides |= {f"{name}/{part}": tokens * (width + heads) for part in ("query", "out")}
        sides |= {f"{name}/{part}": read * (width + kv) for part in ("key", "value")}
    expert, times = (ffn.expert, ffn.top_k) if isinstance(ffn, config.Moe) else (ffn, 1)
    products = ("up", "down", "gate") if expert.gated else ("up", "down")
    sides |= {f"ffn/{part}": times * tokens * (width + expert.hidden) for part in products}
    chosen = lambda path: lora.modules is None or any(f"/{path}".endswith(f"/{name}") for name in lora.modules)
    return lora.rank * sum(count for path, count in sides.items() if chosen(path))


def _ffn(ffn: config.Ffn) -> int:
    """Returns a token's multiply-adds per unit of width; of a mixture, those of its router and of `top_k` experts."""
    if isinstance(ffn, config.Moe):
        return ffn.num_experts + ffn.top_k * _ffn(ffn.expert)
    return ffn.hidden * (3 if ffn.gated else 2)


def peak(device_kind: str) -> float | None:
    """Returns the bf16 FLOP/s of a device, None if it is unknown (then no MFU is logged)."""
    return PEAK_FLOPS.get(device_kind)
