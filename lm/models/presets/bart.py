"""BART (Lewis et al., arXiv 1910.13461): structure from section 2.1, everything else from the released configs.

A post-norm encoder and decoder, each with learned positions (that start at row 2 of the released tables) and a norm on its
embeddings; biases everywhere, exact GELU, and one token table for both stacks and the logits.
"""

from lm.config import Attention, Block, Embed, Learned, Mlp, Model, Norm, Stack


def bart(
    num_layers: int, width: int, num_heads: int, *, vocab_size: int = 50_265, max_length: int = 1024, dropout: float = 0.1
) -> Model:
    norm = Norm("layer", eps=1e-5)

    def stack(*, cross: bool) -> Stack:
        block = Block(
            attention=Attention(num_heads, bias=True, out_bias=True),
            ffn=Mlp(hidden=4 * width, activation="gelu", bias=True),
            norm=norm,
            norm_at=("out",),
            cross=cross,
            dropout=dropout,
        )
        return Stack(num_layers, {"L": block}, position=Learned(max_length, offset=2), final_norm=False)

    return Model(
        vocab_size=vocab_size,
        width=width,
        encoder=stack(cross=False),
        decoder=stack(cross=True),
        embed=Embed(norm=norm, dropout=dropout),
        init_std=0.02,
    )


BART_BASE = bart(6, 768, 12)  # 139,420,416 parameters
BART_LARGE = bart(12, 1024, 16)  # 406,291,456
