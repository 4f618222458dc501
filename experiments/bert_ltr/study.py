"""Masked against left-to-right pretraining, with a classification head (BERT, arXiv 1810.04805, Table 5)."""

from experiments import small
from experiments.study import Cell, Relation, Study
from lm import config

# Cell -> label, architecture, objective, the paper's (MNLI, SST-2): of its base model, and of the two ablations without
# next-sentence prediction.
CELLS = {
    "masked_nsp": ("masked, next sentence", "encoder", config.NextSentence(), (84.4, 92.7)),
    "masked": ("masked", "encoder", config.Masked(), (83.9, 92.6)),
    "causal": ("left to right", "decoder", config.Causal(), (82.1, 92.1)),
}
TASKS = ("questions", "topics", "sentiment", "sarcasm")


def study(seeds: int = 3, budget: float = 1e6) -> Study:
    """Matched by tokens seen, as in the paper."""
    cells = {}
    for name, (label, architecture, objective, _) in CELLS.items():
        model = small.model(architecture)
        if isinstance(objective, config.NextSentence):
            model = small.model(architecture, embed=config.Embed(types=2))
        cells[name] = Cell(label, small.run(model, objective), {"objective": label}, tasks=small.tasks("head", *TASKS))
    source = "BERT, Table 5"
    published = lambda better, than, i: (CELLS[better][3][i], CELLS[than][3][i])
    relations = (
        Relation(
            "masked > left to right, questions",
            "questions/accuracy",
            "masked",
            "causal",
            source=f"{source}, MNLI",
            published=published("masked", "causal", 0),
        ),
        Relation(
            "masked = left to right, sentiment",
            "sentiment/accuracy",
            "masked",
            "causal",
            kind="equivalent",
            margin=0.02,
            source=f"{source}, SST-2",
            published=published("masked", "causal", 1),
        ),
        Relation(
            "next sentence helps",
            small.AVERAGE,
            "masked_nsp",
            "masked",
            source=f"{source}, SST-2: pairs of texts, where it helps, are not among the tasks",
            published=published("masked_nsp", "masked", 1),
            primary=False,
        ),
    )
    title = "Masked against left to right, by head (BERT, Table 5)"
    metrics, derive = small.task_metrics(*TASKS), small.average(*TASKS)
    return Study("bert_ltr", title, cells, seeds, metrics, relations, "seen", budget, derive=derive)
