"""Facts that were read in one direction and are asked for in the other (arXiv 2309.12288), by objective."""

import numpy as np

from experiments import small
from experiments.languages import reversal
from experiments.study import Cell, Gate, Measured, Metric, Relation, Study
from lm import config
from lm.evaluation import items
from lm.models.transformer import Transformer
from lm.saved import Saved

ROW = 64
PEOPLE = 160
PAPER = "arXiv 2309.12288"
FORWARDS, BACKWARDS, REVERSED, KNOWN, RANKED = (
    f"{name}/exact" for name in ("forwards", "backwards", "reversed", "known", "ranked")
)
MASKED = config.Masked(rate=0.4, mask=1.0, random=0.0)
# Architecture, objective, steps, and the items in which it is asked for a name: "gap" is the form that was read, with the name
# left out; a causal model has no such question and is asked in the reversed form, which it has read of other people.
OBJECTIVES = {
    "causal": ("decoder", config.Causal(), 400, "backwards"),
    "masked": ("encoder", MASKED, 600, "gap"),
    "fim": ("decoder", config.FillInMiddle(rate=0.9), 600, "gap"),
    "spans": ("decoder", config.SpanCorruption(rate=0.34, mean_span=2.0, roll=True), 800, "gap"),
}


def study(seeds: int = 4) -> Study:
    language = reversal.language(count=PEOPLE)
    cells = {}
    for name, (architecture, objective, steps, asked) in OBJECTIVES.items():
        model = small.model(architecture, layers=2, vocab_size=language.vocab_size)
        data = language.data(**{f"{architecture}_length": ROW})
        run = small.run(model, objective, steps=steps, batch_size=32, learning_rate=2e-3, data=data)
        files = {"forwards": "forwards", "backwards": asked, "reversed": "backwards", "known": "known"}
        cells[name] = Cell(
            name,
            run,
            {"asked backwards": "in the reversed form" if asked == "backwards" else "by a gap in the fact"},
            items={metric: language.items[file] for metric, file in files.items()},
            measure=ranked if name == "causal" else None,
        )
    relations = (
        Relation("asked backwards, masked is above causal", BACKWARDS, "masked", "causal", source=PAPER),
        Relation("asked forwards, masked equals causal", FORWARDS, "masked", "causal", "equivalent", 0.05, PAPER),
        Relation("in the same reversed form, masked is above causal", REVERSED, "masked", "causal", source=PAPER),
        Relation("asked backwards, FIM is above causal", BACKWARDS, "fim", "causal", primary=False),
        Relation("asked backwards, span corruption is above causal", BACKWARDS, "spans", "causal", primary=False),
    )
    gates = (
        Gate("the facts are recalled forwards", FORWARDS, at_least=0.9),
        Gate("the reversed form is known from other people", KNOWN, at_least=0.9, cells=("causal", "masked")),
    )
    chance = {"chance": 1 / reversal.WORDS**reversal.NAME}
    metrics = (
        Metric(BACKWARDS, "asked backwards, exact name", lines=chance),
        Metric(FORWARDS, "asked forwards, exact description", lines={"chance": 1 / reversal.WORDS**reversal.DESCRIPTION}),
        Metric(REVERSED, "asked backwards in the reversed form", lines=chance),
        Metric(KNOWN, "reversed form, people told of in both directions", lines=chance),
        Metric(RANKED, "the likeliest of all facts with this description", lines={"chance": 2 / PEOPLE}),
    )
    return Study("reversal", "Facts asked backwards", cells, seeds, metrics, relations, gates=gates)


def ranked(trained: Saved) -> Measured:
    """Whether, with each description, the right name makes the likeliest fact among the names of all people that are asked for.

    The facts are scored in the form that was read: what a causal model cannot say backwards it may still know.
    """
    asked = items.read(reversal.language(count=PEOPLE).items["gap"])
    facts = [items.Item("note", f"{name.target} {text.right}", "") for text in asked for name in asked]
    found = items.score(Transformer(trained.model), trained.params(), config.Causal(), trained.tokenizer(), facts)
    nats = found.nats.reshape(len(asked), len(asked))  # [description, name]
    right = (nats.argmin(axis=1) == np.arange(len(asked))).astype(float)
    return Measured({RANKED: float(right.mean())}, {RANKED: right})
