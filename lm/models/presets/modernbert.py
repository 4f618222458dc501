"""ModernBERT (Warner et al., arXiv 2412.13663): section 2.1 for the structure, the released configs for the sizes.

Pre-norm with layer norms without bias, GeGLU with exact GELU, no biases except the logits', a norm on the embeddings (and
therefore none before the first attention), rotary positions. Every third layer, starting with the first, has full attention
with theta 160,000; the others have a window of 64 tokens on each side and theta 10,000.
"""

from lm.config import Attention, Block, Embed, Head, Mlp, Model, Norm, Rope, Stack


def modernbert(
    num_layers: int, width: int, hidden: int, *, vocab_size: int = 50_368, window: int = 128, theta: float = 160_000.0
) -> Model:
    norm = Norm("layer", eps=1e-5, bias=False)

    def block(window: int | None = None, rope: Rope | None = None, bare: tuple = ()) -> Block:
        return Block(
            attention=Attention(num_heads=width // 64, window=window, rope=rope),
            ffn=Mlp(hidden, activation="gelu", gated=True),
            norm=norm,
            norm_at=("in",),
            bare=bare,
        )

    blocks = {"F": block(bare=("attention",)), "G": block(), "L": block(window, Rope(theta=10_000.0))}
    pattern = "F" + ("GLL" * num_layers)[1:num_layers]
    return Model(
        vocab_size=vocab_size,
        width=width,
        encoder=Stack(num_layers, blocks, pattern=pattern, position=Rope(theta=theta)),
        embed=Embed(norm=norm),
        head=Head(bias=True, transform="gelu", transform_bias=False, norm=norm),
        init_std=0.02,
    )


MODERNBERT_BASE = modernbert(22, 768, 1152)  # 149,655,232 parameters with the masked-LM head
MODERNBERT_LARGE = modernbert(28, 1024, 2624)  # 395,881,664
