"""A decoder that predicts the next token, and by three further heads those after it (arXiv 2404.19737).

    python -m lm.train --config=configs/decoder_multi_token.py --workdir=runs/decoder_multi_token

The loss that is logged is the sum over the heads; the held-out one is of the next token alone.

Cost: about a minute on two CPU cores. Reached: held-out loss 5.185 nats per predicted token, accuracy 0.077, with 1.31 M
parameters (experiments/objectives/README.md; `python -m experiments.objectives.run` measures all objectives).
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
    c.objective = dict(kind="multi_token", heads=3)
    c.optimizer = dict(name="adamw", learning_rate=3e-3, schedule=dict(kind="wsd", warmup=20, final=0.0))
    c.train = dict(steps=120, batch_size=16)
    c.checkpoint = dict(every=None)
    c.evaluate = dict(every=None, rows=256)
    c.log = dict(every=10, samples=("Fellow citizens, the state of the",), sample_tokens=32)
    return c
