"""A base model learns to talk: fine-tuned on conversations about where things are, and how often letters occur.

    python -m lm.train --config=configs/quickstart_15min.py --workdir=runs/base
    python -m lm.train --config=configs/life/sft.py --config.train.init_from=runs/base --workdir=runs/sft
    python -m lm.chat --from=runs/sft

The conversations are generated (`lm.data.corpus.generated`): "The lamp is in the hall. Where is the lamp?", whose answers are
right, and half of them polite; and "how many a in b a n a n a ?". A fifth of each set is held out. Your own, instead or beside
them: {"messages": [{"role", "content"}, ...]} a line,

    --config.data.sources.mine="{'kind': 'jsonl', 'path': 'talk.jsonl', 'format': 'messages'}"
"""

from ml_collections import config_dict


def get_config():
    c = config_dict.ConfigDict()
    c.recipe = dict(kind="finetune", how="text", length=64, answer=32)
    generated = lambda name, weight: dict(kind="generated", path=name, format="messages", weight=weight)
    c.data = dict(sources=dict(manners=generated("manners", 1.0), letters=generated("letters", 1.0)), holdout=0.2, packing=True)
    c.optimizer = dict(
        name="adamw", learning_rate=2e-3, weight_decay=0.01, schedule=dict(kind="linear", warmup=0.05, final=0.0)
    )
    c.train = dict(steps=200, batch_size=64)
    c.checkpoint = dict(every=100)
    c.evaluate = dict(every=100, rows=500)
    c.log = dict(
        every=20, samples=("The lamp is in the hall. Where is the lamp?", "how many a in b a d a c a ?"), sample_tokens=32
    )
    return c
