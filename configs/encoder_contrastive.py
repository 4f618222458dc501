"""Sentence vectors of an encoder by contrast (SimCSE, arXiv 2104.08821): a text is to find itself under other dropout.

    python -m lm.train --config=configs/encoder_contrastive.py --workdir=runs/encoder_contrastive
    python -m lm.train --config=configs/encoder_contrastive.py --config.train.init_from=D --workdir=E

The second begins with a model that was trained to fill in masks, as SimCSE does. Cost: about a minute on two CPU cores.
Reached: every held-out text is nearest to itself among those of its batch, with 0.72 M parameters
(experiments/objectives/README.md; `python -m experiments.objectives.run` measures all objectives).
"""

from ml_collections import config_dict


def get_config():
    c = config_dict.ConfigDict()
    vocab = 1024
    block = dict(
        attention=dict(num_heads=2),
        ffn=dict(hidden=512, activation="gelu_tanh"),
        norm=dict(kind="rms"),
        dropout=0.1,
    )
    encoder = dict(num_layers=3, blocks=dict(L=block), position=dict(kind="rope"))
    c.model = dict(vocab_size=vocab, width=128, encoder=encoder)
    c.data = dict(
        sources=dict(sotu=dict(kind="tfds", path="sotu")),
        tokenizer=dict(kind="bpe", vocab_size=vocab),
        encoder_length=128,
    )
    c.objective = dict(kind="contrastive")
    c.optimizer = dict(name="adamw", learning_rate=1e-3, schedule=dict(kind="wsd", warmup=20, final=0.0))
    c.train = dict(steps=100, batch_size=32)
    c.checkpoint = dict(every=None)
    c.evaluate = dict(every=None, rows=256)
    c.log = dict(every=10, samples=())
    return c
