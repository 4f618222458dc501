"""MiniLM (Wang et al., arXiv 2002.10957), as the sentence encoder all-MiniLM-L6-v2 of Sentence Transformers.

BERT's structure with 12 heads of 32: six of the twelve layers of MiniLM-L12-H384, trained on pairs of sentences (Reimers and
Gurevych, arXiv 1908.10084). A sentence's embedding is the mean of its hidden vectors, so there is no head. The release
contains BERT's pooler, which the embedding does not use.
"""

from lm.config import Attention, Block, Embed, Learned, Mlp, Model, Norm, Stack


def minilm(
    num_layers: int, width: int, num_heads: int, *, vocab_size: int = 30_522, max_length: int = 512, dropout: float = 0.1
) -> Model:
    norm = Norm("layer", eps=1e-12)
    block = Block(
        attention=Attention(num_heads, bias=True, out_bias=True, dropout=dropout),
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
        head=None,
        pooler=True,
        init_std=0.02,
    )


MINILM_L6 = minilm(6, 384, 12)  # 22,713,216 parameters
