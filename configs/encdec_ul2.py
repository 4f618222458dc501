"""An encoder-decoder under a mixture of denoisers, each marked by a token for its mode (UL2's objective).

R: spans of mean length 3 and 8, 15 % of the text. S: a prefix and the rest. X: spans of mean length 3 and 8 at 50 %, and of 64
at 15 % and 50 %. A row holds 128 tokens of text, so that "64" is a single span, of 19 tokens at 15 % and of 64 at 50 %. The
seven denoisers are equally likely, as in the paper (arXiv 2205.05131, table 1). Its S splits at a quarter on average, ours
anywhere.

    python -m lm.train --config=configs/encdec_ul2.py --workdir=runs/encdec_ul2

Cost: about a minute on two CPU cores. Reached: held-out loss 4.887 nats per predicted token, accuracy 0.112, with 1.05 M
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
    spans = lambda rate, mean_span: dict(kind="span_corruption", rate=rate, mean_span=mean_span)
    parts = dict(
        r3=dict(objective=spans(0.15, 3.0), mode="R"),
        r8=dict(objective=spans(0.15, 8.0), mode="R"),
        s=dict(objective=dict(kind="prefix"), mode="S"),
        x3=dict(objective=spans(0.5, 3.0), mode="X"),
        x8=dict(objective=spans(0.5, 8.0), mode="X"),
        x64=dict(objective=spans(0.15, 64.0), mode="X"),
        x64_half=dict(objective=spans(0.5, 64.0), mode="X"),
    )
    c.objective = dict(kind="mixture", parts=parts)
    c.optimizer = dict(name="adamw", learning_rate=3e-3, schedule=dict(kind="wsd", warmup=20, final=0.0))
    c.train = dict(steps=180, batch_size=16)
    c.checkpoint = dict(every=None)
    c.evaluate = dict(every=None, rows=256)
    c.log = dict(every=10, samples=("The state of the [MASK] is strong.",), sample_tokens=32)
    return c
