"""What both contenders of `experiments.speed.tuning` are given: a model of random weights, conversations and questions.

<folder>/run              a run of this library, of one step: the model to start from
<folder>/hf               the same weights as transformers reads them
<folder>/conversations    ids and loss of each, as this library's rows have them
<folder>/words.json       word -> id, special tokens included
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

WORDS = 8000
CONVERSATIONS, QUESTIONS = 2048, 1024
ROW = dict(length=384, answer=128)  # tokens of a conversation and of an answer in it, at most: a row is of both
PROMPT, ANSWER = 64, 128  # tokens of a question with its ends, at most, and of an answer
BATCH, SAMPLES, GROUP = 8, 16, 8  # conversations of a step; answers of a step, and to each question


def text(rng: np.random.Generator, low: int, high: int) -> str:
    return " ".join(f"w{i}" for i in rng.integers(0, WORDS, rng.integers(low, high + 1)))


def conversation(rng: np.random.Generator) -> dict[str, Any]:
    """One to three turns; 30 to 500 tokens."""
    turns = []
    for _ in range(rng.integers(1, 4)):
        turns += [dict(role="user", content=text(rng, 10, 50)), dict(role="assistant", content=text(rng, 20, 100))]
    return {"messages": turns}


def lines(path: Path, records: list[Any]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return str(path)


def base(folder: Path, model: Any) -> dict[str, Any]:
    """The config of a run on the conversations, as a tree."""
    source = dict(kind="jsonl", path=str(folder / "conversations.jsonl"), format="messages")
    return dict(
        model=model,
        data=dict(
            sources=dict(conversations=source),
            tokenizer=dict(kind="word", vocab_size=8192),
            holdout=0.0,
            cache=str(folder / "cache"),
            dedup=dict(near=None),
        ),
        recipe=dict(kind="finetune", how="text", **ROW),
        optimizer=dict(name="adamw", learning_rate=1e-5, schedule=dict(kind="constant", warmup=0)),
        train=dict(steps=1, batch_size=BATCH),
        evaluate=dict(every=None),
        log=dict(samples=(), tensorboard=False),
    )


def make(folder: Path, name: str) -> None:
    """Writes all of it. Runs in a process of its own, because it imports jax."""
    from lm import recipes
    from lm.config import Run, resolve
    from lm.conversion import folders
    from lm.models.presets.llama import SMOLLM2_135M, llama
    from lm.recipes.finetune import FineTuning

    models = {"W2": llama(6, 384, 6, 1024, vocab_size=8192, tied=True), "L135M": SMOLLM2_135M}
    rng = np.random.default_rng(0)
    lines(folder / "conversations.jsonl", [conversation(rng) for _ in range(CONVERSATIONS)])
    questions = [dict(question=text(rng, 20, PROMPT - 2), answer="w0") for _ in range(QUESTIONS)]
    lines(folder / "questions.jsonl", questions)
    run = resolve.build(Run, base(folder, resolve.to_dict(models[name])))
    recipes.train(run, folder / "run", quiet=True)
    folders.to_hf(str(folder / "run"), str(folder / "hf"), family="llama", shard_gb=5.0)
    recipe = FineTuning()
    run = recipe.complete(run, None)
    prepared = recipe.data(run, progress=False)
    store, tokenizer = prepared.train["conversations"], prepared.tokenizer
    every = np.arange(store.num_documents)
    (folder / "conversations").mkdir()
    ids, loss = store.documents(every), store.loss(every)
    np.savez(folder / "conversations/rows.npz", ids=np.concatenate(ids), loss=np.concatenate(loss), sizes=[len(i) for i in ids])
    words = {f"w{i}": int(tokenizer.encode(f"w{i}")[0]) for i in range(WORDS)}
    special = {f"<{name}>": tokenizer.require(name) for name in ("pad", "bos", "eos", "unk")}
    (folder / "words.json").write_text(json.dumps(words | special), encoding="utf-8")
