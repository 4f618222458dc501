"""RecurrentGemma (Botev et al., arXiv 2404.07839): section 2, table 1. Its layers are Griffin's (De et al., arXiv 2402.19427).

Two layers of a gated linear recurrence, then one of attention with a window of 2,048 tokens and a single key-value head, over
and over; each is followed by a GeGLU of three times the width. RMS norms whose stored scale is an offset from 1, half of a
head's dimensions rotated, a soft cap of 30 on the logits of a tied head, biases everywhere but at queries, keys and values.
Embeddings are multiplied by sqrt(width), which the released code rounds to bfloat16.
"""

from lm.config import Attention, Block, Embed, GatedLinear, Head, Mlp, Model, Norm, Rope, Stack


def recurrent_gemma(
    num_layers: int, width: int, num_heads: int, *, scale: float, window: int = 2048, vocab_size: int = 256_000
) -> Model:
    ffn = Mlp(3 * width, activation="gelu_tanh", gated=True, bias=True)
    norm = Norm("rms", eps=1e-6, unit_offset=True)
    attention = Attention(num_heads, num_kv_heads=1, out_bias=True, window=window)
    blocks = {
        "R": Block(None, ffn, norm, mixer=GatedLinear(num_heads=num_heads, bias=True)),
        "A": Block(attention, ffn, norm),
    }
    return Model(
        vocab_size=vocab_size,
        width=width,
        decoder=Stack(num_layers, blocks, "RRA", position=Rope(fraction=0.5)),
        embed=Embed(scale=scale),
        head=Head(tied=True, softcap=30.0),
    )


RECURRENTGEMMA_2B = recurrent_gemma(26, 2560, 10, scale=50.5)  # 2,682,862,080 parameters
RECURRENTGEMMA_9B = recurrent_gemma(38, 4096, 16, scale=64.0)  # 8,579,977,216
