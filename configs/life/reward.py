"""A reward model, from pairs of a better and a worse answer.

    python -m lm.train --config=configs/finetune.py:messages --config.data.sources.mine.kind=generated \
        --config.data.sources.mine.path=manners --config.train.init_from=runs/quickstart --workdir=runs/sft
    python -m lm.train --config=configs/life/reward.py --config.train.init_from=runs/sft --workdir=runs/reward
    python -m lm.train --config=configs/life/reward.py:own --config.data.sources.own.path=pairs.jsonl ...

The argument is a set of `lm.data.corpus.generated`, or `own`: your .jsonl of {"messages" or "prompt", "chosen", "rejected"}.
Of a generated set a tenth of the preferences is wrong, so that 0.9 is the best accuracy on held-out pairs, whose questions are
asked in no training pair.

Cost: 100 steps of 32 pairs, 1e12 FLOPs for a model of the quickstart's size. `manners` reaches an accuracy of 0.878 on 230
held-out pairs, with an expected calibration error of 0.05.
"""

from ml_collections import config_dict


def get_config(what="manners"):
    own = dict(kind="jsonl", path="unset", format="preference")
    generated = dict(kind="generated", path=what, format="preference")
    c = config_dict.ConfigDict()
    c.recipe = dict(kind="reward", length=48, answer=32, centre=0.01)
    c.data = dict(sources={what: own if what == "own" else generated}, holdout=0.2)
    c.optimizer = dict(name="adamw", learning_rate=3e-4, weight_decay=0.01, schedule=dict(kind="linear", warmup=0.1, final=0.0))
    c.train = dict(steps=100, batch_size=32)
    c.checkpoint = dict(every=50)
    c.evaluate = dict(every=50)
    c.log = dict(every=10, samples=())
    return c
