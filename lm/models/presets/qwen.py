"""Qwen3, the dense models (Qwen Team, arXiv 2505.09388): section 2, table 1, and the released configs.

LLaMA with queries and keys normalised per head before the rotation, heads of 128 at every width, eight key-value heads, and
theta 1,000,000. Embeddings are tied up to 4B.
"""

from lm.config import Attention, Block, Head, Mlp, Model, Norm, Rope, Stack


def qwen3(num_layers: int, width: int, num_heads: int, hidden: int, *, tied: bool, vocab_size: int = 151_936) -> Model:
    norm = Norm("rms", eps=1e-6)
    block = Block(
        attention=Attention(num_heads, num_kv_heads=8, head_dim=128, qk_norm=norm),
        ffn=Mlp(hidden, activation="silu", gated=True),
        norm=norm,
        norm_at=("in",),
    )
    return Model(
        vocab_size=vocab_size,
        width=width,
        decoder=Stack(num_layers, {"L": block}, position=Rope(theta=1_000_000.0)),
        head=Head(tied=tied),
        init_std=0.02,
    )


QWEN3_0_6B = qwen3(28, 1024, 16, 3072, tied=True)  # 596,049,920 parameters
QWEN3_1_7B = qwen3(28, 2048, 16, 6144, tied=True)  # 1,720,574,976
QWEN3_4B = qwen3(36, 2560, 32, 9728, tied=True)  # 4,022,468,096
QWEN3_8B = qwen3(36, 4096, 32, 12_288, tied=False)  # 8,190,735,360
QWEN3_14B = qwen3(40, 5120, 40, 17_408, tied=False)  # 14,768,307,200
QWEN3_32B = qwen3(64, 5120, 64, 25_600, tied=False)  # 32,762,123,264
