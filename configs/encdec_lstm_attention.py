"""LSTMs with additive attention (arXiv 1409.0473): the decoder reads all vectors of an encoder that reads both ways.

    python -m lm.train --config=configs/encdec_lstm_attention.py --workdir=runs/encdec_lstm_attention

The objective and the data are those of configs/encdec_lstm.py, whose decoder has one vector instead. Cost: four minutes on
two CPU cores.
"""

from ml_collections import config_dict


def get_config():
    c = config_dict.ConfigDict()
    vocab = 1024
    block = dict(attention=None, ffn=None, mixer=dict(kind="lstm", direction="both"), norm=dict(kind="rms"))
    cross = block | dict(attention=dict(num_heads=2, score="additive"), mixer=dict(kind="lstm"), cross=True)
    encoder = dict(num_layers=2, blocks=dict(L=block))
    decoder = dict(num_layers=2, blocks=dict(L=cross))
    c.model = dict(vocab_size=vocab, width=256, encoder=encoder, decoder=decoder)
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
