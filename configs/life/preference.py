"""Learn to write the better of two answers: DPO and its kin, on a model that was fine-tuned on conversations.

    python -m lm.train --config=configs/life/preference.py:dpo --config.train.init_from=runs/sft --workdir=runs/dpo
    python -m lm.train --config=configs/life/preference.py:kto.own --config.data.sources.own.path=judged.jsonl ...

The argument is METHOD or METHOD.SET. METHOD is a row of `lm.losses.preference.METHODS`: dpo, dpo_norm, ipo, hinge, simpo, orpo,
cpo, kto. SET is one of `lm.data.corpus.generated`, or `own`: your .jsonl of {"messages" or "prompt", "chosen", "rejected"}, for
kto of {"messages" or "prompt", "completion", "label"}. configs/life/reward.py has the command that makes runs/sft.

Cost: 100 steps of 32 pairs, 1.5e12 FLOPs for a model of the quickstart's size (without a reference 1.1e12). Of 64 answers drawn
to held-out questions 0.45 are polite before, and 0.94 after dpo, 0.95 after kto and orpo, 0.92 after simpo; the right place is
in 1.00 before and after orpo, whose loss also holds on to the chosen answers, and in 0.80 after dpo, 0.91 after kto and 0.70
after simpo.
"""

from ml_collections import config_dict


def get_config(what="dpo"):
    method, _, name = what.partition(".")
    name, format = name or "manners", "feedback" if method == "kto" else "preference"
    source = dict(kind="jsonl", path="unset") if name == "own" else dict(kind="generated", path=name)
    c = config_dict.ConfigDict()
    c.recipe = dict(kind="preference", method=method, length=48, answer=32)
    c.data = dict(sources={name: source | dict(format=format)}, holdout=0.2)
    c.optimizer = dict(name="adamw", learning_rate=1e-4, weight_decay=0.0, schedule=dict(kind="linear", warmup=0.1, final=0.0))
    c.train = dict(steps=100, batch_size=32)
    c.checkpoint = dict(every=50)
    c.evaluate = dict(every=50)
    c.log = dict(every=10, samples=("The lamp is in the hall. Where is the lamp?",), sample_tokens=32)
    return c
