"""A longer quickstart: a larger model of the same messages, which also beats the trigram baseline.

    python -m lm.train --config=configs/quickstart_15min.py --workdir=runs/quickstart_15min

Cost: about fifteen minutes of training on two CPU cores. Reached: 1.358 held-out bits per byte, below the trigram's 1.441
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
    decoder = dict(num_layers=4, blocks=dict(L=block), position=dict(kind="rope"))
    c.model = dict(vocab_size=vocab, width=128, decoder=decoder)
    c.data = dict(
        sources=dict(sotu=dict(kind="tfds", path="sotu")),
        tokenizer=dict(kind="bpe", vocab_size=vocab),
        decoder_length=256,
    )
    c.objective = dict(kind="causal")
    c.optimizer = dict(
        name="muon",
        learning_rate=0.02,
        adam_learning_rate=0.005,
        schedule=dict(kind="wsd", warmup=20, decay=600, final=0.0),
    )
    c.train = dict(steps=1500, batch_size=16)
    c.checkpoint = dict(every=500)
    c.evaluate = dict(every=500, baselines=True)
    c.log = dict(every=10, samples=("Fellow citizens,", "The state of the economy"))
    return c
