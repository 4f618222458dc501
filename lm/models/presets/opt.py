"""OPT (Zhang et al., arXiv 2205.01068), table 1, without the 350M, which differs from the others (post-norm).

GPT-3's sizes with ReLU: pre-norm, learned positions that start at row 2, biases everywhere, tied logits.
"""

from lm.config import Attention, Block, Embed, Learned, Mlp, Model, Norm, Stack


def opt(num_layers: int, width: int, num_heads: int, *, vocab_size: int = 50_272, dropout: float = 0.1) -> Model:
    block = Block(
        attention=Attention(num_heads, bias=True, out_bias=True, dropout=dropout),
        ffn=Mlp(4 * width, "relu", bias=True),
        norm=Norm(eps=1e-5),
        dropout=dropout,
    )
    stack = Stack(num_layers, {"L": block}, position=Learned(2048, offset=2))
    return Model(vocab_size, width, decoder=stack, embed=Embed(dropout=dropout), init_std=0.006)


OPT_125M = opt(12, 768, 12)  # 125,239,296 parameters
OPT_1_3B = opt(24, 2048, 32)  # 1,315,758,080
OPT_2_7B = opt(32, 2560, 32)  # 2,651,596,800
OPT_6_7B = opt(32, 4096, 32)  # 6,658,473,984
OPT_13B = opt(40, 5120, 40)  # 12,853,473,280
OPT_30B = opt(48, 7168, 56)  # 29,974,540,288
OPT_66B = opt(64, 9216, 72)  # 65,719,701,504
OPT_175B = opt(96, 12_288, 96)  # 174,604,468,224
