"""One model, many tasks told in words (T5, arXiv 1910.10683; FLAN, 2109.01652), and what the words are worth.

    python -m lm.train --config=configs/life/instructions.py:encoder_decoder --workdir=runs/instructions

The argument is the architecture, `encoder_decoder` or `decoder`; with `.untold` behind it the tasks are not told. A mixture of
operations on letters, alone or one after the other, in several phrasings (`lm.data.corpus.instructed`): "first turn it round
then add one : a c b d". Held out are questions (`known`), a phrasing (`phrased`), and pairs of operations that no training
record joins (`unseen`); the report has the exact answers of each. Your own instructions: records of format=pair or messages as
further sources, as in configs/finetune.py.

Cost: 1e12 FLOPs, about a minute of one core. Reached by the encoder-decoder in three seeds: known 0.99 to 1.00, phrased
0.70 to 1.00, unseen 0.04 to 0.09; told nothing, known 0.10 to 0.11 and unseen 0.03 (experiments/instructions).
"""

from ml_collections import config_dict

from lm.errors import UserError, nearest

ARCHITECTURES = ("encoder_decoder", "decoder")


def get_config(what="encoder_decoder"):
    architecture, _, untold = what.partition(".")
    if architecture not in ARCHITECTURES or untold not in ("", "untold"):
        raise UserError(
            f"no instructions '{what}'{nearest(architecture, ARCHITECTURES)}; or one of them with .untold behind it"
        )
    c = config_dict.ConfigDict()
    block = dict(attention=dict(num_heads=4), ffn=dict(hidden=256), norm=dict(kind="rms"))
    both = architecture == "encoder_decoder"
    stack = lambda cross: dict(
        num_layers=2 if both else 4, blocks=dict(L=block | dict(cross=cross)), position=dict(kind="rope")
    )
    c.model = dict(vocab_size=128, width=64, encoder=stack(False) if both else None, decoder=stack(both))
    source = lambda name, **more: dict(kind="generated", path=name, format="pair", **more)
    name = untold or "told"
    sources = dict(known=source(name), unseen=source(f"{name}_unseen", use="holdout"))
    sources |= {} if untold else dict(phrased=source("told_phrased", use="holdout"))
    c.data = dict(sources=sources, tokenizer=dict(kind="word", vocab_size=128), holdout=0.02)
    c.recipe = dict(kind="finetune", how="text", length=24, answer=6, compare="symbols")
    c.optimizer = dict(name="adamw", learning_rate=3e-3, schedule=dict(kind="linear", warmup=0.05, final=0.0))
    c.train = dict(steps=600, batch_size=128)
    c.checkpoint = dict(every=300)
    c.evaluate = dict(every=300, rows=400)
    c.log = dict(every=50, samples=())
    return c
