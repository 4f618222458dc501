"""RoBERTa (Liu et al., arXiv 1907.11692): BERT's structure (section 2.1) over 50,265 byte-level tokens (section 4.4).

One token type. Positions start at row 2 of the released table, after the padding token's id, so that the table for 512 tokens
has 514 rows. The pooler is left out.
"""

from lm.config import Attention, Block, Embed, Head, Learned, Mlp, Model, Norm, Stack


def roberta(num_layers: int, width: int, *, vocab_size: int = 50_265, max_length: int = 512, dropout: float = 0.1) -> Model:
    norm = Norm("layer", eps=1e-5)
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
        encoder=Stack(num_layers, {"L": block}, position=Learned(max_length, offset=2), final_norm=False),
        embed=Embed(norm=norm, types=1, dropout=dropout),
        head=Head(bias=True, transform="gelu", norm=norm),
        init_std=0.02,
    )


ROBERTA_BASE = roberta(12, 768)  # 124,697,433 parameters with the masked-LM head
ROBERTA_LARGE = roberta(24, 1024)  # 355,412,057
