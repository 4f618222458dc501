"""A discriminator of replaced tokens and its generator (ELECTRA's objective): 15 % masked, the generator half as wide.

    python -m lm.train --config=configs/encoder_rtd.py --workdir=runs/encoder_rtd

`--config.objective.predict` has the ablations of the paper's table 5: "replaced_chosen" as it is, "masked" and "all" with
`--config.model.head.outputs=None --config.model.head.tied=True`.

Cost: some three minutes on two busy CPU cores. Measured: 903,168 parameters, of which the model has 738,432; 1.16e10 FLOPs a
step; held-out loss 26.22 (chance: 41.6), of it the generator's 5.75 and 50 times the model's 0.411. That is the frequency of
what is replaced and no more: at this size nothing is called replaced yet, as the masked encoder knows little but frequencies.
"""

from ml_collections import config_dict


def stack(hidden):
    block = dict(
        attention=dict(num_heads=2),
        ffn=dict(hidden=hidden, activation="gelu_tanh"),
        norm=dict(kind="rms"),
    )
    return dict(num_layers=3, blocks=dict(L=block), position=dict(kind="rope"))


def get_config():
    c = config_dict.ConfigDict()
    vocab, width = 1024, 128
    head = dict(tied=False, outputs=1, transform="gelu", norm=None)
    c.model = dict(vocab_size=vocab, width=width, encoder=stack(512), head=head)
    c.data = dict(
        sources=dict(sotu=dict(kind="tfds", path="sotu")),
        tokenizer=dict(kind="bpe", vocab_size=vocab),
        encoder_length=128,
    )
    generator = dict(
        vocab_size=vocab,
        width=64,
        encoder=stack(256),
        embed=dict(width=width),  # the model's own tables
        head=dict(transform="gelu"),
    )
    c.objective = dict(kind="replaced_tokens", generator=generator, weight=50.0)
    c.optimizer = dict(name="adamw", learning_rate=3e-3, schedule=dict(kind="wsd", warmup=20, final=0.0))
    c.train = dict(steps=320, batch_size=16)
    c.checkpoint = dict(every=None)
    c.evaluate = dict(every=None, rows=256)
    c.log = dict(every=10, samples=("The state of the [MASK] is strong.",), sample_tokens=32)
    return c
