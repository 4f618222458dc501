"""Few documents, read again and again: masked diffusion comes under next-token prediction (arXiv 2507.15857)."""

from dataclasses import replace

from experiments import small
from experiments.languages import villages
from experiments.study import Cell, Metric, Relation, Study
from lm import config

LOSS = "heldout/loss"


def study(seeds: int = 3, steps: int = 3000, share: float = 0.02, rate: float = 2e-3) -> Study:
    language = villages.language()
    cells = {}
    for name, objective, dropout in (
        ("causal", config.Causal(), 0.0),
        ("dropout", config.Causal(), 0.2),
        ("diffusion", config.MaskedDiffusion(), 0.0),
    ):
        architecture = "encoder" if name == "diffusion" else "decoder"
        model = small.model(architecture, layers=2, vocab_size=language.vocab_size)
        if dropout:
            model = replace(model, decoder=replace(model.decoder, dropout=dropout))
        data = language.data(**{f"{architecture}_length": 64}, train_share=share)
        run = small.run(model, objective, steps=steps if name == "diffusion" else steps // 5, learning_rate=rate, evaluate_every=100, evaluate_rows=352, data=data)
        cells[name] = Cell(name, run)
    metrics = (Metric(LOSS, "loss", higher=False, unit="nats a word"),)
    relations = (Relation("causal < masked", LOSS, "causal", "diffusion"),)
    return Study("crossing", "x", cells, seeds, metrics, relations)
