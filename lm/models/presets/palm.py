"""PaLM (Chowdhery et al., arXiv 2204.02311): section 2 for the structure, table 1 for sizes, section 5 for initial values.

Attention and feed-forward in parallel after one norm, one key-value head, SwiGLU of four times the width, rotary positions,
no biases in matmuls or norms, tied embeddings drawn from N(0, 1), logits multiplied by width ** -0.5. Heads are of size 256 at
every size, so at 540B all heads together are narrower than the model.

The paper prints 540.35B parameters, the count without the norms' scales (540.354B); with them it is 540.356B. The paper does
not give the epsilon, for which we use 1e-6, nor which dimensions rotary positions pair; we pair neighbours, as RoFormer does.
"""

from lm.config import Attention, Block, Head, Mlp, Model, Norm, Rope, Stack


def palm(num_layers: int, width: int, num_heads: int, *, vocab_size: int = 256_000) -> Model:
    block = Block(
        attention=Attention(num_heads, num_kv_heads=1, head_dim=256),
        ffn=Mlp(hidden=4 * width, activation="silu", gated=True),
        norm=Norm("layer", eps=1e-6, bias=False),
        norm_at=("in",),
        parallel="shared",
    )
    return Model(
        vocab_size=vocab_size,
        width=width,
        decoder=Stack(num_layers, {"L": block}, position=Rope(interleaved=True)),
        head=Head(tied=True, scale=width**-0.5),
        embed_init_std=1.0,
    )


PALM_8B = palm(32, 4096, 16)  # 8,632,012,800 parameters
PALM_62B = palm(64, 8192, 32)  # 62,495,662,080
PALM_540B = palm(118, 18_432, 48)  # 540,356,474,880
