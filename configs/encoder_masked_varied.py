"""A masked encoder at two rates and two lengths of spans, as UL2 varies them in a decoder (arXiv 2205.05131, table 1).

Each text has 15 % or 50 % of its tokens masked, by themselves or in spans of 8 on average, all four equally often. (Rates that
are drawn from all shares alike are masked diffusion's: configs/encoder_masked_diffusion.py with
--config.objective.weight=flat.)

    python -m lm.train --config=configs/encoder_masked_varied.py --workdir=runs/encoder_masked_varied

Cost: about a minute on two CPU cores. Reached: held-out loss 5.815 nats per predicted token, accuracy 0.040, with 0.72 M
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
    encoder = dict(num_layers=3, blocks=dict(L=block), position=dict(kind="rope"))
    c.model = dict(vocab_size=vocab, width=128, encoder=encoder)
    c.data = dict(
        sources=dict(sotu=dict(kind="tfds", path="sotu")),
        tokenizer=dict(kind="bpe", vocab_size=vocab),
        encoder_length=128,
    )
    part = lambda rate, mean_span: dict(objective=dict(kind="masked", rate=rate, mean_span=mean_span, mask=1.0, random=0.0))
    parts = dict(few=part(0.15, 1.0), few_long=part(0.15, 8.0), half=part(0.5, 1.0), half_long=part(0.5, 8.0))
    c.objective = dict(kind="mixture", parts=parts)
    c.optimizer = dict(name="adamw", learning_rate=3e-3, schedule=dict(kind="wsd", warmup=20, final=0.0))
    c.train = dict(steps=320, batch_size=16)
    c.checkpoint = dict(every=None)
    c.evaluate = dict(every=None, rows=256)
    c.log = dict(every=10, samples=("The state of the [MASK] is strong.",), sample_tokens=32)
    return c
