"""T5, version 1.0 (Raffel et al., arXiv 1910.10683): section 2.1 for the structure, 3.1.1 and 3.7 for the sizes.

Pre-norm with root-mean-square norms, no biases, ReLU, relative buckets shared by the layers of a stack and used in
self-attention alone, logits from the embedding table times width ** -0.5. Attention has no scale: T5 puts it into the
initial queries instead.
"""

from lm.config import Attention, Block, Buckets, Embed, Head, Mlp, Model, Norm, Stack


def t5(num_layers: int, width: int, num_heads: int, hidden: int, *, vocab_size: int = 32_128, dropout: float = 0.1) -> Model:
    def stack(*, cross: bool) -> Stack:
        block = Block(
            attention=Attention(num_heads, head_dim=64, scale=1.0, dropout=dropout),
            ffn=Mlp(hidden, activation="relu", dropout=dropout),
            norm=Norm("rms", eps=1e-6),
            norm_at=("in",),
            cross=cross,
            dropout=dropout,
        )
        return Stack(num_layers, {"L": block}, position=Buckets(num_buckets=32, max_distance=128))

    return Model(
        vocab_size=vocab_size,
        width=width,
        encoder=stack(cross=False),
        decoder=stack(cross=True),
        embed=Embed(dropout=dropout),
        head=Head(tied=True, scale=width**-0.5),
        embed_init_std=1.0,
    )


T5_SMALL = t5(6, 512, 8, 2048)  # 60,506,624 parameters
T5_BASE = t5(12, 768, 12, 3072)  # 222,903,552
T5_LARGE = t5(24, 1024, 16, 4096)  # 737,668,096
