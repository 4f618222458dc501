"""One model, many tasks of real texts told in words (T5, arXiv 1910.10683; FLAN, 2109.01652), and one that it is never taught.

    python -m lm.train --config=configs/life/told.py:encoder_decoder --workdir=runs/told

The argument is the architecture, `encoder_decoder` or `decoder`, and behind a slash the task that is held out, `sentiment`
unless it is another of `lm.data.corpus.told`: `decoder/spam`. With `.untold` at the end the tasks are not told. The tasks are
translations between old and new English (Bible verses), the sentiment of film reviews, topics of an encyclopaedia, kinds of
questions, spam, sarcasm, and questions of cause and effect, each in several forms of words, among them questions answered with
yes or no. Rows are drawn from them as `weight` says; the held-out task has weight 0, and the report has the exact answers of
each, over all its forms together. Where the answer is the name of a class that the model never saw, as no other task has it,
expect 0: what it gets right of a held-out task is among the questions answered with yes or no.

Cost of the encoder-decoder: 2.4 M parameters, 7.6e10 FLOPs a step and 2.3e14 in all, 0.8 GiB (`--dry_run`); what it reaches was
not measured. The data, 74,000 records, is fetched from the package registry once.
"""

from ml_collections import config_dict

from lm.errors import UserError, nearest

ARCHITECTURES = ("encoder_decoder", "decoder")
# Shares of rows: most of the verses, which have the longest answers, and less of sets that are small (T5, section 3.5.2).
WEIGHTS = dict(verses=0.4, sarcasm=0.15, sentiment=0.12, topics=0.12, questions=0.07, effects=0.07, spam=0.07)


def get_config(what="encoder_decoder"):
    named, _, untold = what.partition(".")
    architecture, _, held_out = named.partition("/")
    held_out = held_out or "sentiment"
    if architecture not in ARCHITECTURES or untold not in ("", "untold"):
        raise UserError(f"no '{what}'{nearest(architecture, ARCHITECTURES)}; or one of them with .untold behind it")
    if held_out not in WEIGHTS:
        raise UserError(f"no task '{held_out}' to hold out{nearest(held_out, WEIGHTS)}")
    c = config_dict.ConfigDict()
    block = dict(attention=dict(num_heads=4), ffn=dict(hidden=512, activation="gelu_tanh"), norm=dict(kind="rms"))
    both = architecture == "encoder_decoder"
    stack = lambda cross: dict(
        num_layers=4 if both else 6, blocks=dict(L=block | dict(cross=cross)), position=dict(kind="rope")
    )
    c.model = dict(vocab_size=4096, width=128, encoder=stack(False) if both else None, decoder=stack(both))
    path = lambda name: f"{untold}/{name}" if untold else name
    weight = lambda name: 0.0 if name == held_out else WEIGHTS[name]
    c.data = dict(
        sources={n: dict(kind="package", path=path(n), format="pair", weight=weight(n)) for n in WEIGHTS},
        tokenizer=dict(vocab_size=4096),
        on_long="skip",
    )
    c.recipe = dict(kind="finetune", how="text", length=96, answer=64, compare="symbols")
    c.optimizer = dict(name="adamw", learning_rate=1e-3, schedule=dict(kind="linear", warmup=0.05, final=0.0))
    c.train = dict(steps=3000, batch_size=64)
    c.checkpoint = dict(every=1000)
    c.evaluate = dict(every=1000, rows=200)
    c.log = dict(every=50, samples=())
    return c
