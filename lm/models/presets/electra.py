"""ELECTRA (Clark et al., arXiv 2003.10555): section 2 for the two models; sizes from appendix A and the releases.

Two models with BERT's structure, which the objective `lm.config.ReplacedTokens` trains together. The generator predicts masked
tokens; the discriminator predicts for each token whether it was replaced, with a dense layer with GELU and one logit. Where
the tables' width differs from the model's, embeddings are projected. A generator has its discriminator's table width, because
the two share tables in training.

The generators are the released ones, 256 wide at every size (the paper's small one is a quarter of 256).
"""

from lm.config import Attention, Block, Embed, Head, Learned, Mlp, Model, Norm, Stack

NORM = Norm("layer", eps=1e-12)


def electra(
    num_layers: int,
    width: int,
    *,
    embed_width: int | None = None,
    head: Head,
    vocab_size: int = 30_522,
    max_length: int = 512,
    dropout: float = 0.1,
) -> Model:
    block = Block(
        attention=Attention(num_heads=width // 64, bias=True, out_bias=True, dropout=dropout),
        ffn=Mlp(hidden=4 * width, activation="gelu", bias=True),
        norm=NORM,
        norm_at=("out",),
        dropout=dropout,
    )
    return Model(
        vocab_size=vocab_size,
        width=width,
        encoder=Stack(num_layers, {"L": block}, position=Learned(max_length), final_norm=False),
        embed=Embed(width=embed_width, norm=NORM, types=2, dropout=dropout),
        head=head,
        init_std=0.02,
    )


DISCRIMINATOR = Head(tied=False, bias=True, transform="gelu", norm=None, outputs=1)
GENERATOR = Head(bias=True, transform="gelu", norm=NORM)

ELECTRA_SMALL = electra(12, 256, embed_width=128, head=DISCRIMINATOR)  # 13,549,057 parameters
ELECTRA_BASE = electra(12, 768, head=DISCRIMINATOR)  # 109,483,009
ELECTRA_LARGE = electra(24, 1024, head=DISCRIMINATOR)  # 335,142,913

ELECTRA_SMALL_GENERATOR = electra(12, 256, embed_width=128, head=GENERATOR)  # 13,546,682
ELECTRA_BASE_GENERATOR = electra(12, 256, embed_width=768, head=GENERATOR)  # 33,740,602
ELECTRA_LARGE_GENERATOR = electra(24, 256, embed_width=1024, head=GENERATOR)  # 51,295,290
