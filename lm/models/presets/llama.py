"""LLaMA and models built like it: pre-norm with RMS norms, SwiGLU, rotary positions, no biases.

LLaMA (Touvron et al., arXiv 2302.13971): section 2.2, table 2. Llama 2 (arXiv 2307.09288): section 2.2, table 1; its 70B has
eight key-value heads. Llama 3 and 3.1 (arXiv 2407.21783): section 3.2, table 3; 128,256 tokens, theta 500,000, and in 3.1 low
frequencies scaled by 8 for contexts beyond 8192. Orca (Mukherjee et al., arXiv 2306.02707), section 4: LLaMA 13B with a
padding token; its weights were not released. Mistral 7B (Jiang et al., arXiv 2310.06825), table 1: v0.1, with a window of 4096.
SmolLM2 (Allal et al., arXiv 2502.02737): the released configs; tied.

Hidden sizes, epsilons and thetas are those of the released configs.
"""

from lm.config import Attention, Block, Head, Mlp, Model, Norm, Rope, Stack

ROPE = Rope()  # theta 10,000
ROPE3 = Rope(theta=500_000.0)
ROPE31 = Rope(theta=500_000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_length=8192)


def llama(
    num_layers: int,
    width: int,
    num_heads: int,
    hidden: int,
    *,
    num_kv_heads: int | None = None,
    vocab_size: int = 32_000,
    rope: Rope = ROPE,
    eps: float = 1e-5,
    window: int | None = None,
    tied: bool = False,
) -> Model:
    block = Block(
        attention=Attention(num_heads, num_kv_heads=num_kv_heads, window=window),
        ffn=Mlp(hidden, activation="silu", gated=True),
        norm=Norm("rms", eps=eps),
        norm_at=("in",),
    )
    return Model(
        vocab_size=vocab_size,
        width=width,
        decoder=Stack(num_layers, {"L": block}, position=rope),
        head=Head(tied=tied),
        init_std=0.02,
    )


def llama3(num_layers: int, width: int, num_heads: int, hidden: int, *, rope: Rope = ROPE3) -> Model:
    return llama(num_layers, width, num_heads, hidden, num_kv_heads=8, vocab_size=128_256, rope=rope)


LLAMA_7B = llama(32, 4096, 32, 11_008, eps=1e-6)  # 6,738,415,616 parameters
LLAMA_13B = llama(40, 5120, 40, 13_824, eps=1e-6)  # 13,015,864,320
LLAMA_33B = llama(60, 6656, 52, 17_920, eps=1e-6)  # 32,528,943,616
LLAMA_65B = llama(80, 8192, 64, 22_016, eps=1e-6)  # 65,285,660,672
ORCA_13B = llama(40, 5120, 40, 13_824, eps=1e-6, vocab_size=32_001)  # 13,015,874,560

LLAMA2_7B = llama(32, 4096, 32, 11_008)  # 6,738,415,616
LLAMA2_13B = llama(40, 5120, 40, 13_824)  # 13,015,864,320
LLAMA2_70B = llama(80, 8192, 64, 28_672, num_kv_heads=8)  # 68,976,648,192

LLAMA3_8B = llama3(32, 4096, 32, 14_336)  # 8,030,261,248
LLAMA3_70B = llama3(80, 8192, 64, 28_672)  # 70,553,706,496
LLAMA31_8B = llama3(32, 4096, 32, 14_336, rope=ROPE31)  # 8,030,261,248
LLAMA31_70B = llama3(80, 8192, 64, 28_672, rope=ROPE31)  # 70,553,706,496
LLAMA31_405B = llama3(126, 16_384, 128, 53_248, rope=ROPE31)  # 405,853,388,800

MISTRAL_7B = llama(32, 4096, 32, 14_336, num_kv_heads=8, window=4096)  # 7,241,732,096


def smollm2(num_layers: int, width: int, num_heads: int, num_kv_heads: int, hidden: int, theta: float) -> Model:
    rope = Rope(theta=theta)
    return llama(num_layers, width, num_heads, hidden, num_kv_heads=num_kv_heads, vocab_size=49_152, rope=rope, tied=True)


SMOLLM2_135M = smollm2(30, 576, 9, 3, 1536, 100_000.0)  # 134,515,008
SMOLLM2_360M = smollm2(32, 960, 15, 5, 2560, 100_000.0)  # 361,821,120
SMOLLM2_1_7B = smollm2(24, 2048, 32, 32, 8192, 130_000.0)  # 1,711,376,384
