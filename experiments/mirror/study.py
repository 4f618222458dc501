"""A causal decoder on a text, and on the same text backwards: the entropy is the same, so the losses should be."""

from experiments import small
from experiments.languages import mirror
from experiments.study import Cell, Metric, Relation, Study
from lm import config

LOSS = "heldout/loss"
MARGIN = 0.02  # nats a word


def study(seeds: int = 5, steps: int = 1000) -> Study:
    cells = {}
    for name, label in {"forwards": "text", "backwards": "text backwards"}.items():
        language = mirror.language(backwards=name == "backwards")
        data = language.data(decoder_length=small.LENGTH)
        model = small.model("decoder", width=64, layers=2, vocab_size=language.vocab_size)
        run = small.run(model, config.Causal(), steps=steps, batch_size=16, data=data, evaluate_rows=None)
        cells[name] = Cell(label, run, {"direction": name})
    relations = (
        Relation(
            f"backwards is as far from its text as forwards, within {MARGIN} nats a word",
            LOSS,
            "backwards",
            "forwards",
            kind="equivalent",
            margin=MARGIN,
            source="the chain rule; arXiv 2401.17505 for what models learn",
            planted="null",
        ),
    )
    metrics = (Metric(LOSS, "held-out text", higher=False, unit="nats a word"),)
    return Study("mirror", "A text forwards and backwards", cells, seeds, metrics, relations)
