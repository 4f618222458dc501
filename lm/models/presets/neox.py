"""GPT-NeoX-20B (Black et al., arXiv 2204.06745): section 2.1. Pythia (Biderman et al., arXiv 2304.01373): table 1.

Attention and feed-forward in parallel, each after its own layer norm with bias; biases everywhere but on the untied head;
rotary positions on a quarter of each head. Vocabularies are padded to the released sizes: 50,304 up to 2.8B, then 50,432
(6.9B, 20B) and 50,688 (12B). Pythia uses exact GELU, also in the 14M and 31M models that came after the paper; 20B uses the
tanh formula.
"""

from lm.config import Attention, Block, Head, Mlp, Model, Norm, Rope, Stack


def neox(num_layers: int, width: int, num_heads: int, *, vocab_size: int = 50_304, exact: bool = True) -> Model:
    block = Block(
        attention=Attention(num_heads, bias=True, out_bias=True),
        ffn=Mlp(hidden=4 * width, activation="gelu" if exact else "gelu_tanh", bias=True),
        norm=Norm("layer", eps=1e-5),
        norm_at=("in",),
        parallel="separate",
    )
    return Model(
        vocab_size=vocab_size,
        width=width,
        decoder=Stack(num_layers, {"L": block}, position=Rope(fraction=0.25)),
        head=Head(tied=False),
        init_std=0.02,
    )


PYTHIA_14M = neox(6, 128, 4)  # 14,067,712 parameters
PYTHIA_31M = neox(6, 256, 8)  # 30,494,720
PYTHIA_70M = neox(6, 512, 8)  # 70,426,624
PYTHIA_160M = neox(12, 768, 12)  # 162,322,944
PYTHIA_410M = neox(24, 1024, 16)  # 405,334,016
PYTHIA_1B = neox(16, 2048, 8)  # 1,011,781,632
PYTHIA_1_4B = neox(24, 2048, 16)  # 1,414,647,808
PYTHIA_2_8B = neox(32, 2560, 32)  # 2,775,208,960
PYTHIA_6_9B = neox(32, 4096, 32, vocab_size=50_432)  # 6,857,302,016
PYTHIA_12B = neox(36, 5120, 40, vocab_size=50_688)  # 11,846,072,320

NEOX_20B = neox(44, 6144, 64, vocab_size=50_432, exact=False)  # 20,554,567,680
