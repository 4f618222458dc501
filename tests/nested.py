"""Small runs on trees, for the tests: a few hundred expressions in files, and a model of two layers."""

import json
from pathlib import Path
from typing import Any

from lm import config
from lm.config import Block, Checkpoint, Data, Evaluate, Head, Log, Mlp, Model, Norm, Run, Source, Stack, Train, TreeLstm
from lm.data import trees
from lm.data.corpus import listops

LENGTH, COUNT, SEED = 32, 300, 5


def model(children: int | None, hidden: int | None = None) -> Model:
    """Two tree-LSTMs; the head has the classes of the data."""
    block = Block(ffn=Mlp(32), norm=Norm("rms"), mixer=TreeLstm(children, hidden))
    return Model(64, 16, encoder=Stack(2, {"T": block}, pattern="T"), head=Head(tied=False, bias=True, outputs=10))


def files(folder: Path) -> dict[str, Path]:
    """The same expressions as JSON lines with labels, and as a tree a line whose brackets begin with labels."""
    records = [listops.expression(SEED, index, depth=3, most=LENGTH // 2) for index in range(COUNT)]
    found = {"jsonl": folder / "trees.jsonl", "txt": folder / "trees.txt"}
    lines = [json.dumps({"tree": record.tree, "label": record.label}) for record in records]
    found["jsonl"].write_text("\n".join(lines) + "\n", "utf-8")
    found["txt"].write_text("".join(f"{labelled(trees.parse(record.tree))}\n" for record in records), "utf-8")
    return found


def labelled(nodes: trees.Nodes) -> str:
    """The tree with its value in each bracket, and operators as its first words."""
    done: list[tuple[str, int]] = []
    for word, count in zip(nodes.read, nodes.children, strict=True):
        if not count:
            done.append((f"({word} {word})", int(word)))
            continue
        parts = done[len(done) - count :]
        del done[len(done) - count :]
        value = listops.OPERATORS[word]([v for _, v in parts])
        done.append((f"({value} ({value} {word}) {' '.join(text for text, _ in parts)})", value))
    return done[0][0]


def run(path: Path, children: int | None = None, *, steps: int = 4, **changes: Any) -> Run:
    """A run of some steps that is tested and saved in its middle."""
    source = Source("jsonl", str(path), format="tree")
    data = dict(
        sources={"trees": source}, holdout=0.2, tokenizer=config.Tokenizer("word", 64), cache=str(path.parent / "cache")
    )
    names = {name: changes.pop(name) for name in ("packing", "encoder_length", "on_long") if name in changes}
    recipe = config.Finetune(**{"how": "head", "length": LENGTH, "trees": "given"} | changes.pop("recipe", {}))
    settings: dict[str, Any] = dict(
        model=model(children),
        data=Data(**data, **names),
        train=Train(steps=steps, batch_size=8),
        checkpoint=Checkpoint(every=2),
        evaluate=Evaluate(every=None, batch_size=8),
        log=Log(every=1, tensorboard=False, samples=()),
        recipe=recipe,
    )
    return Run(**settings | changes)
