"""Model FLOPs from the config alone, and the peak FLOP/s of chips.

As in PaLM (arXiv 2204.02311, appendix B) only matrix products count, a multiply-add as two FLOPs; a backward pass costs twice
the forward pass, and recomputation (remat) is not counted.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from lm import config

if TYPE_CHECKING:
    from lm.types import TreeSizes

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
    embed: float = 0.0  # projection of tables to the model's width, if theirs differs, and of a stem's vectors
    adapters: float = 0.0
    mixer: float = 0.0  # of recurrent layers: their projections, and what each token adds to their states and reads of them
    frozen: bool = False  # the model's matrices are, and their products have no gradient of weights

    def __add__(self, other: "Flops") -> "Flops":
        parts = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self) if f.name != "frozen"}
        return Flops(**parts, frozen=self.frozen or other.frozen)

    def times(self, rows: int) -> "Flops":
        return Flops(**{f.name: rows * getattr(self, f.name) for f in fields(self) if f.name != "frozen"}, frozen=self.frozen)

    @property
    def forward(self) -> float:
        return self.projections + self.attention + self.ffn + self.head + self.embed + self.adapters + self.mixer

    @property
    def train(self) -> float:
        without = self.projections + self.ffn + self.head + self.embed + self.mixer if self.frozen else 0.0
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
    tree: "TreeSizes | None" = None,
) -> Flops:
    """Returns the FLOPs of a forward pass over `batch` rows of these lengths, with logits at `predicted` positions per row
    (None: all).

    causal_share: the share of a causal row's query-key pairs that counts. 1.0 counts pairs whether visible or not, as plain XLA
    attention computes them for rows of up to `lm.models.mask.MIN_BLOCK` tokens. `blocks`: tokens in a block of block diffusion,
    whose rows hold a text twice, each token with its block and the text before that in sight. `lora`: adapters beside the
    matrices of the stacks, which are frozen. `tree`: of the encoder's rows, all of whose steps count; None: of binary trees.
    """
    if blocks and decoder and causal_share != 1.0:
        causal_share = (1 + blocks / (decoder // 2)) / 4
    total, every = Flops(frozen=lora is not None), causal_share == 1.0
    if model.encoder:
        assert encoder, "an encoder needs the length of its rows"
        nested = (encoder // 2, encoder - 1)
        if tree is not None:
            nested = (slots := tree.steps * tree.width), slots * tree.children
        pairs = partial(_row_pairs, encoder, share=1.0, every=every)
        total += _stack(model.encoder, model.width, encoder, pairs, lora=lora, nested=nested)
    if model.decoder:
        assert decoder, "a decoder needs the length of its rows"
        encoded = encoder if model.encoder and encoder else 0
        read = model.bottleneck.slots if model.bottleneck else encoded
        total += _between(model, encoded, read, read * encoded)
        source, tokens = (0, decoder + read) if model.join == "prefix" else (read, decoder)
        pairs = partial(_row_pairs, tokens, share=causal_share, every=every)
        total += _stack(model.decoder, model.width, tokens, pairs, source, source * decoder, lora=lora)
    total += Flops(head=_head(model, predicted if predicted is not None else decoder or encoder or 0))
    total += _embed(model, (encoder or 0) * bool(model.encoder) + (decoder or 0) * bool(model.decoder))
    total += _stem(model, encoder or 0)
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
        tree = example.encoder.tree
        nested = (0, 0) if tree is None else (int((tree.slots >= 0).sum()), int((tree.children >= 0).sum()))
        pairs = partial(_bidirectional_pairs, lengths)
        total += _stack(model.encoder, model.width, source, pairs, lora=lora, nested=nested)
    if model.decoder and example.decoder is not None:
        stream = example.decoder
        lengths = _segments(stream.segments)
        ahead = 0 if stream.prefix is None else int((_within(stream.segments) * stream.prefix).sum())
        if source:
            encoded = _segments(example.encoder.segments)
            read = model.bottleneck.vectors * (encoded > 0) if model.bottleneck else encoded
            total += _between(model, source, int(read.sum()), int((read * encoded).sum()))
            shared, source = min(encoded.shape[1], lengths.shape[1]), int(read.sum())
            cross_pairs = int((read[:, :shared] * lengths[:, :shared]).sum())
            if model.join == "prefix":
                lengths = lengths + np.pad(read[:, :shared], ((0, 0), (0, lengths.shape[1] - shared)))
                source, cross_pairs = 0, 0
        pairs = partial(_causal_pairs, lengths, ahead)
        if stream.blocks is not None:
            pairs = partial(_block_pairs, stream.segments, stream.blocks)
        total += _stack(model.decoder, model.width, int(lengths.sum()), pairs, source, cross_pairs, lora=lora)
    streams = [stream for stream in (example.encoder, example.decoder) if stream is not None]
    tokens = sum(int((stream.segments > 0).sum()) for stream in streams)
    predicted = tokens if everywhere else int((example.weights > 0).sum())
    total += Flops(head=_head(model, predicted)) + _embed(model, tokens)
    return total + _stem(model, 0 if example.encoder is None else int((example.encoder.segments > 0).sum()))


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


def _stem(model: config.Model, tokens: int) -> Flops:
    """Returns the FLOPs of the encoder's stem, if it has one, for so many of the vectors that the stack reads."""
    stem = model.encoder.stem if model.encoder else None
    return Flops() if stem is None else Flops(embed=2 * stem.products(model.width) * tokens / stem.length)


def _between(model: config.Model, encoded: int, read: int, pairs: int) -> Flops:
    """Returns the FLOPs between the stacks: of a bottleneck that makes `read` vectors of `encoded` ones, with so many `pairs`
    of both, and of projecting a prefix."""
    b, width = model.bottleneck, model.width
    total = Flops(projections=2 * read * width**2 if model.join == "prefix" else 0.0)
    if b is None:
        return total
    sides = {"gaussian": 2, "plain": int(b.width is not None)}[b.latent] + (b.width is not None)  # down, and up
    total += Flops(projections=2 * read * sides * width * b.size(width))
    if b.pool == "queries":
        total += Flops(projections=2 * width**2 * (2 * read + 2 * encoded), attention=2 * 2 * pairs * width)
    return total + Flops(attention=2 * pairs * width if b.pool == "mean" else 0.0)


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
    nested: tuple[int, int] = (0, 0),
) -> Flops:
    """Returns the FLOPs of a stack over `tokens` tokens, with `pairs(window)` query-key pairs in each self-attention and
    `cross_pairs` with `source` encoded tokens in each cross-attention. `nested`: inner nodes of trees, and their children."""
    total = Flops()
    for letter in stack.letters():
        block = stack.blocks[letter]
        a = block.attention
        heads, kv = (a.num_heads * a.size(width), a.kv_heads * a.size(width)) if a else (0, 0)
        total += Flops(
            ffn=0.0 if block.ffn is None else 2 * tokens * width * _ffn(block.ffn),
            adapters=0.0 if lora is None else 2 * _adapters(block, width, lora, tokens, source),
        )
        if block.mixer is not None:
            total += Flops(mixer=2 * (tokens * _mixer(block.mixer, width, tokens) + _nested(block.mixer, width, *nested)))
        elif a is not None:
            attention = 2 * 2 * pairs(a.window) * heads
            total += Flops(projections=2 * tokens * width * (2 * heads + 2 * kv), attention=attention)
        if block.cross and source:
            total += Flops(
                projections=2 * width * (tokens * 2 * heads + source * 2 * kv), attention=2 * 2 * cross_pairs * heads
            )
    return total


def _adapters(block: config.Block, width: int, lora: config.Lora, tokens: int, source: int) -> float:
    """Returns the multiply-adds of `x A B` beside the products of a block that have an adapter."""
    a, ffn = block.attention, block.ffn
    sides: dict[str, float] = {}  # module -> tokens times its inputs and outputs
    if a is not None:
        heads, kv = a.num_heads * a.size(width), a.kv_heads * a.size(width)
        read_by = {} if block.mixer is not None else {"attention": tokens}
        for name, read in (read_by | ({"cross": source} if block.cross and source else {})).items():
            sides |= {f"{name}/{part}": tokens * (width + heads) for part in ("query", "out")}
            sides |= {f"{name}/{part}": read * (width + kv) for part in ("key", "value")}
    if (mixer := block.mixer) is not None:
        for name, (inputs, outputs) in _matrices(mixer, width).items():
            sides |= {f"mixer/{way}/{name}": tokens * (inputs + outputs) for way in _directions(mixer) if "/" not in name}
    if ffn is not None:
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


def _mixer(mixer: config.Mixer, width: int, tokens: int) -> float:
    """Returns a token's multiply-adds in a recurrent layer."""
    total = sum(inputs * outputs for inputs, outputs in _matrices(mixer, width).values())
    if isinstance(mixer, config.Mamba2):  # within a chunk as in attention, and from and to the state
        size, chunk = mixer.size(width), min(mixer.chunk, tokens)
        total += chunk * (mixer.groups * mixer.state + size) + 2 * size * mixer.state
    return total * len(_directions(mixer))


def _nested(mixer: config.Mixer, width: int, inner: int, children: int) -> int:
    """Returns the multiply-adds by which the states of so many inner nodes are made of those of their children."""
    if not isinstance(mixer, config.TreeLstm):
        return 0
    size, places = mixer.size(width), mixer.children
    return size * size * (3 * inner + children if places is None else inner * places * (3 + places))


def _directions(mixer: config.Mixer) -> tuple[str, ...]:
    direction = getattr(mixer, "direction", "forward")
    return ("forward", "backward") if direction == "both" else (direction,)


def _matrices(mixer: config.Mixer, width: int) -> dict[str, tuple[int, int]]:
    """Returns the inputs and outputs of a recurrent layer's matrices in one direction, by name."""
    size = mixer.size(width)
    ends = {"gate": (width, size), "up": (width, size), "out": (size, width)}
    match mixer:
        case config.TreeLstm():  # and those of `_nested`
            return {"in": (width, 4 * size), "out": (size, width)}
        case config.Lstm() | config.Gru():
            gates = size * (4 if isinstance(mixer, config.Lstm) else 3)
            return {"in": (width, gates), "recurrent": (size, gates), "out": (size, width)}
        case config.GatedLinear():
            return ends | {f"{name}_gate/blocks": (size, size // mixer.num_heads) for name in ("decay", "input")}
        case config.Mamba2():
            of_group = (width, mixer.groups * mixer.state)
            return ends | {"b": of_group, "c": of_group, "step": (width, mixer.num_heads(width))}
        case config.Convolution():
            return {"up": (width, width), "gate": (width, width), "down": (width, width)}
    raise TypeError(f"no FLOPs are known of {mixer}")


def peak(device_kind: str) -> float | None:
    """Returns the bf16 FLOP/s of a device, None if it is unknown (then no MFU is logged)."""
    return PEAK_FLOPS.get(device_kind)
