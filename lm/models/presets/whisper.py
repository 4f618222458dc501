"""Whisper (Radford et al., arXiv 2212.04356): sizes from table 1, everything else from the released configs.

A pre-norm encoder of 30 seconds of log-mel frames, behind two convolutions, and a decoder of up to 448 tokens. Biases
everywhere but on keys, exact GELU, one token table for the decoder and the logits. The encoder's positions are sines and
cosines, which the released files have as a table.
"""

from lm.config import Attention, Block, Frames, Learned, Mlp, Model, Norm, Stack


def whisper(
    num_layers: int, width: int, num_heads: int, *, vocab_size: int = 51_865, bands: int = 80, decoder_layers: int | None = None
) -> Model:
    stem = Frames(3000, bands)

    def stack(layers: int, length: int, *, cross: bool, stem: Frames | None = None) -> Stack:
        block = Block(
            attention=Attention(num_heads, bias=True, out_bias=True, key_bias=False),
            ffn=Mlp(hidden=4 * width, activation="gelu", bias=True),
            norm=Norm("layer", eps=1e-5),
            cross=cross,
        )
        return Stack(layers, {"L": block}, position=Learned(length), stem=stem)

    return Model(
        vocab_size=vocab_size,
        width=width,
        encoder=stack(num_layers, stem.length, cross=False, stem=stem),
        decoder=stack(decoder_layers or num_layers, 448, cross=True),
        init_std=0.02,
    )


WHISPER_TINY = whisper(4, 384, 6)  # 37,760,640 parameters
WHISPER_BASE = whisper(6, 512, 8)  # 72,593,920
WHISPER_SMALL = whisper(12, 768, 12)  # 241,734,912
WHISPER_MEDIUM = whisper(24, 1024, 16)  # 763,857,920
WHISPER_LARGE = whisper(32, 1280, 20)  # 1,543,304,960
WHISPER_LARGE_V3 = whisper(32, 1280, 20, vocab_size=51_866, bands=128)  # 1,543,490,560
WHISPER_LARGE_V3_TURBO = whisper(32, 1280, 20, vocab_size=51_866, bands=128, decoder_layers=4)  # 808,878,080
