"""A model that learns to add from rewards: fine-tuned on right answers for a while, then by policy gradients on its own.

    python -m lm.train --config=configs/life/policy.py:sft --workdir=runs/sums
    python -m lm.train --config=configs/life/policy.py:grpo --config.train.init_from=runs/sums --workdir=runs/sums_grpo

The argument is `sft` or a method of `lm.losses.policy.METHODS`: reinforce, ppo, rloo, grpo, dr_grpo, dapo, gspo. The questions
are all sums of two numbers below 100 ("2 7 + 5 8 ="), a fifth of them held out; the reward is 1 for the right answer. With
another model (`train.init_from`) its tokenizer is used. Your own questions, and rewards by other means (`lm.config.Grader`):

    --config.data.sources="{'mine': {'kind': 'jsonl', 'path': 'questions.jsonl', 'format': 'pair'}}"
    --config.recipe.graders="{'right': {'kind': 'number'}, 'short': {'kind': 'regex', 'pattern': '.{1,20}', 'weight': 0.1}}"

Reached where it was measured: of 500 held-out questions `sft` answers 0.36 right, and 200 steps of `grpo` make that 0.51.
"""

from ml_collections import config_dict

from lm.errors import UserError, nearest

METHODS = ("reinforce", "ppo", "rloo", "grpo", "dr_grpo", "dapo", "gspo")


def get_config(what="grpo"):
    if what not in ("sft", *METHODS):
        raise UserError(f"no stage '{what}'{nearest(what, ('sft', *METHODS))}")
    c = config_dict.ConfigDict()
    c.data = dict(
        sources=dict(sums=dict(kind="generated", path="sums", format="pair")),
        tokenizer=dict(kind="word", vocab_size=64),
        holdout=0.2,
    )
    c.checkpoint = dict(every=100)
    c.log = dict(every=10, samples=())
    if what == "sft":
        block = dict(attention=dict(num_heads=4), ffn=dict(hidden=256), norm=dict(kind="rms"))
        c.model = dict(vocab_size=64, width=64, decoder=dict(num_layers=3, blocks=dict(L=block), position=dict(kind="rope")))
        c.recipe = dict(kind="finetune", how="text", length=16, answer=6, compare="symbols")
        c.optimizer = dict(name="adamw", learning_rate=3e-3, schedule=dict(kind="constant", warmup=50))
        c.train = dict(steps=500, batch_size=128)
        c.evaluate = dict(every=250, rows=500)
        return c
    c.recipe = dict(kind="policy", method=what, group=8, length=16, answer=6, kl_weight=0.01)
    c.optimizer = dict(name="adamw", learning_rate=2e-4, weight_decay=0.0, schedule=dict(kind="constant", warmup=10))
    c.train = dict(steps=200, batch_size=256)
    c.evaluate = dict(every=50, rows=500)
    return c
