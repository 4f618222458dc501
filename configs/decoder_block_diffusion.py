"""Block diffusion on a decoder (BD3-LM, arXiv 2503.09573): blocks of four tokens left to right, each filled in any order.

    python -m lm.train --config=configs/decoder_block_diffusion.py --workdir=runs/decoder_block_diffusion

A row of 256 tokens holds 128 of text and their noised copy, so that a step costs about twice a causal one. Cost: about a minute
on two CPU cores. Reached: a bound of 5.687 nats a token of held-out text, with 0.72 M parameters
(experiments/objectives/README.md; `python -m experiments.objectives.run` measures all objectives).
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
    decoder = dict(num_layers=3, blocks=dict(L=block), position=dict(kind="rope"))
    c.model = dict(vocab_size=vocab, width=128, decoder=decoder)
    c.data = dict(
        sources=dict(sotu=dict(kind="tfds", path="sotu")),
        tokenizer=dict(kind="bpe", vocab_size=vocab),
        decoder_length=256,
    )
    c.objective = dict(kind="block_diffusion", block=4)
    c.optimizer = dict(name="adamw", learning_rate=3e-3, schedule=dict(kind="wsd", warmup=20, final=0.0))
    c.train = dict(steps=160, batch_size=16)
    c.checkpoint = dict(every=None)
    c.evaluate = dict(every=None, rows=256)
    c.log = dict(every=10, samples=("The state of the economy", "Fellow citizens, "), sample_tokens=32)
    return c
