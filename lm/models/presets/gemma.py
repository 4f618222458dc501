"""Gemma (Gemma Team, arXiv 2403.08295): section 2, table 1. Gemma 2 (arXiv 2408.00118): section 2, table 1.

Pre-norm with RMS norms whose stored scale is an offset from 1, GeGLU, rotary positions, tied embeddings multiplied by
sqrt(width). Gemma 2 adds norms after each part, soft caps on the logits of attention (50) and head (30), and a window of 4096
in every other layer, starting with the first. Its 27B divides queries by sqrt(width / heads) = 12 instead of sqrt(head dim).

Table 1 of both papers gives the sum of the two hidden sizes of a gated feed-forward; `hidden` here, as in the code, is one.
"""

from lm.config import Attention, Block, Embed, Head, Mlp, Model, Norm, Rope, Stack


def gemma(
    num_layers: int,
    width: int,
    num_heads: int,
    num_kv_heads: int,
    hidden: int,
    *,
    head_dim: int = 256,
    vocab_size: int = 256_000,
) -> Model:
    block = Block(
        attention=Attention(num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim),
        ffn=Mlp(hidden, activation="gelu_tanh", gated=True),
        norm=Norm("rms", eps=1e-6, unit_offset=True),
        norm_at=("in",),
    )
    return Model(
        vocab_size=vocab_size,
        width=width,
        decoder=Stack(num_layers, {"L": block}, position=Rope()),
        embed=Embed(scale=width**0.5),
        init_std=0.02,
    )


def gemma2(
    num_layers: int,
    width: int,
    num_heads: int,
    num_kv_heads: int,
    hidden: int,
    *,
    head_dim: int = 256,
    scale: float | None = None,
    window: int = 4096,
    vocab_size: int = 256_000,
) -> Model:
    def block(window: int | None) -> Block:
        return Block(
            attention=Attention(num_heads, num_kv_heads, head_dim, softcap=50.0, window=window, scale=scale),
            ffn=Mlp(hidden, activation="gelu_tanh", gated=True),
            norm=Norm("rms", eps=1e-6, unit_offset=True),
            norm_at=("in", "res"),
        )

    return Model(
        vocab_size=vocab_size,
        width=width,
        decoder=Stack(num_layers, {"L": block(window), "G": block(None)}, pattern="LG", position=Rope()),
        embed=Embed(scale=width**0.5),
        head=Head(tied=True, softcap=30.0),
        init_std=0.02,
    )


GEMMA_2B = gemma(18, 2048, 8, 1, 16_384)  # 2,506,172,416 parameters
GEMMA_7B = gemma(28, 3072, 16, 16, 24_576)  # 8,537,680,896

GEMMA2_2B = gemma2(26, 2304, 8, 4, 9216)  # 2,614,341,888
GEMMA2_9B = gemma2(42, 3584, 16, 8, 14_336)  # 9,241,705,984
GEMMA2_27B = gemma2(46, 4608, 32, 16, 36_864, head_dim=128, scale=144**-0.5)  # 27,227,128,320
