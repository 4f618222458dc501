"""OLMo 2 (OLMo Team, arXiv 2501.00656), section 2 for the structure; sizes from the released configs.

Norms on each part's output instead of its input, queries and keys normalised over all heads together, SwiGLU, rotary
positions with theta 500,000, an untied head. 32B has eight key-value heads.
"""

from lm.config import Attention, Block, Head, Mlp, Model, Norm, Rope, Stack


def olmo2(
    num_layers: int, width: int, num_heads: int, hidden: int, *, num_kv_heads: int | None = None, vocab_size: int = 100_352
) -> Model:
    norm = Norm("rms", eps=1e-6)
    block = Block(
        attention=Attention(num_heads, num_kv_heads=num_kv_heads, qk_norm=norm, qk_norm_over="all"),
        ffn=Mlp(hidden, activation="silu", gated=True),
        norm=norm,
        norm_at=("res",),
    )
    return Model(
        vocab_size=vocab_size,
        width=width,
        decoder=Stack(num_layers, {"L": block}, position=Rope(theta=500_000.0)),
        head=Head(tied=False),
        init_std=0.02,
    )


OLMO2_1B = olmo2(16, 2048, 16, 8192)  # 1,484,916,736 parameters
OLMO2_7B = olmo2(32, 4096, 32, 11_008)  # 7,298,617,344
OLMO2_13B = olmo2(40, 5120, 40, 13_824)  # 13,716,198,400
OLMO2_32B = olmo2(64, 5120, 40, 27_648, num_kv_heads=8)  # 32,234,279,936
