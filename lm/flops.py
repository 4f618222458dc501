"""The compute ledger: FLOPs of a model under an objective, from its config alone, and the peaks of chips.

Only matrix products count, a multiply-add as two, as in PaLM (arXiv 2204.02311, appendix B); a backward pass costs twice
its forward pass, and what remat recomputes is not counted: these are model FLOPs. A causal query sees half the keys.
"""

from dataclasses import dataclass, fields

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

    `causal_share` 1.0 counts every pair, seen or not: what plain XLA attention executes of rows up to `lm.types.BLOCK`.
    """
    total = Flops()
    if model.encoder:
        assert encoder, "an encoder needs the length of its rows"
        total += _stack(model.encoder, model.width, encoder, None, 1.0, causal_share == 1.0)
    if model.decoder:
        assert decoder, "a decoder needs the length of its rows"
        source = encoder if model.encoder else None
        total += _stack(model.decoder, model.width, decoder, source, causal_share, causal_share == 1.0)
    places = predicted if predicted is not None else decoder or encoder or 0
    total += Flops(head=_head(model, places))
    if model.embed.width is not None:
        read = (encoder or 0) * bool(model.encoder) + (decoder or 0) * bool(model.decoder)
        total += Flops(embed=2 * read * model.embed.width * model.width)
    return Flops(*(batch * getattr(total, f.name) for f in fields(total)))


def _head(model: config.Model, places: int) -> float:
    head, width = model.head, model.width
    if head is None:
        return 0.0
    middle = (model.embed.width or width) if head.tied else width  # what the logits are made from
    return 2 * places * ((width * middle if head.transform else 0) + middle * (head.outputs or model.vocab_size))


def _stack(stack: config.Stack, width: int, length: int, source: int | None, share: float, every_pair: bool) -> Flops:
    total = Flops()
    for letter in stack.letters():
        block = stack.blocks[letter]
        a = block.attention
        head_dim = a.size(width)
        heads, kv = a.num_heads * head_dim, a.kv_heads * head_dim
        # The keys of a query, on average: the row's or the window's, less what lies ahead of the queries at its start.
        seen = length if every_pair or a.window is None else min(a.window, length)
        keys = seen * (1 - (1 - share) * seen / length)
        total += Flops(
            projections=2 * length * width * (2 * heads + 2 * kv),
            attention=2 * 2 * length * keys * heads,
            ffn=2 * length * width * _ffn(block.ffn),
        )
        if block.cross and source:
            total += Flops(
                projections=2 * width * (length * 2 * heads + source * 2 * kv), attention=2 * 2 * length * source * heads
            )
    return total


def _ffn(ffn: config.Ffn) -> int:
    """Multiply-adds of a token for each number of the width: of the experts it goes to alone, and of their router."""
    if isinstance(ffn, config.Moe):
        return ffn.num_experts + ffn.top_k * _ffn(ffn.expert)
    return ffn.hidden * (3 if ffn.gated else 2)


def peak(device_kind: str) -> float | None:
    """bf16 FLOP/s of a device, None where unknown: then no MFU is logged."""
    return PEAK_FLOPS.get(device_kind)
