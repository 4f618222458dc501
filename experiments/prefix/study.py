"""A prefix seen from both sides against the same decoder left to right (T5, arXiv 1910.10683, Table 2), under denoising."""

from dataclasses import replace

import numpy as np

from experiments import small
from experiments.languages import villages
from experiments.study import Cell, Gate, Measured, Metric, Relation, Study
from lm import config
from lm.evaluation import items
from lm.models.transformer import Transformer
from lm.saved import Saved

ROW = 64
LOSS, LOST = "heldout/loss", "span/nats lost left to right"
BOTH = config.SpanCorruption(rate=0.3, roll=True)
READS = {"both": (BOTH, "both ways"), "left": (replace(BOTH, prefix=False), "left to right")}


def study(seeds: int = 3, steps: int = 1000) -> Study:
    """The cells differ in what their attention masks let the corrupted text see: the words that are predicted are the same."""
    language = villages.language()
    cells = {}
    for layers in (2, 1):
        for name, (objective, way) in READS.items():
            model = small.model("decoder", layers=layers, vocab_size=language.vocab_size)
            run = small.run(model, objective, steps=steps, data=language.data(decoder_length=ROW))
            asked = {what: language.items[what] for what in ("span", "pronoun", "home")}
            facts = {"the text is read": way, "layers": str(layers)}
            measure = looked_ahead if name == "both" else None
            cells[f"{name}_{layers}"] = Cell(
                f"{way}, {layers} layer{'s' * (layers > 1)}", run, facts, items=asked, measure=measure
            )
    source = "T5, Table 2, denoising, GLUE"
    relations = (
        Relation("two layers: both ways predicts better", LOSS, "both_2", "left_2", source=source, published=(81.82, 74.70)),
        Relation("one layer: no difference", LOSS, "both_1", "left_1", "equivalent", margin=0.01, planted="null"),
        Relation("two layers: both ways finds more pronouns", "pronoun/exact", "both_2", "left_2", primary=False),
        Relation("two layers: both ways finds more homes", "home/exact", "both_2", "left_2", primary=False),
    )
    metrics = (
        Metric(LOSS, "held-out spans", higher=False, unit="nats a token"),
        Metric("span/nats", "gap of three words", higher=False, lines={"single words": 3 * villages.UNIGRAM}, unit="nats"),
        Metric("pronoun/exact", "pronouns that are right", lines={"chance": 1 / len(villages.CLANS)}),
        Metric("home/exact", "homes that are right", lines={"chance": 1 / len(villages.PLACES)}),
        Metric(LOST, "what a gap costs more when the text must be read left to right", unit="nats"),
    )
    gates = (
        Gate("the model predicts by more than the frequencies of words", LOSS, at_most=villages.UNIGRAM - 1),
        Gate("what it reads both ways it cannot read left to right", LOST, at_least=0.1, cells=("both_2",)),
    )
    title = "A prefix seen from both sides (T5, Table 2)"
    return Study("prefix", title, cells, seeds, metrics, relations, gates=gates)


def looked_ahead(trained: Saved) -> Measured:
    """How many nats the gaps of three words cost more when the same parameters may not look ahead in the text around them."""
    asked = items.read(villages.language().items["span"])
    given = (Transformer(trained.model), trained.params())
    nats = [items.score(*given, o, trained.tokenizer(), asked).nats for o, _ in (READS["left"], READS["both"])]
    return Measured({LOST: float(np.mean(nats[0] - nats[1]))}, {LOST: nats[0] - nats[1]})
