"""Two objectives compared on one's own text; see README.md."""

from experiments import small
from experiments.study import Cell, Gate, Metric, Relation, Study
from lm import config


def study(path: str = "**/README.md", seeds: int = 3, steps: int = 600) -> Study:
    data = small.text(path)

    def cell(label: str, architecture: str, objective: config.Objective) -> Cell:
        model = small.model(architecture, layers=2, vocab_size=data.tokenizer.vocab_size)
        return Cell(label, small.run(model, objective, data=data, steps=steps), scores=("suffix", "infill"))

    cells = {
        "masked": cell("masked", "encoder", config.Masked(rate=0.3)),
        "causal": cell("left to right", "decoder", config.Causal()),
    }
    metrics = (Metric("suffix/accuracy", "tokens of a continuation"), Metric("infill/accuracy", "tokens of a gap"))
    relations = (
        Relation("left to right > masked, continuations", "suffix/accuracy", "causal", "masked"),
        Relation("masked > left to right, gaps", "infill/accuracy", "masked", "causal"),
    )
    gates = (Gate("the model guesses held-out tokens", "heldout/accuracy", at_least=0.15),)
    return Study("template", f"Masked against left to right on {path}", cells, seeds, metrics, relations, gates=gates)
