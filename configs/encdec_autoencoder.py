"""An autoencoder of texts: the decoder writes a text again from eight vectors, which are all that it reads of the encoder.

    python -m lm.train --config=configs/encdec_autoencoder.py --workdir=runs/encdec_autoencoder
    python -m lm.latent reconstruct --from=runs/encdec_autoencoder "Fellow citizens of the Senate"

Cost: about two minutes on two busy CPU cores. With `--config.objective.mask=0.3` it is a denoising autoencoder.
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
    encoder = dict(num_layers=2, blocks=dict(L=block), position=dict(kind="rope"))
    decoder = dict(num_layers=2, blocks=dict(L=block | dict(cross=True)), position=dict(kind="rope"))
    c.model = dict(vocab_size=vocab, width=128, encoder=encoder, decoder=decoder)
    c.model.bottleneck = dict(vectors=8, pool="queries", num_heads=2, width=32, documents=2)
    c.data = dict(
        sources=dict(sotu=dict(kind="tfds", path="sotu")),
        tokenizer=dict(kind="bpe", vocab_size=vocab),
        encoder_length=32,
        decoder_length=32,
    )
    c.objective = dict(kind="denoise", infill=0.0, permute=0.0)
    c.optimizer = dict(name="adamw", learning_rate=3e-3, schedule=dict(kind="wsd", warmup=20, final=0.0))
    c.train = dict(steps=600, batch_size=32)
    c.checkpoint = dict(every=None)
    c.evaluate = dict(every=None, rows=256)
    c.log = dict(every=20, samples=("Fellow citizens of the Senate",), sample_tokens=16)
    return c
