"""A small causal model of your own texts: a folder of .txt files, of .jsonl or .jsonl.gz files, or of both. Copy it and edit.

    python -m lm.train --config=configs/my_text.py --workdir=runs/mine                     # the folder my_text/
    python -m lm.train --config=configs/my_text.py:/path/to/folder --workdir=runs/mine     # another one

A .txt file is one document. A line of a .jsonl file is one, {"text": "..."}; other fields of it are ignored. Subfolders are
read as well. Some 200 kB of text and 20 documents are the least that is worth a model; docs/own_text.md goes through it.

Cost: one to four minutes on two CPU cores. Expected: fewer held-out bits per byte than `xz_after_train` in the summary.
"""

from pathlib import Path

from ml_collections import config_dict


def get_config(folder="my_text"):
    c = config_dict.ConfigDict()

    # What is read. Each source has its own held-out loss; `weight` says how often its rows are drawn. `field` is the one of a
    # JSON line that holds the text. Other kinds (parquet, tfds, ...): `Source` in lm/config/data.py.
    files = dict(kind="text", path=f"{folder}/**/*.txt", encoding="utf-8", weight=1.0)
    lines = dict(kind="jsonl", path=f"{folder}/**/*.jsonl", field="text", weight=1.0)
    packed = lines | dict(path=f"{folder}/**/*.jsonl.gz")
    sources = dict(text=files, jsonl=lines, jsonl_gz=packed)
    there = [name for name in sources if any(Path(folder).expanduser().rglob(Path(sources[name]["path"]).name))]
    c.data = dict(
        sources={name: sources[name] for name in there or ["text"]},
        holdout=0.1,  # share of the documents that is never trained on
        # "bpe", "unigram", "byte_bpe" or "word"; with few texts fewer ids, with 100 MB and more 8192 or 32768. `path`: one that
        # exists.
        tokenizer=dict(kind="bpe", vocab_size=1024),
        decoder_length=128,  # tokens in a row: what the model sees at a time
        clean=dict(markup=False),  # True: web pages, whose tags are removed
    )

    # The model, 0.7 M parameters. Larger: more layers and width (a multiple of num_heads; hidden is 4 times as wide).
    block = dict(attention=dict(num_heads=2), ffn=dict(hidden=512, activation="gelu_tanh"), norm=dict(kind="rms"))
    decoder = dict(num_layers=3, blocks=dict(L=block), position=dict(kind="rope"))
    c.model = dict(vocab_size=1024, width=128, decoder=decoder)  # vocab_size is the tokenizer's

    # What it learns: the next token. docs/objectives.md has the others.
    c.objective = dict(kind="causal")

    # How it learns: 20 steps up to the rate, the last 100 down to 0. A larger model takes a smaller rate.
    c.optimizer = dict(
        name="muon",
        learning_rate=0.02,
        adam_learning_rate=0.005,
        schedule=dict(kind="wsd", warmup=20, decay=100, final=0.0),
    )
    c.train = dict(steps=310, batch_size=32)  # 310 * 32 * 128 tokens: 1.27 million, about 4 MB of English
    c.checkpoint = dict(every=100)
    c.evaluate = dict(every=155, baselines=True)  # baselines: xz and n-grams on the same held-out bytes
    c.log = dict(every=10, samples=("The ",))  # prompts that it goes on from at each evaluation
    return c
