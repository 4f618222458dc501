"""Whisper's shape in small: an encoder of log-mel frames and a decoder that writes the text (arXiv 2212.04356).

    apt-get install espeak-ng
    python -m lm.train --config=configs/encdec_speech.py --workdir=runs/speech
    python -m lm.transcribe --from=runs/speech a.wav b.wav

The argument is a file of your own recordings, a line {"audio": "a.wav", "text": "what is said"} each; of these a tenth is held
out. A decoder learns to listen later than an encoder under CTC: configs/encoder_ctc_speech.py needs fewer steps.

Cost: about four minutes on two CPU cores. Reached: 82 % of the words wrong.
"""

from ml_collections import config_dict

VOCAB, WIDTH = 512, 96
SPOKEN = dict(
    train=dict(kind="generated", path="spoken/train", format="speech", use="train"),
    test=dict(kind="generated", path="spoken/test", format="speech", use="holdout"),
)


def get_config(path=""):
    c = config_dict.ConfigDict()
    block = dict(
        attention=dict(num_heads=2, bias=True, out_bias=True, key_bias=False),
        ffn=dict(hidden=4 * WIDTH, activation="gelu", bias=True),
        dropout=0.1,
    )
    stem = dict(kind="frames", frames=400, strides=(2, 2))  # four seconds; a vector for each 40 ms
    encoder = dict(num_layers=3, blocks=dict(L=block), position=dict(kind="sinusoidal"), stem=stem)
    decoder = dict(num_layers=2, blocks=dict(L=block | dict(cross=True)), position=dict(kind="learned", max_length=32))
    c.model = dict(vocab_size=VOCAB, width=WIDTH, encoder=encoder, decoder=decoder)
    c.data = dict(
        sources=dict(mine=dict(kind="jsonl", path=path, format="speech")) if path else SPOKEN,
        dedup=dict(exact=False, near=None),
        tokenizer=dict(vocab_size=VOCAB),
        holdout=0.1,
        on_long="skip",
    )
    c.recipe = dict(kind="transcribe", answer=32, hide_bands=15, hide_frames=25)
    c.optimizer = dict(learning_rate=2e-3, schedule=dict(kind="wsd", warmup=0.1, final=0.0))
    c.train = dict(steps=1500, batch_size=16)
    c.checkpoint = dict(every=500)
    c.evaluate = dict(every=500, batch_size=50)
    return c
