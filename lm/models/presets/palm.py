"""PaLM (Chowdhery et al., arXiv 2204.02311): section 2 for the structure, table 1 for sizes, section 5 for initial values.

Attention and feed-forward side by side behind one norm, one key-value head for all queries, SwiGLU of four times the width,
rotary positions, no bias in any product or norm, tied embeddings drawn from N(0, 1) and logits times width ** -0.5. Heads
are of 256 at every size, so at 540B they are narrower together than the model.

The paper's table prints 540.35B, which is the sum without the norms' scales (540.354B); with them it is 540.356B. Which
pairs rotary positions turn is not in the paper: neighbours stand here, as RoFormer has them, and an epsilon of 1e-6.
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
