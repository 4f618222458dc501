"""Masked diffusion on an encoder (MDLM, arXiv 2406.07524): any share of the tokens is masked, the loss is a bound.

    python -m lm.train --config=configs/encoder_masked_diffusion.py --workdir=runs/encoder_masked_diffusion

Cost: about a minute on two CPU cores. Reached: a bound of 5.838 nats a token of held-out text, with 0.72 M parameters
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
    )
    encoder = dict(num_layers=3, blocks=dict(L=block), position=dict(kind="rope"))
    c.model = dict(vocab_size=vocab, width=128, encoder=encoder)
    c.data = dict(
        sources=dict(sotu=dict(kind="tfds", path="sotu")),
        tokenizer=dict(kind="bpe", vocab_size=vocab),
        encoder_length=128,
    )
    c.objective = dict(kind="masked_diffusion")
    c.optimizer = dict(name="adamw", learning_rate=3e-3, schedule=dict(kind="wsd", warmup=20, final=0.0))
    c.train = dict(steps=320, batch_size=16)
    c.checkpoint = dict(every=None)
    c.evaluate = dict(every=None, rows=256)
    c.log = dict(every=10, samples=("The state of the [MASK] is strong.", "Fellow citizens, "), sample_tokens=32)
    return c
