"""GPT-1, GPT-2, GPT-3 and Codex: learned positions, biases everywhere, a tied head, a feed-forward four times the width.

GPT-1: "Improving Language Understanding by Generative Pre-Training" (Radford et al., 2018), section 4.1: post-norm, no final
norm. GPT-2: "Language Models are Unsupervised Multitask Learners" (Radford et al., 2019), section 2.3 and table 2: pre-norm.
Parameter counts of both are those of the released checkpoints (table 2 is too low).

GPT-3 (Brown et al., arXiv 2005.14165), section 2.1: GPT-2 with alternating dense and locally banded layers. Neither the band's
width nor any dropout is published; 256 and none are our choice. Sizes are from table 2.1, which is inconsistent in two rows:
XL has 24 heads of 128 in a width of 2048, and 13B a width of 5140 with 40 heads of 128. With 16 heads and a width of 5120 the
counts agree with table D.1 (in millions: 125, 356, 760, 1,320, 2,650, 6,660, 12,850, 174,600), so we use these.

Codex (Chen et al., arXiv 2107.03374), section 3.2: GPT-3 trained further, with added tokens for runs of spaces; the largest
has 12B parameters. The paper gives neither shape nor vocabulary. The shape is that of GPT-3 13B; 50,281 is the size of the
encoding that was released for it (tiktoken's p50k_base).
"""

from lm.config import Attention, Block, Embed, Learned, Mlp, Model, Norm, Stack


def gpt1(num_layers: int, width: int, *, vocab_size: int = 40_478, max_length: int = 512, dropout: float = 0.1) -> Model:
    block = Block(
        attention=Attention(num_heads=width // 64, bias=True, out_bias=True, dropout=dropout),
        ffn=Mlp(hidden=4 * width, activation="gelu_tanh", bias=True),
        norm=Norm("layer", eps=1e-5),
        norm_at=("out",),
        dropout=dropout,
    )
    return Model(
        vocab_size=vocab_size,
        width=width,
        decoder=Stack(num_layers, {"L": block}, position=Learned(max_length), final_norm=False),
        embed=Embed(dropout=dropout),
        init_std=0.02,
    )


def gpt2(num_layers: int, width: int, *, vocab_size: int = 50_257, max_length: int = 1024, dropout: float = 0.1) -> Model:
    block = Block(
        attention=Attention(num_heads=width // 64, bias=True, out_bias=True, dropout=dropout),
        ffn=Mlp(hidden=4 * width, activation="gelu_tanh", bias=True),
        norm=Norm("layer", eps=1e-5),
        norm_at=("in",),
        dropout=dropout,
    )
    return Model(
        vocab_size=vocab_size,
        width=width,
        decoder=Stack(num_layers, {"L": block}, position=Learned(max_length)),
        embed=Embed(dropout=dropout),
        init_std=0.02,
    )


def gpt3(num_layers: int, width: int, num_heads: int, *, vocab_size: int = 50_257, window: int = 256) -> Model:
    def block(window: int | None) -> Block:
        return Block(
            attention=Attention(num_heads, bias=True, out_bias=True, window=window),
            ffn=Mlp(hidden=4 * width, activation="gelu_tanh", bias=True),
            norm=Norm("layer", eps=1e-5),
            norm_at=("in",),
        )

    stack = Stack(num_layers, {"G": block(None), "L": block(window)}, pattern="GL", position=Learned(2048))
    return Model(vocab_size=vocab_size, width=width, decoder=stack, init_std=0.02)


GPT1 = gpt1(12, 768)  # 116,534,784 parameters

GPT2 = gpt2(12, 768)  # 124,439,808
GPT2_MEDIUM = gpt2(24, 1024)  # 354,823,168
GPT2_LARGE = gpt2(36, 1280)  # 774,030,080
GPT2_XL = gpt2(48, 1600)  # 1,557,611,200

GPT3_SMALL = gpt3(12, 768, 12)  # 125,226,240
GPT3_MEDIUM = gpt3(24, 1024, 16)  # 355,871,744
GPT3_LARGE = gpt3(24, 1536, 16)  # 760,300,032
GPT3_XL = gpt3(24, 2048, 16)  # 1,315,723,264
GPT3_2_7B = gpt3(32, 2560, 32)  # 2,651,553,280
GPT3_6_7B = gpt3(32, 4096, 32)  # 6,658,404,352
GPT3_13B = gpt3(40, 5120, 40)  # 12,853,386,240
GPT3_175B = gpt3(96, 12_288, 96)  # 174,604,259,328

CODEX_12B = gpt3(40, 5120, 40, vocab_size=50_281)  # 12,853,509,120
