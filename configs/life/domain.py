"""A model goes on with another domain: from presidential messages to Python's standard library, with or without replay.

    python -m lm.convert average runs/quickstart base
    python -m lm.train --config=configs/life/domain.py:0.2 --config.train.init_from=base \
        --config.data.tokenizer.path=base/hf/tokenizer.model --workdir=runs/domain

The first command copies the model, with its tokenizer as a file. The argument is the share of rows that replay the old domain;
with 0 it is only held out, so that what is forgotten can be seen. The learning rate is warmed up again and decays again, which
with some replay is about as good as training anew on both (arXiv 2403.08763). The log and the report have the bits per byte of
each domain, `sotu/bits_per_byte` and `stdlib/bits_per_byte`; with `--config.train.steps=0` those before the first step.
Measured with `--config.train.steps=100 --config.evaluate.rows=256`, about a minute on two CPU cores:

    before          sotu 1.592   stdlib 6.654
    replay 0        sotu 2.387   stdlib 2.097
    replay 0.2      sotu 1.765   stdlib 2.214
"""

from ml_collections import config_dict

from lm.errors import UserError


def get_config(replay="0.2"):
    try:
        share = float(replay)
    except ValueError:
        share = -1.0
    if not 0 <= share < 1:
        raise UserError(f"'{replay}' is no share of rows: give a number from 0 to below 1, such as configs/life/domain.py:0.2")
    c = config_dict.ConfigDict()
    vocab = 1024
    block = dict(
        attention=dict(num_heads=2),
        ffn=dict(hidden=512, activation="gelu_tanh"),
        norm=dict(kind="rms"),
    )
    c.model = dict(vocab_size=vocab, width=128, decoder=dict(num_layers=3, blocks=dict(L=block), position=dict(kind="rope")))
    old = dict(kind="tfds", path="sotu") | (dict(weight=share) if share else dict(use="holdout"))
    c.data = dict(
        sources=dict(sotu=old, stdlib=dict(kind="tfds", path="stdlib", weight=1 - share)),
        tokenizer=dict(path="unset"),
        decoder_length=128,
    )
    c.objective = dict(kind="causal")
    c.optimizer = dict(
        name="muon",
        learning_rate=0.01,
        adam_learning_rate=0.0025,
        schedule=dict(kind="wsd", warmup=20, final=0.0),
    )
    c.train = dict(steps=150, batch_size=32, init_from="unset")
    c.checkpoint = dict(every=None)
    c.evaluate = dict(every=None, rows=512)
    c.log = dict(every=10, samples=("Fellow citizens,", "def main():"))
    return c
