"""Phi-2 (Microsoft, 2023), structure and size from the released config; there is no paper.

Attention and feed-forward in parallel after one layer norm, biases everywhere including the untied head, rotary positions on
two fifths of a head of 80, GELU by its tanh formula.
"""

from lm.config import Attention, Block, Head, Mlp, Model, Norm, Rope, Stack


def phi(
    num_layers: int, width: int, num_heads: int, *, fraction: float = 0.4, vocab_size: int = 51_200, dropout: float = 0.1
) -> Model:
    block = Block(
        attention=Attention(num_heads, bias=True, out_bias=True),
        ffn=Mlp(hidden=4 * width, activation="gelu_tanh", bias=True),
        norm=Norm("layer", eps=1e-5),
        norm_at=("in",),
        parallel="shared",
        dropout=dropout,
    )
    return Model(
        vocab_size=vocab_size,
        width=width,
        decoder=Stack(num_layers, {"L": block}, position=Rope(fraction=fraction)),
        head=Head(tied=False, bias=True),
        init_std=0.02,
    )


PHI2 = phi(32, 2560, 32)  # 2,779,683,840 parameters
