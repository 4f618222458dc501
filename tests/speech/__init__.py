"""Twelve recordings of espeak-ng 1.51, 8 bits at 8 kHz (speech.jsonl says what is said), and tiny runs on them."""

from pathlib import Path
from typing import Any

from lm import config

FOLDER = Path(__file__).parent
VOCAB, WIDTH = 400, 16


def model(architecture: str) -> config.Model:
    """A Conformer of one block, or an encoder-decoder of Whisper's shape, which reads two seconds."""
    stem = config.Frames(160, strides=(2, 2))
    if architecture == "encoder":
        half = config.Block(ffn=config.Mlp(32, "silu", bias=True), scale=0.5)
        blocks = {
            "F": half,
            "A": config.Block(config.Attention(2)),
            "C": config.Block(mixer=config.Convolution(5)),
            "G": config.Block(ffn=config.Mlp(32, "silu", bias=True), scale=0.5, norm_at=("in", "out")),
        }
        stack = config.Stack(4, blocks, "FACG", config.Rope(), final_norm=False, stem=stem)
        return config.Model(VOCAB, WIDTH, stack, head=config.Head(tied=False, bias=True))
    block = config.Block(config.Attention(2, bias=True, out_bias=True, key_bias=False), config.Mlp(32, "gelu", bias=True))
    across = config.Block(block.attention, block.ffn, cross=True)
    encoder = config.Stack(1, {"L": block}, position=config.Sinusoidal(), stem=stem)
    return config.Model(VOCAB, WIDTH, encoder, config.Stack(1, {"L": across}, position=config.Learned(24)))


def run(architecture: str, cache: Path, *, steps: int = 6, recipe: Any = None, **changes: Any) -> config.Run:
    """Six steps of four rows, of the committed recordings; a fifth of the sentences is held out."""
    data = config.Data(
        {"said": config.Source("jsonl", str(FOLDER / "speech.jsonl"), format="speech")},
        dedup=config.Dedup(False, None),
        tokenizer=config.Tokenizer(vocab_size=VOCAB),
        holdout=0.34,
        cache=str(cache),
    )
    settings: dict[str, Any] = dict(
        optimizer=config.Optimizer(learning_rate=3e-3, schedule=config.Schedule("constant", warmup=0)),
        train=config.Train(steps=steps, batch_size=4),
        checkpoint=config.Checkpoint(every=None),
        evaluate=config.Evaluate(every=None, batch_size=4),
        log=config.Log(every=2, tensorboard=False),
    )
    recipe = recipe or config.Transcribe(answer=24, hide_bands=8, hide_frames=8)
    return config.Run(model(architecture), data, recipe=recipe, **settings | changes)
