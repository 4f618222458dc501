"""A model learns from rewards of what it writes itself, by policy gradients.

    python -m lm.train --config=configs/life/policy.py:sft --workdir=runs/sums
    python -m lm.train --config=configs/life/policy.py:grpo --config.train.init_from=runs/sums --workdir=runs/sums_grpo

The argument is `sft`, METHOD or METHOD.SET. METHOD is a row of `lm.losses.policy.METHODS`: reinforce, ppo, rloo, grpo, dr_grpo,
dapo, gspo. SET is

    pairs    (without a SET) all sums of two numbers below 100, "2 7 + 5 8 =", a fifth of them held out; 1 for the right answer
    letters  conversations, "how many a in b a d a c a ?"; 1 for the right answer
    manners  conversations about where things are, whose answers a reward model judges

With another model (`train.init_from`) its tokenizer is used. After configs/life/sft.py and configs/life/reward.py:

    python -m lm.train --config=configs/life/policy.py:grpo.letters --config.train.init_from=runs/sft --workdir=runs/grpo
    python -m lm.train --config=configs/life/policy.py:ppo.manners --config.train.init_from=runs/sft \
        --config.recipe.graders.judge.path=runs/reward --workdir=runs/ppo

Your own questions, and rewards by other means (`lm.config.Grader`):

    --config.data.sources="{'mine': {'kind': 'jsonl', 'path': 'questions.jsonl', 'format': 'pair'}}"
    --config.recipe.graders="{'right': {'kind': 'number'}, 'short': {'kind': 'regex', 'pattern': '.{1,20}', 'weight': 0.1}}"

Reached where it was measured: of 500 held-out questions `sft` answers 0.36 right, and 200 steps of `grpo` make that 0.51.
"""

from ml_collections import config_dict

from lm.errors import UserError, nearest

METHODS = ("reinforce", "ppo", "rloo", "grpo", "dr_grpo", "dapo", "gspo")
SETS = ("pairs", "letters", "manners")


def get_config(what="grpo"):
    method, _, name = what.partition(".")
    name = name or "pairs"
    if method not in ("sft", *METHODS):
        raise UserError(f"no stage '{method}'{nearest(method, ('sft', *METHODS))}")
    if name not in SETS:
        raise UserError(f"no set '{name}'{nearest(name, SETS)}")
    c = config_dict.ConfigDict()
    path, format = ("sums", "pair") if name == "pairs" else (name, "messages")
    c.data = dict(sources={path: dict(kind="generated", path=path, format=format)}, holdout=0.2)
    c.checkpoint = dict(every=100)
    c.log = dict(every=10, samples=())
    if method == "sft":
        block = dict(attention=dict(num_heads=4), ffn=dict(hidden=256), norm=dict(kind="rms"))
        c.model = dict(vocab_size=64, width=64, decoder=dict(num_layers=3, blocks=dict(L=block), position=dict(kind="rope")))
        c.data.tokenizer = dict(kind="word", vocab_size=64)
        c.recipe = dict(kind="finetune", how="text", length=16, answer=6, compare="symbols")
        c.optimizer = dict(name="adamw", learning_rate=3e-3, schedule=dict(kind="constant", warmup=50))
        c.train = dict(steps=500, batch_size=128)
        c.evaluate = dict(every=250, rows=500)
        return c
    room = dict(pairs=dict(length=16, answer=6), letters=dict(length=48, answer=6), manners=dict(length=64, answer=32))[name]
    near = 0.2 if name == "manners" else 0.01  # a reward model is soon deceived
    c.recipe = dict(kind="policy", method=method, group=8, kl_weight=near, **room)
    if name == "manners":
        c.recipe.graders = dict(judge=dict(kind="model", path="unset"))
    rate, steps, size = dict(pairs=(2e-4, 200, 256), letters=(1e-4, 100, 256), manners=(2e-4, 80, 128))[name]
    c.optimizer = dict(name="adamw", learning_rate=rate, weight_decay=0.0, schedule=dict(kind="constant", warmup=10))
    c.train = dict(steps=steps, batch_size=size)
    c.evaluate = dict(every=steps // 4, rows=500 if name == "pairs" else 200)
    return c
