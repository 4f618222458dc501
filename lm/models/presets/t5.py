"""T5 (Raffel et al., arXiv 1910.10683): section 2.1 for the structure, 3.1.1 and 3.7 for the sizes. T5 1.1 and Flan-T5.

Pre-norm with RMS norms, no biases, ReLU, relative position buckets that the layers of a stack share (in self-attention only),
tied logits multiplied by width ** -0.5. Attention is not scaled: T5 scales the initial queries instead. Dropout is everywhere,
also after the last norm of a stack.

T5 1.1 (the authors' code, released_checkpoints.md; Shazeer, arXiv 2002.05202) has GeGLU, other widths, and an untied head
without the factor. It was trained without dropout; the 0.1 here is for fine-tuning. Flan-T5 (Chung et al., arXiv 2210.11416)
is T5 1.1 trained further.
"""

from lm.config import Attention, Block, Buckets, Embed, Head, Mlp, Model, Norm, Stack


def _t5(num_layers: int, width: int, attention: Attention, ffn: Mlp, head: Head, vocab_size: int, dropout: float) -> Model:
    def stack(*, cross: bool) -> Stack:
        block = Block(attention, ffn, norm=Norm("rms", eps=1e-6), norm_at=("in",), cross=cross, dropout=dropout)
        return Stack(num_layers, {"L": block}, position=Buckets(num_buckets=32, max_distance=128), dropout=dropout)

    return Model(
        vocab_size=vocab_size,
        width=width,
        encoder=stack(cross=False),
        decoder=stack(cross=True),
        embed=Embed(dropout=dropout),
        head=head,
        embed_init_std=1.0,
    )


def t5(
    num_layers: int,
    width: int,
    num_heads: int,
    hidden: int,
    *,
    head_dim: int = 64,
    vocab_size: int = 32_128,
    dropout: float = 0.1,
) -> Model:
    attention = Attention(num_heads, head_dim=head_dim, scale=1.0, dropout=dropout)
    ffn = Mlp(hidden, activation="relu", dropout=dropout)
    return _t5(num_layers, width, attention, ffn, Head(tied=True, scale=width**-0.5), vocab_size, dropout)


def t5_1_1(
    num_layers: int, width: int, num_heads: int, hidden: int, *, vocab_size: int = 32_128, dropout: float = 0.1
) -> Model:
    attention = Attention(num_heads, head_dim=64, scale=1.0, dropout=dropout)
    ffn = Mlp(hidden, activation="gelu_tanh", gated=True, dropout=dropout)
    return _t5(num_layers, width, attention, ffn, Head(tied=False), vocab_size, dropout)


T5_SMALL = t5(6, 512, 8, 2048)  # 60,506,624 parameters
T5_BASE = t5(12, 768, 12, 3072)  # 222,903,552
T5_LARGE = t5(24, 1024, 16, 4096)  # 737,668,096
T5_3B = t5(24, 1024, 32, 16_384, head_dim=128)  # 2,851,598,336
T5_11B = t5(24, 1024, 128, 65_536, head_dim=128)  # 11,307,321,344

FLAN_T5_SMALL = T5_1_1_SMALL = t5_1_1(8, 512, 6, 1024)  # 76,961,152
FLAN_T5_BASE = T5_1_1_BASE = t5_1_1(12, 768, 12, 2048)  # 247,577,856
FLAN_T5_LARGE = T5_1_1_LARGE = t5_1_1(24, 1024, 16, 2816)  # 783,150,080
FLAN_T5_XL = T5_1_1_XL = t5_1_1(24, 2048, 32, 5120)  # 2,849,757,184
FLAN_T5_XXL = T5_1_1_XXL = t5_1_1(24, 4096, 64, 10_240)  # 11,135,332,352
