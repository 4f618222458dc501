"""ViT (Dosovitskiy et al., arXiv 2010.11929): sizes from table 1, the rest from section 3.1.

Pre-norm, a class token, learned positions, exact GELU, biases everywhere. The head is one layer over the classes (section 4.1,
fine-tuning). "B/16" is Base with patches of 16 pixels.
"""

from lm.config import Attention, Block, Head, Learned, Mlp, Model, Norm, Patches, Stack


def vit(
    num_layers: int, width: int, heads: int, patch: int, *, image: int = 224, classes: int | None = 1000, dropout: float = 0.0
) -> Model:
    """`classes`: of the head; None: no head."""
    stem = Patches(patch, image)
    block = Block(
        attention=Attention(heads, bias=True, out_bias=True),
        ffn=Mlp(4 * width, "gelu", bias=True),
        norm=Norm(eps=1e-6),
        dropout=dropout,
    )
    stack = Stack(num_layers, {"L": block}, position=Learned(stem.length), stem=stem)
    head = None if classes is None else Head(tied=False, bias=True, outputs=classes)
    return Model(1, width, encoder=stack, head=head)


VIT_B16 = vit(12, 768, 12, 16)  # 86,567,656 parameters with a head of 1,000 classes
VIT_B32 = vit(12, 768, 12, 32)  # 88,224,232
VIT_L16 = vit(24, 1024, 16, 16)  # 304,326,632
VIT_H14 = vit(32, 1280, 16, 14)  # 632,045,800
