"""Falcon (Almazrouei et al., arXiv 2311.16867), sizes from the released configs.

Attention and feed-forward in parallel, layer norms with a bias and no other biases, rotary positions, exact GELU, heads of
64, tied embeddings. The 7B has one norm per layer and one key-value head; 40B and 180B have a norm for each part and eight
key-value heads.
"""

from lm.config import Attention, Block, Mlp, Model, Norm, Rope, Stack


def falcon(num_layers: int, width: int, num_kv_heads: int, *, norms: int = 2, vocab_size: int = 65_024) -> Model:
    block = Block(
        attention=Attention(width // 64, num_kv_heads=num_kv_heads),
        ffn=Mlp(hidden=4 * width, activation="gelu"),
        norm=Norm("layer", eps=1e-5),
        norm_at=("in",),
        parallel="separate" if norms == 2 else "shared",
    )
    stack = Stack(num_layers, {"L": block}, position=Rope())
    return Model(vocab_size=vocab_size, width=width, decoder=stack, init_std=0.02)


FALCON_7B = falcon(32, 4544, 1, norms=1)  # 6,921,720,704 parameters
FALCON_40B = falcon(60, 8192, 8)  # 41,303,293,952
FALCON_180B = falcon(80, 14_848, 8)  # 178,557,088,768
