"""Masked against left to right, read by a head (BERT, arXiv 1810.04805, Table 5)."""

from experiments import small
from experiments.study import Cell, Metric, Relation, Study, Task, mean_of
from lm import config

# The paper's MNLI / SST-2 of its base model, of the same without next-sentence prediction, and left to right without it.
CELLS = {
    "masked_nsp": ("masked, next sentence", "encoder", config.NextSentence(), (84.4, 92.7)),
    "masked": ("masked", "encoder", config.Masked(), (83.9, 92.6)),
    "causal": ("left to right", "decoder", config.Causal(), (82.1, 92.1)),
}
TASKS = tuple(
    Task(name, "head", config.Finetune(steps=120, batch_size=16, length=length, rows=500))
    for name, length in (("questions", 32), ("sentiment", 48), ("sarcasm", 32))
)
PARTS = ("questions/accuracy", "sentiment/accuracy", "sarcasm/accuracy")


def study(seeds: int = 3, budget: float = 1e6, match: str = "seen") -> Study:
    """At equal tokens seen, as in the paper; `--set match=flops` gives the masked model, whose head reads 15 %, more."""
    cells = {}
    for name, (label, architecture, objective, _) in CELLS.items():
        model = small.model(architecture)
        if isinstance(objective, config.NextSentence):
            model = small.model(architecture, embed=config.Embed(types=2))
        cells[name] = Cell(label, small.run(model, objective), {"objective": label}, tasks=TASKS)
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
            "downstream/average",
            "masked_nsp",
            "masked",
            source=f"{source}, MNLI",
            published=published("masked_nsp", "masked", 0),
        ),
    )
    metrics = (
        Metric("downstream/average", "average of the tasks"),
        *(Metric(part, part.replace("/", ", ")) for part in PARTS),
    )
    title = "Masked against left to right, by head (BERT, Table 5)"
    return Study("bert_ltr", title, cells, seeds, metrics, relations, match, budget, derive=mean_of(PARTS))
