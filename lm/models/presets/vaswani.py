"""The Transformer (Vaswani et al., arXiv 1706.03762): section 3 for the structure, 5.4 for dropout, table 3 for the sizes.

Post-norm, sinusoidal positions, embeddings multiplied by sqrt(width) and tied to the logits, ReLU, biases only in the
feed-forward. The paper has "about 37,000" tokens (section 5.1), so counts agree only roughly: table 3 gives 65 million for
base, 2 million more than here, and 213 million for big, 1 million less.
"""

from lm.config import Attention, Block, Embed, Mlp, Model, Norm, Sinusoidal, Stack


def vaswani(num_layers: int, width: int, num_heads: int, *, vocab_size: int = 37_000, dropout: float = 0.1) -> Model:
    def stack(*, cross: bool) -> Stack:
        block = Block(
            attention=Attention(num_heads),
            ffn=Mlp(hidden=4 * width, activation="relu", bias=True),
            norm=Norm("layer", eps=1e-6),
            norm_at=("out",),
            cross=cross,
            dropout=dropout,
        )
        return Stack(num_layers, {"L": block}, position=Sinusoidal(), final_norm=False)

    return Model(
        vocab_size=vocab_size,
        width=width,
        encoder=stack(cross=False),
        decoder=stack(cross=True),
        embed=Embed(scale=width**0.5, dropout=dropout),
        embed_init_std=width**-0.5,
    )


VASWANI_BASE = vaswani(6, 512, 8)  # 63,045,632 parameters
VASWANI_BIG = vaswani(6, 1024, 16, dropout=0.3)  # 214,171,648
