"""A classifier of your own labelled texts, made of a pretrained model. Copy it and edit.

    python -m lm.train --config=configs/my_labels.py --config.train.init_from=runs/quickstart --workdir=runs/labels
    python -m lm.train --config=configs/my_labels.py:reviews.csv --config.train.init_from=runs/quickstart --workdir=runs/labels

The file, my_labels.csv unless another is named, has a column `text` and a column `label`; with the ending .jsonl or .jsonl.gz
it has a line {"text": "...", "label": "..."} for each. A label is a word or a whole number; how many there are is found out.
docs/own_text.md goes through it.

Cost: one to two minutes on two CPU cores for a model of the quickstart's size. Expected: more than `majority`, the score of
the most common label, which the summary shows beside the model's accuracy.
"""

from ml_collections import config_dict


def get_config(file="my_labels.csv"):
    c = config_dict.ConfigDict()

    # What is read. Other kinds: dict(kind="parquet", path="reviews/", ...). A share of the records is held out, and no text is
    # in both parts. A set that comes in two files: a second source with use="holdout", and use="train" here.
    kind = "jsonl" if ".jsonl" in file else "csv"
    c.data = dict(sources=dict(mine=dict(kind=kind, path=file, format="labelled")), holdout=0.2)

    # The model, its objective and its tokenizer are those of train.init_from: a run, a converted model (`lm.convert`) or
    # an earlier fine-tuning. how="head": a new head reads one position, which suits every architecture; how="text": a model
    # with a decoder writes the label.
    c.recipe = dict(
        kind="finetune",
        how="head",
        length=64,  # tokens of a text; of a longer one both ends are kept
        labels=None,  # train on so many of the records; None: all
    )

    # How it learns. The rate matters most: try 3e-4 and 3e-3 as well.
    c.optimizer = dict(name="adamw", learning_rate=1e-3, weight_decay=0.01, schedule=dict(kind="linear", warmup=0.1, final=0.0))
    c.train = dict(steps=200, batch_size=32)  # 6,400 texts: a set of 2,000 is seen four times
    c.checkpoint = dict(every=100)
    c.evaluate = dict(every=50, rows=1000)  # so many of the held-out records
    c.log = dict(every=10)
    return c
