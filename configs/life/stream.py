"""A model keeps learning as new documents come: presidential messages before 1950, then period by period.

    python -m lm.train --config=configs/life/stream.py:base --workdir=runs/base
    python -m lm.convert average runs/base base
    python -m lm.train --config=configs/life/stream.py:1950 --config.train.init_from=base \\
        --config.data.tokenizer.path=base/hf/tokenizer.model --workdir=runs/1950
    python -m lm.train --config=configs/life/stream.py:1975 --config.train.init_from=runs/1950 \\
        --config.data.tokenizer.path=base/hf/tokenizer.model --workdir=runs/1975

The argument is `base`, or the year in which a period begins (1950, 1975, 2000); the run then reads that period's messages, and
replays those of all before with a fifth of its rows, or with another share: `1950/0`, `1950/0.5`. The split is by date: the
last two messages of every period are never trained on, and no run sees a document of a later period, nor does the tokenizer.
The log and the report have bits per byte of these by period, `until_1950/bits_per_byte`, `from_1950/bits_per_byte` and so on:
what a run learns of its own period, forgets of those before, and knows of those to come. Measured with 200 steps of `base` and
60 of each other (`--config.train.steps`) and `--config.evaluate.rows=256`, one seed, a minute or two on two CPU cores each:

    after        until_1950   from_1950   from_1975   from_2000
    base              1.748       1.971       2.232       2.571
    1950              1.540       1.702       1.962       2.376
    1975              1.555       1.649       1.830       2.183
    2000              1.586       1.712       1.722       1.969
    1950/0            1.537       1.695       1.956       2.404
"""

from ml_collections import config_dict

from lm.data.corpus import sotu
from lm.errors import UserError, nearest

YEARS = ("1950", "1975", "2000")  # in which a period begins; the first one ends there
HELD_OUT = 2  # messages at the end of a period


def periods():
    """By name, numbers of messages in order of their date: the first, the first one held out, and the end."""
    names = [file.stem for file in sotu.speeches()]
    ends = [sum(name < year for name in names) for year in YEARS] + [len(names)]
    return {
        name: (first, end - HELD_OUT, end)
        for name, first, end in zip(("until_1950", *(f"from_{y}" for y in YEARS)), [0, *ends], ends, strict=False)
    }


def get_config(what="base"):
    year, _, replay = what.partition("/")
    if year != "base" and year not in YEARS:
        raise UserError(f"no period begins in '{year}'{nearest(year, ('base', *YEARS))}")
    try:
        share = float(replay or 0.2)
    except ValueError:
        share = -1.0
    if not 0 <= share < 1:
        raise UserError(
            f"'{replay}' is no share of rows: give a number from 0 to below 1, such as configs/life/stream.py:1950/0.2"
        )
    c = config_dict.ConfigDict()
    block = dict(attention=dict(num_heads=2), ffn=dict(hidden=512, activation="gelu_tanh"), norm=dict(kind="rms"))
    c.model = dict(vocab_size=1024, width=128, decoder=dict(num_layers=3, blocks=dict(L=block), position=dict(kind="rope")))
    parts = periods()
    old = list(parts)[: 1 if year == "base" else 1 + YEARS.index(year)]  # the periods before, or the one that base learns
    messages = lambda first, end: f"train[{first}:{end}]"
    source = lambda split, **more: dict(kind="tfds", path="sotu", split=split, **more)
    sources = {name: source(messages(test, end), use="holdout") for name, (_, test, end) in parts.items()}
    if year == "base" or share:
        read = "+".join(messages(*parts[name][:2]) for name in old)
        sources["old"] = source(read, use="train", weight=1.0 if year == "base" else share)
    if year != "base":
        sources["new"] = source(messages(*parts[f"from_{year}"][:2]), use="train", weight=1 - share)
    tokenizer = dict(vocab_size=1024) if year == "base" else dict(path="unset")
    c.data = dict(sources=sources, tokenizer=tokenizer, decoder_length=128)
    c.objective = dict(kind="causal")
    c.optimizer = dict(
        name="muon",
        learning_rate=0.02 if year == "base" else 0.01,
        adam_learning_rate=0.005 if year == "base" else 0.0025,
        schedule=dict(kind="wsd", warmup=20, final=0.0),
    )
    c.train = dict(steps=300, batch_size=32) if year == "base" else dict(steps=100, batch_size=32, init_from="unset")
    c.checkpoint = dict(every=None)
    c.evaluate = dict(every=None)
    c.log = dict(every=10, samples=("Fellow citizens,",))
    return c
