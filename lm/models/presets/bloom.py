"""BLOOM (BigScience, arXiv 2211.05100): section 3.2. BloombergGPT (Wu et al., arXiv 2303.17564): section 3.1.

Pre-norm with biases everywhere, ALiBi, a layer norm on the embeddings, GELU by its tanh formula, a tied head. BLOOM pads its
vocabulary to 250,880. BloombergGPT has the same structure; its weights were not released, and its paper gives 50.6B
parameters.
"""

from lm.config import Alibi, Attention, Block, Embed, Mlp, Model, Norm, Stack


def bloom(num_layers: int, width: int, num_heads: int, *, vocab_size: int = 250_880) -> Model:
    norm = Norm("layer", eps=1e-5)
    block = Block(
        attention=Attention(num_heads, bias=True, out_bias=True),
        ffn=Mlp(hidden=4 * width, activation="gelu_tanh", bias=True),
        norm=norm,
        norm_at=("in",),
    )
    return Model(
        vocab_size=vocab_size,
        width=width,
        decoder=Stack(num_layers, {"L": block}, position=Alibi()),
        embed=Embed(norm=norm),
        init_std=0.02,
    )


BLOOM_560M = bloom(24, 1024, 16)  # 559,214,592 parameters
BLOOM_1B1 = bloom(24, 1536, 16)  # 1,065,314,304
BLOOM_1B7 = bloom(24, 2048, 16)  # 1,722,408,960
BLOOM_3B = bloom(30, 2560, 32)  # 3,002,557,440
BLOOM_7B1 = bloom(30, 4096, 32)  # 7,069,016,064
BLOOM_176B = bloom(70, 14_336, 112)  # 176,247,271,424

BLOOMBERG_50B = bloom(70, 7680, 40, vocab_size=131_072)  # 50,558,868,480
