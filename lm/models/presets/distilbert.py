"""DistilBERT (Sanh et al., arXiv 1910.01108), section 3: BERT base with half of the layers, without token types and pooler."""

from lm.config import Attention, Block, Embed, Head, Learned, Mlp, Model, Norm, Stack


def distilbert(num_layers: int, width: int, *, vocab_size: int = 30_522, max_length: int = 512, dropout: float = 0.1) -> Model:
    norm = Norm("layer", eps=1e-12)
    block = Block(
        attention=Attention(num_heads=width // 64, bias=True, out_bias=True, dropout=dropout),
        ffn=Mlp(hidden=4 * width, activation="gelu", bias=True),
        norm=norm,
        norm_at=("out",),
        dropout=dropout,
    )
    return Model(
        vocab_size=vocab_size,
        width=width,
        encoder=Stack(num_layers, {"L": block}, position=Learned(max_length), final_norm=False),
        embed=Embed(norm=norm, dropout=dropout),
        head=Head(bias=True, transform="gelu", norm=norm),
        init_std=0.02,
    )


DISTILBERT = distilbert(6, 768)  # 66,985,530 parameters with the masked-LM head
