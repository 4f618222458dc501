"""The front door: a small causal model of presidential messages.

python -m lm.train --config=configs/quickstart.py --workdir=runs/quickstart
"""

from ml_collections import config_dict


def get_config():
    c = config_dict.ConfigDict()
    vocab, length = 2048, 128
    c.model = dict(
        vocab_size=vocab,
        width=192,
        decoder=dict(
            num_layers=3,
            blocks=dict(
                L=dict(
                    attention=dict(num_heads=3),
                    ffn=dict(hidden=768, activation="gelu_tanh"),
                    norm=dict(kind="rms"),
                )
            ),
            position=dict(kind="rope"),
        ),
    )
    c.data = dict(
        sources=dict(sotu=dict(kind="tfds", path="sotu")),
        tokenizer=dict(kind="bpe", vocab_size=vocab),
        decoder_length=length,
    )
    c.objective = dict(kind="causal")
    c.optimizer = dict(
        name="muon", learning_rate=0.01, adam_learning_rate=0.003, schedule=dict(kind="wsd", warmup=20, final=0.0)
    )
    c.train = dict(steps=500, batch_size=16)
    c.checkpoint = dict(every=250)
    c.evaluate = dict(every=250, rows=64, baselines=True)
    c.log = dict(every=10, samples=("Fellow citizens,", "The economy"))
    return c
