"""Mixtures of experts: Mixtral-8x7B (Jiang et al., arXiv 2401.04088, table 1) and Grok-1 (xAI's release of March 2024).

Mixtral is Mistral with eight SwiGLU experts instead of each feed-forward; a token uses two, with weights that sum to 1.
Grok-1 has norms before and after each part, attention logits capped at 30, experts gated by GELU and weighted by the
softmax over all eight, and scaled embeddings and logits; sizes and multipliers are those of the released code.
"""

from lm.config import Attention, Block, Embed, Head, Mlp, Model, Moe, Norm, Rope, Stack


def mixtral(num_layers: int, width: int, num_heads: int, num_kv_heads: int, hidden: int, *, experts: int = 8) -> Model:
    block = Block(
        attention=Attention(num_heads, num_kv_heads),
        ffn=Moe(experts, 2, Mlp(hidden, "silu", gated=True)),
        norm=Norm("rms", eps=1e-5),
    )
    stack = Stack(num_layers, {"L": block}, position=Rope(theta=1_000_000.0))
    return Model(32_000, width, decoder=stack, head=Head(tied=False), init_std=0.02)


def grok(num_layers: int, width: int, num_heads: int, num_kv_heads: int, hidden: int) -> Model:
    block = Block(
        attention=Attention(num_heads, num_kv_heads, head_dim=128, softcap=30.0),
        ffn=Moe(8, 2, Mlp(hidden, "gelu_tanh", gated=True), renormalize=False),
        norm=Norm("rms", eps=1e-5),
        norm_at=("in", "res"),
    )
    return Model(
        131_072,
        width,
        decoder=Stack(num_layers, {"L": block}, position=Rope()),
        embed=Embed(scale=78.38367176906169),
        head=Head(scale=0.5773502691896257),
        init_std=0.02,
    )


MIXTRAL_8X7B = mixtral(32, 4096, 32, 8, 14_336)  # 46,702,792,704 parameters, 12.9 billion active per token
GROK_1 = grok(64, 6144, 48, 8, 32_768)  # 315,684,820,992; xAI prints 314 billion
