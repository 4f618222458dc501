"""The quickstart: a small causal model of presidential messages, 1790 to 2026.

    python -m lm.train --config=configs/quickstart.py --workdir=runs/quickstart

Cost: one to four minutes on two CPU cores, including data preparation and baselines; 1 min 12 s where it was measured. Reached:
1.5705 held-out bits per byte, below xz after the training text (1.7497) and the bigram (1.9125)
(experiments/quickstart/README.md).
"""

from ml_collections import config_dict


def get_config():
    c = config_dict.ConfigDict()
    vocab = 1024
    block = dict(
        attention=dict(num_heads=2),
        ffn=dict(hidden=512, activation="gelu_tanh"),
        norm=dict(kind="rms"),
    )
    decoder = dict(num_layers=3, blocks=dict(L=block), position=dict(kind="rope"))
    c.model = dict(vocab_size=vocab, width=128, decoder=decoder)
    c.data = dict(
        sources=dict(sotu=dict(kind="tfds", path="sotu")),
        tokenizer=dict(kind="bpe", vocab_size=vocab),
        decoder_length=128,
    )
    c.objective = dict(kind="causal")
    c.optimizer = dict(
        name="muon",
        learning_rate=0.02,
        adam_learning_rate=0.005,
        schedule=dict(kind="wsd", warmup=20, decay=100, final=0.0),
    )
    c.train = dict(steps=310, batch_size=32)
    c.checkpoint = dict(every=100)
    c.evaluate = dict(every=155, baselines=True)
    c.log = dict(every=10, samples=("Fellow citizens,", "The state of the economy"))
    return c
