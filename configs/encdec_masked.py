"""An encoder-decoder that reconstructs a text from its masked version (BERT-style denoising, T5 section 3.3.1).

    python -m lm.train --config=configs/encdec_masked.py --workdir=runs/encdec_masked

Cost: about a minute on two CPU cores. Reached: held-out loss 4.896 nats per predicted token, accuracy 0.093, with 1.05 M
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
    encoder = dict(num_layers=2, blocks=dict(L=block), position=dict(kind="rope"))
    decoder = dict(num_layers=2, blocks=dict(L=block | dict(cross=True)), position=dict(kind="rope"))
    c.model = dict(vocab_size=vocab, width=128, encoder=encoder, decoder=decoder)
    c.data = dict(
        sources=dict(sotu=dict(kind="tfds", path="sotu")),
        tokenizer=dict(kind="bpe", vocab_size=vocab),
        encoder_length=128,
        decoder_length=128,
    )
    c.objective = dict(kind="masked")
    c.optimizer = dict(name="adamw", learning_rate=3e-3, schedule=dict(kind="wsd", warmup=20, final=0.0))
    c.train = dict(steps=140, batch_size=16)
    c.checkpoint = dict(every=None)
    c.evaluate = dict(every=None, rows=256)
    c.log = dict(every=10, samples=("The state of the [MASK] is strong.",), sample_tokens=32)
    return c
