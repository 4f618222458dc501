"""One model and many tasks that are told in words, or not (T5, arXiv 1910.10683; FLAN, arXiv 2109.01652); see README.md."""

from dataclasses import replace
from pathlib import Path

from experiments.study import Cell, Gate, Metric, Relation, Study
from lm import config
from lm.config import resolve

CONFIG = Path(__file__).parents[2] / "configs" / "life" / "instructions.py"
KNOWN, UNSEEN, PHRASED = (f"heldout/{name}/exact" for name in ("known", "unseen", "phrased"))


def study(seeds: int = 3, steps: int = 600, architecture: str = "encoder_decoder") -> Study:
    def run(what: str) -> config.Run:
        given = resolve.load(f"{CONFIG}:{architecture}{what}", {"train.steps": str(steps)})
        return replace(given, checkpoint=config.Checkpoint(every=None, keep=1, keep_best=False))

    cells = {
        "told": Cell("told", run("")),
        "untold": Cell("told nothing", run(".untold")),
        "floor": Cell("told, not trained", run(""), share=0.0),
    }
    relations = (
        Relation(
            "told > told nothing, pairs of operations never trained on", UNSEEN, "told", "untold", source="arXiv 2109.01652"
        ),
        Relation("told > told nothing, new questions", KNOWN, "told", "untold"),
        Relation("told > not trained, pairs of operations never trained on", UNSEEN, "told", "floor", primary=False),
        Relation("told > not trained, a new phrasing", PHRASED, "told", "floor", primary=False),
    )
    metrics = (
        Metric(UNSEEN, "answers to pairs of operations never trained on"),
        Metric(KNOWN, "answers to trained tasks, new questions"),
        Metric(PHRASED, "answers to trained tasks in a new phrasing"),
    )
    gates = (Gate("the trained tasks are learned", KNOWN, at_least=0.8, cells=("told",)),)
    title = "Tasks that are told in words, and a model that is told nothing (arXiv 2109.01652)"
    return Study("instructions", title, cells, seeds, metrics, relations, gates=gates)
