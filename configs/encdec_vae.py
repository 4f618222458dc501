"""A variational autoencoder of texts (arXiv 1511.06349): the decoder writes a text again from 32 numbers that are drawn.

    python -m lm.train --config=configs/encdec_vae.py --workdir=runs/encdec_vae
    python -m lm.latent interpolate --from=runs/encdec_vae "We are at peace with all nations" "The cost of the war"

Cost: about two minutes on two CPU cores that had other work. The log has the bound in bits per byte, the divergence in nats a
text, its share, and `posterior_collapse`, which is 1 if the vectors say nothing. A text is a window of 31 tokens. The decoder
reads 40 % of the tokens without their embeddings, and the divergence's weight rises over half of the training: the paper's
remedies against a collapse.
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
    stack = dict(num_layers=2, blocks=dict(L=block), position=dict(kind="rope"))
    c.model = dict(vocab_size=vocab, width=128, encoder=stack, decoder=stack, join="prefix")
    c.model.embed = dict(token_dropout=0.4, token_dropout_in="decoder")
    c.model.bottleneck = dict(pool="mean", width=32, latent="gaussian", documents=2)
    c.data = dict(
        sources=dict(sotu=dict(kind="tfds", path="sotu")),
        tokenizer=dict(kind="bpe", vocab_size=vocab),
        encoder_length=32,
        decoder_length=32,
    )
    c.objective = dict(kind="variational", anneal=0.5, free=2.0, draws=8)
    c.optimizer = dict(name="adamw", learning_rate=3e-3, schedule=dict(kind="wsd", warmup=20, final=0.0))
    c.train = dict(steps=600, batch_size=32)
    c.checkpoint = dict(every=None)
    c.evaluate = dict(every=300, rows=256)
    c.log = dict(every=20, samples=("Fellow citizens of the Senate",), sample_tokens=16)
    return c
