"""A minute of pretraining on text against none, by fine-tuning on a few hundred labels: does it help at all?"""

from dataclasses import replace

from experiments import small
from experiments.study import Cell, Metric, Relation, Study
from lm import config

# Name -> label, architecture, objective.
CELLS = {
    "masked": ("masked", "encoder", config.Masked()),
    "causal": ("left to right", "decoder", config.Causal()),
}
TASKS = ("questions", "topics")
MARGIN = 0.03  # of accuracy, within which two cells are called equal
GRID = ((1e-3, 100), (3e-3, 100))


def study(seeds: int = 3, budget: float = 3e12) -> Study:
    cells = {}
    tasks = small.tasks("head", *TASKS, seeds=2, grid=GRID)
    for name, (label, architecture, objective) in CELLS.items():
        run = small.run(small.model(architecture, layers=2), objective)
        facts = {"architecture": architecture}
        cell = Cell(f"{label}, a minute", run, facts | {"pretraining": label}, tasks=tasks, floor=f"{name}_none")
        none = replace(
            cell, label=f"{architecture}, not pretrained", facts=facts | {"pretraining": "none"}, share=0.0, floor=None
        )
        cells |= {name: cell, f"{name}_none": none}
    relations = []
    for name, (label, _, _) in CELLS.items():
        for task in TASKS:
            metric, none = f"{task}/accuracy", f"{name}_none"
            primary = name == "masked"
            relations.append(Relation(f"{label} > no pretraining, {task}", metric, name, none, primary=primary))
            if primary:
                about = dict(kind="equivalent", margin=MARGIN, primary=False)
                relations.append(Relation(f"{label} = no pretraining, {task}", metric, name, none, **about))
    for task in TASKS:
        about = dict(source="BERT, arXiv 1810.04805, Table 5, MNLI", published=(83.9, 82.1), primary=False)
        relations.append(Relation(f"masked > left to right, {task}", f"{task}/accuracy", "masked", "causal", **about))
    loss = Metric("heldout/loss", "held-out loss of pretraining", higher=False, comparable=False, unit="nats a token")
    metrics, derive = (*small.task_metrics(*TASKS), loss), small.average(*TASKS)
    title = "A minute of pretraining against none"
    return Study("warning", title, cells, seeds, metrics, tuple(relations), "flops", budget, derive=derive)
