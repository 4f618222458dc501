"""A discriminator of replaced tokens with a generator half as wide (ELECTRA's objective); 15 % of the tokens are masked.

    python -m lm.train --config=configs/encoder_rtd.py --workdir=runs/encoder_rtd

`--config.objective.predict` selects the ablations of the paper's table 5: "replaced_chosen" needs no other change; "masked" and
"all" need `--config.model.head.outputs=None --config.model.head.tied=True`.

Cost: about three minutes on two busy CPU cores. Reached: held-out loss 26.22 (chance: 41.6), the sum of the generator's 5.75
and 50 times the model's 0.411, with 903,168 parameters (738,432 of them the model's) and 1.16e10 FLOPs per step. The model has
learned only how often tokens are replaced: at this size it calls none replaced, just as the masked encoder knows little but
frequencies.
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
        embed=dict(width=width),  # so that it can share the model's table
        head=dict(transform="gelu"),
    )
    c.objective = dict(kind="replaced_tokens", generator=generator, weight=50.0)
    c.optimizer = dict(name="adamw", learning_rate=3e-3, schedule=dict(kind="wsd", warmup=20, final=0.0))
    c.train = dict(steps=320, batch_size=16)
    c.checkpoint = dict(every=None)
    c.evaluate = dict(every=None, rows=256)
    c.log = dict(every=10, samples=("The state of the [MASK] is strong.",), sample_tokens=32)
    return c
