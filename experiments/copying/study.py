"""Copying a pattern from the context with two layers and with one (induction heads, arXiv 2209.11895)."""

import math

from experiments import small
from experiments.languages import copying
from experiments.study import Cell, Gate, Metric, Relation, Study
from lm import config

ROW = 128
PAPER = "arXiv 2209.11895"
EXACT, NATS = "copy/exact", "copy/nats"
CELLS = {  # label, layers, width
    "one": ("one layer", 1, 64),
    "wide": ("one wide layer", 1, 96),  # has more parameters than two narrow ones
    "two": ("two layers", 2, 64),
}


def study(seeds: int = 5, steps: int = 1500) -> Study:
    """All cells read the same number of words."""
    language = copying.language()
    cells = {}
    for name, (label, layers, width) in CELLS.items():
        model = small.model("decoder", width=width, layers=layers, vocab_size=language.vocab_size)
        data = language.data(decoder_length=ROW)
        run = small.run(model, config.Causal(), steps=steps, batch_size=16, learning_rate=4e-3, data=data)
        cells[name] = Cell(label, run, {"layers": str(layers), "width": str(width)}, items=language.items)
    relations = (
        Relation("two layers copy better than one", EXACT, "two", "one", source=PAPER),
        Relation("two layers copy better than a wide one", EXACT, "two", "wide", source=PAPER),
    )
    guess = math.log(copying.WORDS)
    metrics = (
        Metric(EXACT, "words of the second occurrence, exact", lines={"chance": 1 / copying.WORDS}),
        Metric(NATS, "the same words", higher=False, lines={"chance": guess, "certain": 0.0}, unit="nats a word"),
        Metric("heldout/loss", "held-out loss", higher=False, unit="nats a word"),
    )
    gates = (Gate("what it expects depends on the context", NATS, at_most=guess - 0.2),)
    return Study("copying", "Copying from the context by depth", cells, seeds, metrics, relations, gates=gates)
