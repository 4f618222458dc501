"""Facts asked backwards of masked diffusion, with names in two pieces and in one (arXiv 2309.12288, 2502.09992, 2601.07347)."""

from experiments import small
from experiments.languages import reversal
from experiments.reversal.study import BACKWARDS, FORWARDS, KNOWN, PEOPLE, REVERSED, ROW
from experiments.study import Cell, Gate, Metric, Relation, Study
from lm import config

# Objective, steps, names written as one word, and the items in which a name is asked for (`experiments.reversal`).
CELLS = {
    "causal": (config.Causal(), 400, False, "backwards"),
    "diffusion": (config.MaskedDiffusion(), 1000, False, "gap"),
    "whole": (config.MaskedDiffusion(), 700, True, "gap"),
}
LABELS = {"causal": "next token", "diffusion": "masked diffusion", "whole": "masked diffusion, names in one piece"}


def study(seeds: int = 3) -> Study:
    cells = {}
    for name, (objective, steps, joined, asked) in CELLS.items():
        language = reversal.language(count=PEOPLE, joined=joined)
        architecture = "decoder" if name == "causal" else "encoder"
        model = small.model(architecture, layers=2, vocab_size=language.vocab_size)
        data = language.data(**{f"{architecture}_length": ROW})
        run = small.run(model, objective, steps=steps, batch_size=32, learning_rate=2e-3, data=data)
        files = {"forwards": "forwards", "backwards": asked, "reversed": "backwards", "known": "known"}
        facts = {"names": "one piece" if joined else "two pieces"}
        cells[name] = Cell(LABELS[name], run, facts, items={metric: language.items[file] for metric, file in files.items()})
    escapes, differs = dict(source="arXiv 2309.12288, 2502.09992"), dict(source="arXiv 2601.07347")
    relations = (
        Relation("in the reversed form, masked diffusion is above next token", REVERSED, "diffusion", "causal", **escapes),
        Relation("in the reversed form, names in one piece are above those in two", REVERSED, "whole", "diffusion", **differs),
        Relation("in the reversed form, names in one piece are above next token", REVERSED, "whole", "causal", primary=False),
        Relation(
            "asked by a gap, masked diffusion is above next token", BACKWARDS, "diffusion", "causal", primary=False, **escapes
        ),
    )
    gates = (
        Gate("the facts are recalled forwards", FORWARDS, at_least=0.8),
        Gate("the reversed form is known from other people", KNOWN, at_least=0.8),
    )
    lines = {"chance": 1 / PEOPLE}
    metrics = (
        Metric(BACKWARDS, "asked backwards, exact name", lines=lines),
        Metric(REVERSED, "asked backwards in the reversed form", lines=lines),
        Metric(FORWARDS, "asked forwards, exact description"),
        Metric(KNOWN, "reversed form, people told of in both directions"),
    )
    title = "Facts asked backwards of masked diffusion"
    return Study("reversal_diffusion", title, cells, seeds, metrics, relations, gates=gates)
