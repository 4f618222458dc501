"""A causal decoder of Mamba-2's state-space layers alone, without positions and feed-forward networks (arXiv 2405.21060).

    python -m lm.train --config=configs/decoder_mamba.py --workdir=runs/decoder_mamba

Cost: about a minute on two CPU cores, with 0.79 M parameters.
"""

from ml_collections import config_dict


def get_config():
    c = config_dict.ConfigDict()
    vocab = 1024
    block = dict(mixer=dict(kind="mamba2", head_dim=32, state=32, chunk=32), norm=dict(kind="rms"))
    c.model = dict(vocab_size=vocab, width=128, decoder=dict(num_layers=6, blocks=dict(L=block)))
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
