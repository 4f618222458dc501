"""A causal decoder of recurrent layers and local attention, two to one (Griffin, arXiv 2402.19427).

    python -m lm.train --config=configs/decoder_recurrent.py --workdir=runs/decoder_recurrent

Cost: about a minute on two CPU cores, with 0.71 M parameters. `--config.model.decoder.pattern=R` has no attention, and
`--config.model.decoder.blocks.R.mixer="{'kind': 'lstm'}"` LSTMs (docs/mixers.md has the kinds).
"""

from ml_collections import config_dict


def get_config():
    c = config_dict.ConfigDict()
    vocab = 1024
    block = dict(ffn=dict(hidden=512, activation="gelu_tanh"), norm=dict(kind="rms"))
    recurrent = block | dict(mixer=dict(kind="gated_linear", num_heads=2))
    local = block | dict(attention=dict(num_heads=2, num_kv_heads=1, window=32))
    c.model = dict(
        vocab_size=vocab,
        width=128,
        decoder=dict(num_layers=3, blocks=dict(R=recurrent, L=local), pattern="RRL", position=dict(kind="rope")),
    )
    c.data = dict(
        sources=dict(sotu=dict(kind="tfds", path="sotu")),
        tokenizer=dict(kind="bpe", vocab_size=vocab),
        decoder_length=128,
    )
    c.objective = dict(kind="causal")
    c.optimizer = dict(name="adamw", learning_rate=3e-3, schedule=dict(kind="wsd", warmup=20, final=0.0))
    c.train = dict(steps=240, batch_size=16)
    c.checkpoint = dict(every=None)
    c.evaluate = dict(every=None, rows=256)
    c.log = dict(every=10, samples=("Fellow citizens, the state of the",), sample_tokens=32)
    return c
