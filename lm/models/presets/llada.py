"""LLaDA 8B (Nie et al., arXiv 2502.09992), sizes of the released config: LLaMA's blocks without a causal mask.

It is trained by masked diffusion. 126,464 tokens, the mask token among them; theta 500,000.
"""

from lm.config import Attention, Block, Head, Mlp, Model, Norm, Rope, Stack

LLADA_8B = Model(  # 8,015,581,184 parameters
    vocab_size=126_464,
    width=4096,
    encoder=Stack(
        32,
        {"L": Block(Attention(32), Mlp(12_288, activation="silu", gated=True), Norm("rms", eps=1e-5))},
        position=Rope(theta=500_000.0),
    ),
    head=Head(tied=False),
    init_std=0.02,
)
