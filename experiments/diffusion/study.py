"""Next tokens, blocks and masked diffusion at equal FLOPs, on sentences whose entropy is exact (arXiv 2503.09573)."""

from experiments import small
from experiments.languages import grammar
from experiments.study import Cell, Gate, Metric, Relation, Study
from lm import config

LOSS = "heldout/loss"
OBJECTIVES = {
    "causal": config.Causal(),
    "block_4": config.BlockDiffusion(4),
    "block_16": config.BlockDiffusion(16),
    "masked": config.MaskedDiffusion(),
}


def study(seeds: int = 3, budget: float = 1.5e12) -> Study:
    language = grammar.language()
    cells = {}
    for name, objective in OBJECTIVES.items():
        architecture = "encoder" if name == "masked" else "decoder"
        model = small.model(architecture, width=64, layers=2, vocab_size=language.vocab_size)
        length = 2 * small.LENGTH if name.startswith("block") else small.LENGTH
        data = language.data(**{f"{architecture}_length": length})
        run = small.run(model, objective, data=data)
        cells[name] = Cell(name, run)
    metrics = (Metric(LOSS, "loss", higher=False, unit="nats a word"),)
    relations = (Relation("causal < masked", LOSS, "causal", "masked"),)
    return Study("diffusion", "x", cells, seeds, metrics, relations, match="flops", budget=budget)
