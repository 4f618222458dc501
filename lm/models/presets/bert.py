"""BERT (Devlin et al., arXiv 1810.04805): sizes from section 3, the rest from section 3.1 and appendix A.2.

Post-norm, learned positions, two token types, a norm on the sum of embeddings, exact GELU. The masked-LM head is a dense
layer with GELU and norm, then tied logits with a bias. Pooler and next-sentence head are left out.

The small models are the grid of "Well-Read Students Learn Better" (Turc et al., arXiv 1908.08962), from "L2_H128" ("tiny",
4,416,698 parameters) to "L12_H768" (base).
"""

from lm.config import Attention, Block, Embed, Head, Learned, Mlp, Model, Norm, Stack


def bert(num_layers: int, width: int, *, vocab_size: int = 30_522, max_length: int = 512, dropout: float = 0.1) -> Model:
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
        embed=Embed(norm=norm, types=2, dropout=dropout),
        head=Head(bias=True, transform="gelu", norm=norm),
        init_std=0.02,
    )


BERT_BASE = bert(12, 768)  # 109,514,298 parameters with the masked-LM head
BERT_LARGE = bert(24, 1024)  # 335,174,458

BERT_SMALL = {f"L{n}_H{width}": bert(n, width) for n in (2, 4, 6, 8, 10, 12) for width in (128, 256, 512, 768)}
