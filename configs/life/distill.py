"""A student learns from a teacher: a run or a converted model, whose tokenizer it takes.

    python -m lm.train --config=configs/life/distill.py:causal --config.recipe.teacher=runs/quickstart --workdir=runs/student

The argument is the objective: `causal` (a decoder), `masked` (an encoder) or `span_corruption` (both); the teacher has the
same architecture. Without more flags the student is as large as its teacher and begins from the seed. A student of every other
layer, begun from these (DistilBERT; `init_layers` are numbered from 0):

    --config.train.init_from=runs/quickstart --config.train.init_layers="{'decoder': (0, 2)}"

Another shape is a `model` in a config of your own, as in configs/quickstart.py. The loss is half the divergence from the
teacher and half the cross-entropy with the text; `lm.config.Distill` has reverse KL and Jensen-Shannon (`recipe.beta`), a
temperature, and the weights of hidden vectors and relations between tokens (`recipe.hidden`, `recipe.relations`). DistilBERT's
losses are `masked` with

    --config.recipe.logits=5 --config.recipe.labels=2 --config.recipe.hidden=1 --config.recipe.temperature=2 \\
    --config.recipe.everywhere=True

With `--config.recipe.top_k=16` the teacher reads the run's rows once, before the first step (or in python -m lm.prepare), and
its 16 likeliest tokens of each prediction are kept in data.cache, with the mass of all others; other students on the same rows
read them there. A token takes 6 bytes of each (4 in float32 and 2 of its id). A step of a student with one of the quickstart's
three layers then takes two thirds of the time: 232 ms, and 343 beside the teacher (the best of 15 taken in turn on two cores).

Of records (`data.sources.mine` with a format, as in configs/finetune.py) the student learns the teacher's answers, with loss at
the answers alone and `recipe.length` and `recipe.answer` as there. It may be smaller in any way: vectors are compared by
`recipe.relations`, which need no equal widths.

A teacher's own texts (sequence-level distillation, arXiv 1606.07947; with explanations in the answers Orca, 2306.02707) need no
recipe of their own. The teacher answers prompts, {"prompt": ...} a line, and its answers are records to fine-tune on:

    python -m lm.generate --from=TEACHER --jsonl --samples=4 < prompts.jsonl > answers.jsonl
    jq -c '{question: .prompt, answer: .text}' answers.jsonl > pairs.jsonl
    python -m lm.train --config=configs/finetune.py:pair --config.data.sources.mine.path=pairs.jsonl \\
        --config.train.init_from=STUDENT --workdir=NEW

With the argument `on_policy` the student answers, and learns what the teacher predicts there (GKD, arXiv 2306.13649). The
questions are the sums of configs/life/policy.py, or your own as there; STUDENT can answer a little already:

    python -m lm.train --config=configs/life/distill.py:on_policy --config.recipe.teacher=runs/sums \\
        --config.train.init_from=STUDENT --workdir=NEW
"""

from ml_collections import config_dict

from lm.errors import UserError, nearest

LENGTHS = dict(
    causal=dict(decoder_length=128),
    masked=dict(encoder_length=128),
    span_corruption=dict(encoder_length=128, decoder_length=64),
)


def get_config(what="causal"):
    if what not in (*LENGTHS, "on_policy"):
        raise UserError(f"no distillation '{what}'{nearest(what, (*LENGTHS, 'on_policy'))}")
    c = config_dict.ConfigDict()
    c.checkpoint = dict(every=100)
    if what == "on_policy":
        c.recipe = dict(kind="on_policy", teacher="unset", length=16, answer=6)
        c.data = dict(sources=dict(sums=dict(kind="generated", path="sums", format="pair")), holdout=0.2)
        c.optimizer = dict(name="adamw", learning_rate=1e-3, weight_decay=0.0, schedule=dict(kind="constant", warmup=10))
        c.train = dict(steps=200, batch_size=64, init_from="unset")
        c.evaluate = dict(every=50, rows=500)
        c.log = dict(every=10, samples=())
        return c
    c.recipe = dict(kind="distill", teacher="unset")
    c.data = dict(sources=dict(sotu=dict(kind="tfds", path="sotu")), **LENGTHS[what])
    c.objective = dict(kind=what)
    c.optimizer = dict(
        name="muon",
        learning_rate=0.02,
        adam_learning_rate=0.005,
        schedule=dict(kind="wsd", warmup=20, decay=100, final=0.0),
    )
    c.train = dict(steps=310, batch_size=32)
    c.evaluate = dict(every=155, rows=512)
    c.log = dict(every=10, samples=("Fellow citizens,",))
    return c
