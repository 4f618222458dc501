"""StarCoder (Li et al., arXiv 2305.06161): section 5. StarCoder2 (Lozhkov et al., arXiv 2402.19173), released configs.

StarCoder is GPT-2 with one key-value head, 8192 learned positions and exact GELU. StarCoder2 has rotary positions, grouped
key-value heads, a window of 4096 in every layer, GELU by its tanh formula, and biases everywhere. Its 15B model has an untied
head, the smaller ones a tied one; theta differs by size (the 3B config has 999,999.44, here 1,000,000).
"""

from lm.config import Attention, Block, Embed, Head, Learned, Mlp, Model, Norm, Rope, Stack


def starcoder(
    num_layers: int, width: int, num_heads: int, *, vocab_size: int = 49_152, max_length: int = 8192, dropout: float = 0.1
) -> Model:
    block = Block(
        attention=Attention(num_heads, num_kv_heads=1, bias=True, out_bias=True, dropout=dropout),
        ffn=Mlp(hidden=4 * width, activation="gelu", bias=True),
        norm=Norm("layer", eps=1e-5),
        norm_at=("in",),
        dropout=dropout,
    )
    return Model(
        vocab_size=vocab_size,
        width=width,
        decoder=Stack(num_layers, {"L": block}, position=Learned(max_length)),
        embed=Embed(dropout=dropout),
        init_std=0.02,
    )


def starcoder2(
    num_layers: int,
    width: int,
    num_heads: int,
    num_kv_heads: int,
    *,
    theta: float = 1_000_000.0,
    tied: bool = True,
    std: float = 0.018042,
    vocab_size: int = 49_152,
    window: int = 4096,
) -> Model:
    block = Block(
        attention=Attention(num_heads, num_kv_heads=num_kv_heads, bias=True, out_bias=True, window=window),
        ffn=Mlp(hidden=4 * width, activation="gelu_tanh", bias=True),
        norm=Norm("layer", eps=1e-5),
        norm_at=("in",),
    )
    return Model(
        vocab_size=vocab_size,
        width=width,
        decoder=Stack(num_layers, {"L": block}, position=Rope(theta=theta)),
        head=Head(tied=tied),
        init_std=std,
    )


STARCODER_15B = starcoder(40, 6144, 48)  # 15,517,456,384 parameters

STARCODER2_3B = starcoder2(30, 3072, 24, 2)  # 3,030,371,328
STARCODER2_7B = starcoder2(32, 4608, 36, 4)  # 7,173,923,840
STARCODER2_15B = starcoder2(40, 6144, 48, 4, theta=100_000.0, tied=False, std=0.01275)  # 15,957,889,024
