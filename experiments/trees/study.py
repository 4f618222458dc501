"""Tree-LSTMs, LSTMs and transformer encoders at equal FLOPs: nested operations (ListOps) and sentiment; see README.md."""

from typing import Any

import numpy as np

from experiments import small
from experiments.study import Cell, Gate, Measured, Metric, Relation, Study
from lm import config, recipes, sharding
from lm.config import Block, Mlp, Norm
from lm.evaluation.labelled import head_logits
from lm.models.transformer import Transformer
from lm.saved import Saved

WIDTH, BATCH = 64, 64
WORDS = 40  # of a snippet, at most; of a longer one both ends are kept
TREE, ORDERED = config.TreeLstm(), config.TreeLstm(children=5)
LSTM, ATTENTION = config.Lstm(direction="both"), config.Attention(4)
# Name -> label, layers, what mixes, how trees are read.
LISTOPS: dict[str, tuple[str, int, Any, config.Trees]] = {
    "tree": ("tree-LSTM, child-sum", 1, TREE, "given"),
    "ordered": ("tree-LSTM, five children in order", 1, ORDERED, "given"),
    "lstm": ("LSTM, both ways", 1, LSTM, "none"),
    "transformer": ("transformer encoder", 2, ATTENTION, "none"),
    "shuffled": ("tree-LSTM, digits and operators in other places", 1, TREE, "shuffled"),
    "right": ("tree-LSTM, right-branching over the sequence", 1, TREE, "right"),
}
SENTIMENT: dict[str, tuple[str, int, Any, config.Trees]] = {
    "s_tree": ("tree-LSTM, balanced", 1, TREE, "balanced"),
    "s_right": ("tree-LSTM, right-branching", 1, TREE, "right"),
    "s_lstm": ("LSTM, both ways", 1, LSTM, "none"),
    "s_transformer": ("transformer encoder", 2, ATTENTION, "none"),
}
VALUE, FEELING = "listops/accuracy", "sentiment/accuracy"
CHANCE = "heldout/majority"


def run(name: str, layers: int, mixes: Any, trees: config.Trees) -> config.Run:
    """A fine-tuning from scratch on the set "listops" or "sentiment"."""
    attends, vocab = isinstance(mixes, config.Attention), 128 if name == "listops" else 4096
    part: dict[str, Any] = dict(attention=mixes) if attends else dict(mixer=mixes)
    block = Block(ffn=Mlp(4 * WIDTH), norm=Norm("rms"), **part)
    position = config.Rope() if attends else None
    model = config.Model(vocab, WIDTH, config.Stack(layers, {"L": block}, position=position))
    sources = {
        "listops": config.Source("generated", "listops", format="tree"),
        "sentiment": config.Source("package", "sentiment", format="labelled"),
    }
    data = config.Data({name: sources[name]}, holdout=0.1, tokenizer=config.Tokenizer("word", vocab))
    return config.Run(
        model,
        data,
        optimizer=config.Optimizer(learning_rate=3e-3, schedule=small.DECAYING),
        train=config.Train(batch_size=BATCH),
        checkpoint=config.Checkpoint(every=None, keep=1, keep_best=False),
        evaluate=config.Evaluate(every=None, rows=500, batch_size=BATCH),
        log=config.Log(samples=(), tensorboard=False),
        recipe=config.Finetune(trees=trees, length=length(name, trees)),
    )


def length(name: str, trees: config.Trees) -> int:
    """Nodes or tokens of a row, in which all expressions fit: a tree over a sequence has twice its tokens."""
    tokens = 96 if name == "listops" else WORDS
    if trees == "none":
        return tokens + 2
    return 64 if trees in ("given", "shuffled") and name == "listops" else 2 * tokens - 1


def measured(model: Saved) -> Measured:
    """The share of right classes among all held-out records, record by record: `<source>/accuracy`."""
    assert model.run is not None
    recipe = recipes.recipe(model.run)
    run = recipe.complete(model.run, model.folder)
    rows: Any = recipe.rows(run, recipe.data(run, progress=False))["holdout"]
    mesh = sharding.make_mesh(run.mesh)
    batch = lambda index: sharding.global_batch(rows.rows, index, mesh)
    logits = head_logits(Transformer(run.model), model.params(), batch, count=rows.count, batch_size=BATCH)
    right = (logits.argmax(axis=1) == rows.rows(np.arange(rows.count)).targets[:, 0]).astype(float)
    name = f"{next(iter(rows.stores))}/accuracy"
    return Measured({name: float(right.mean())}, {name: right})


def study(seeds: int = 3, budget: float = 4e11, sentiment: float = 0.5) -> Study:
    """All cells have the same FLOPs, those of sentiment a share of them."""
    cells = {}
    for name, each, share in (("listops", LISTOPS, 1.0), ("sentiment", SENTIMENT, sentiment)):
        for cell, (label, layers, mixes, trees) in each.items():
            made = run(name, layers, mixes, trees)
            facts = {"set": name, "layers": str(layers), "trees": trees}
            cells[cell] = Cell(f"{name}: {label}", made, facts, share=share, measure=measured)
    nested, tai = "arXiv 1804.06028", "arXiv 1503.00075"
    relations = (
        Relation("ListOps: a tree-LSTM > an LSTM", VALUE, "tree", "lstm", source=nested),
        Relation("ListOps: a tree-LSTM > a transformer", VALUE, "tree", "transformer"),
        Relation("ListOps: the tree > the same words in other places", VALUE, "tree", "shuffled"),
        Relation("sentiment: a balanced tree is worth an LSTM", FEELING, "s_tree", "s_lstm", "equivalent", 0.03, source=tai),
        Relation("ListOps: the tree > a right-branching one", VALUE, "tree", "right", primary=False),
        Relation("ListOps: children in order > their sum", VALUE, "ordered", "tree", primary=False),
        Relation("sentiment: a balanced tree > a right-branching one", FEELING, "s_tree", "s_right", primary=False),
        Relation("sentiment: an LSTM > a transformer", FEELING, "s_lstm", "s_transformer", primary=False),
    )
    metrics = (
        Metric(VALUE, "values of expressions, accuracy", chance=CHANCE, lines={"chance": 0.1}),
        Metric(FEELING, "sentiment, accuracy", chance=CHANCE, lines={"chance": 0.5}),
    )
    gates = (Gate("the tree-LSTM reads more than single digits", VALUE, at_least=0.3, cells=("tree", "ordered")),)
    return Study(
        "trees", "Trees, LSTMs and transformers at equal FLOPs", cells, seeds, metrics, relations, "flops", budget, gates=gates
    )
