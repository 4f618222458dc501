"""A Conformer under CTC, on speech that espeak-ng makes of a small grammar's sentences (arXiv 2005.08100; Graves et al., 2006).

    apt-get install espeak-ng
    python -m lm.train --config=configs/encoder_ctc_speech.py --workdir=runs/ctc
    python -m lm.transcribe --from=runs/ctc a.wav b.wav
    python -m lm.train --config=configs/encoder_ctc_speech.py:mine.jsonl --workdir=runs/mine

The argument is a file of your own recordings, a line {"audio": "a.wav", "text": "what is said"} each; of these a tenth is held
out. experiments/speech re-ranks what it hears with a language model.

A Conformer's block is four letters of the pattern: a half feed-forward, attention, a convolution, a half feed-forward.
"""

from ml_collections import config_dict

VOCAB, WIDTH = 512, 96
SPOKEN = dict(
    train=dict(kind="generated", path="spoken/train", format="speech", use="train"),
    test=dict(kind="generated", path="spoken/test", format="speech", use="holdout"),
)


def mine(path):
    return dict(mine=dict(kind="jsonl", path=path, format="speech"))


def get_config(path=""):
    c = config_dict.ConfigDict()
    half = dict(ffn=dict(hidden=2 * WIDTH, activation="silu", bias=True), scale=0.5, dropout=0.1)
    blocks = dict(
        F=half,
        A=dict(attention=dict(num_heads=2), dropout=0.1),
        C=dict(mixer=dict(kind="convolution", kernel=15), dropout=0.1),
        G=half | dict(norm_at=("in", "out")),
    )
    stem = dict(kind="frames", frames=400, strides=(2, 2))  # four seconds; a vector for each 40 ms
    stack = dict(num_layers=16, blocks=blocks, pattern="FACG", position=dict(kind="rope"), final_norm=False, stem=stem)
    c.model = dict(vocab_size=VOCAB, width=WIDTH, encoder=stack, head=dict(tied=False, bias=True))
    c.data = dict(
        sources=mine(path) if path else SPOKEN,
        dedup=dict(exact=False, near=None),
        tokenizer=dict(vocab_size=VOCAB),
        holdout=0.1,
        on_long="skip",
    )
    c.recipe = dict(kind="transcribe", hide_bands=15, hide_frames=25)
    c.optimizer = dict(learning_rate=3e-3, schedule=dict(kind="wsd", warmup=0.05, final=0.0))
    c.train = dict(steps=900, batch_size=16)
    c.checkpoint = dict(every=300)
    c.evaluate = dict(every=300, batch_size=50)
    return c
