"""GPT-J-6B (Wang and Komatsuzaki, 2021), structure and size from the released config; there is no paper.

Attention and feed-forward in parallel after one layer norm; biases in the feed-forward and the untied head, none in
attention; GELU by its tanh formula; rotary positions on 64 of a head's 256 dimensions, in pairs of neighbours. The
vocabulary of 50,257 tokens is padded to 50,400.
"""

from lm.config import Attention, Block, Head, Mlp, Model, Norm, Rope, Stack


def gptj(num_layers: int, width: int, num_heads: int, *, fraction: float = 0.25, vocab_size: int = 50_400) -> Model:
    block = Block(
        attention=Attention(num_heads),
        ffn=Mlp(hidden=4 * width, activation="gelu_tanh", bias=True),
        norm=Norm("layer", eps=1e-5),
        norm_at=("in",),
        parallel="shared",
    )
    return Model(
        vocab_size=vocab_size,
        width=width,
        decoder=Stack(num_layers, {"L": block}, position=Rope(fraction=fraction, interleaved=True)),
        head=Head(tied=False, bias=True),
        init_std=0.02,
    )


GPTJ_6B = gptj(28, 4096, 16)  # 6,050,882,784 parameters
