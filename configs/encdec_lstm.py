"""Sequence to sequence as it began (arXiv 1409.3215): one LSTM reads the text, and its last state is all that another has.

    python -m lm.train --config=configs/encdec_lstm.py --workdir=runs/encdec_lstm

The encoder reads from the last token to the first (section 3.3); with `--config.model.encoder.blocks.L.mixer.direction=forward
--config.model.bottleneck.pool=last` it reads in order. What it has at the end is put before the decoder's tokens. The objective
is that of configs/encdec_bart.py. Cost: two minutes on two CPU cores.
"""

from ml_collections import config_dict


def get_config():
    c = config_dict.ConfigDict()
    vocab = 1024
    block = dict(attention=None, ffn=None, mixer=dict(kind="lstm"), norm=dict(kind="rms"))
    backward = block | dict(mixer=dict(kind="lstm", direction="backward"))
    encoder = dict(num_layers=2, blocks=dict(L=backward))
    decoder = dict(num_layers=2, blocks=dict(L=block))
    c.model = dict(vocab_size=vocab, width=256, encoder=encoder, decoder=decoder, join="prefix")
    c.model.bottleneck = dict(pool="first", documents=2)
    c.data = dict(
        sources=dict(sotu=dict(kind="tfds", path="sotu")),
        tokenizer=dict(kind="bpe", vocab_size=vocab),
        encoder_length=64,
        decoder_length=64,
    )
    c.objective = dict(kind="denoise")
    c.optimizer = dict(name="adamw", learning_rate=3e-3, schedule=dict(kind="wsd", warmup=20, final=0.0))
    c.train = dict(steps=180, batch_size=32)
    c.checkpoint = dict(every=None)
    c.evaluate = dict(every=None, rows=256)
    c.log = dict(every=10, samples=("The state of the [MASK] is strong.",), sample_tokens=32)
    return c
