"""LaMDA (Thoppilan et al., arXiv 2201.08239): section 3 for structure and size.

A decoder with T5's relative attention and gated GELU. Published are 64 layers, width 8192, hidden 65,536, 128 heads of 128, 32K
tokens, and 137B parameters without embeddings, which agrees with the count below.

Not published and taken from T5: RMS norms before each part, no biases, 32 buckets up to a distance of 128, one table for
input and output. We read "32K" as 32,000.
"""

from lm.config import Attention, Block, Buckets, Mlp, Model, Norm, Stack


def lamda(num_layers: int, width: int, num_heads: int, hidden: int, *, head_dim: int = 128, vocab_size: int = 32_000) -> Model:
    block = Block(
        attention=Attention(num_heads, head_dim=head_dim),
        ffn=Mlp(hidden, activation="gelu_tanh", gated=True),
        norm=Norm("rms", eps=1e-6),
        norm_at=("in",),
    )
    return Model(
        vocab_size=vocab_size,
        width=width,
        decoder=Stack(num_layers, {"L": block}, position=Buckets(num_buckets=32, max_distance=128)),
    )


LAMDA_137B = lamda(64, 8192, 128, 65_536)  # 137,702,158,336 parameters, 137,440,014,336 without embeddings
