"""GPT-2: "Language Models are Unsupervised Multitask Learners" (Radford et al., 2019), section 2.3 and table 2.

Pre-norm, learned positions, biases everywhere, tied head. Heads of 64, feed-forward four times the width and dropout
0.1 are from the released checkpoints, and so are the parameter counts (the paper's table 2 is too low).
"""

from lm.config import Attention, Block, Embed, Learned, Mlp, Model, Norm, Stack


def gpt2(num_layers: int, width: int, *, vocab_size: int = 50_257, max_length: int = 1024, dropout: float = 0.1) -> Model:
    block = Block(
        attention=Attention(num_heads=width // 64, bias=True, out_bias=True, dropout=dropout),
        ffn=Mlp(hidden=4 * width, activation="gelu_tanh", bias=True),
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


GPT2 = gpt2(12, 768)  # 124,439,808 parameters
GPT2_MEDIUM = gpt2(24, 1024)  # 354,823,168
GPT2_LARGE = gpt2(36, 1280)  # 774,030,080
GPT2_XL = gpt2(48, 1600)  # 1,557,611,200
