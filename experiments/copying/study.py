"""Copying a pattern from the context with two layers and with one (induction heads, arXiv 2209.11895)."""

import math

from experiments import small
from experiments.languages import copying
from experiments.study import Cell, Gate, Metric, Relation, Study
from lm import config

ROW = 128
PAPER = "arXiv 2209.11895"
EXACT, NATS = "copy/exact", "copy/nats"
MASKED = config.Masked(rate=0.3, mask=1.0, random=0.0, independent=True)
CELLS = {  # architecture, objective, layers, width; the wide layer has more parameters than two narrow ones
    "causal_1": ("decoder", config.Causal(), 1, 64),
    "causal_1_wide": ("decoder", config.Causal(), 1, 96),
    "causal_2": ("decoder", config.Causal(), 2, 64),
    "masked_1": ("encoder", MASKED, 1, 64),
    "masked_2": ("encoder", MASKED, 2, 64),
}


def study(seeds: int = 3) -> Study:
    language = copying.language()
    cells = {}
    for name, (architecture, objective, layers, width) in CELLS.items():
        model = small.model(architecture, width=width, layers=layers, vocab_size=language.vocab_size)
        data = language.data(**{f"{architecture}_length": ROW})
        run = small.run(model, objective, steps=1200, batch_size=16, learning_rate=4e-3, data=data)
        asked = language.items["copy" if architecture == "decoder" else "gap"]
        facts = {"objective": name.split("_")[0], "layers": str(layers), "width": str(width)}
        cells[name] = Cell(name.replace("_", ", ", 1).replace("_", " "), run, facts, items={"copy": asked})
    relations = (
        Relation("causal: two layers copy better than one", EXACT, "causal_2", "causal_1", source=PAPER),
        Relation("causal: two layers copy better than one with more parameters", EXACT, "causal_2", "causal_1_wide"),
        Relation("masked: two layers copy better than one", EXACT, "masked_2", "masked_1", primary=False),
    )
    words = math.log(copying.WORDS)
    metrics = (
        Metric(EXACT, "words of the second occurrence, exact", lines={"chance": 1 / copying.WORDS}),
        Metric(NATS, "the same words", higher=False, lines={"chance": words, "certain": 0.0}, unit="nats a word"),
        Metric("heldout/loss", "held-out loss of its own objective", higher=False, comparable=False, unit="nats a word"),
    )
    gates = (Gate("what it expects depends on the context", NATS, at_most=words - 0.2),)
    return Study("copying", "Copying from the context by depth", cells, seeds, metrics, relations, gates=gates)
