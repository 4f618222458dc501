"""Mamba-2 (Dao and Gu, arXiv 2405.21060): section 9 and the released configs of state-spaces/mamba2-*.

A stack of state-space layers alone, without feed-forward networks and positions: twice the width, heads of 64, a state of 128
and one group. RMS norms before each layer, tied embeddings, GPT-NeoX's tokens padded to a multiple of 16.
"""

from lm.config import Block, Head, Mamba2, Model, Norm, Stack


def mamba2(num_layers: int, width: int, *, vocab_size: int = 50_288) -> Model:
    block = Block(norm=Norm("rms", eps=1e-5), mixer=Mamba2())
    return Model(vocab_size=vocab_size, width=width, decoder=Stack(num_layers, {"L": block}), head=Head(tied=True))


MAMBA2_130M = mamba2(24, 768)  # 128,989,632 parameters
MAMBA2_370M = mamba2(48, 1024)  # 368,346,624
MAMBA2_780M = mamba2(48, 1536)  # 780,161,280
MAMBA2_1_3B = mamba2(48, 2048)  # 1,343,757,312
MAMBA2_2_7B = mamba2(64, 2560)  # 2,702,599,680
