"""How much to mask, and whether larger models want more of it (arXiv 2202.08005)."""

from experiments import small
from experiments.study import Cell, Metric, Relation, Study, Task, mean_of
from lm import config

RATES = (0.15, 0.25, 0.4, 0.6)
SIZES = {"small": (64, 3), "large": (160, 4)}  # width, layers
TASKS = tuple(
    Task(name, "head", config.Finetune(steps=120, batch_size=16, length=length, rows=500))
    for name, length in (("questions", 32), ("sentiment", 48))
)
PARTS = ("questions/accuracy", "sentiment/accuracy")


def study(seeds: int = 3, budget: float = 1e6, match: str = "seen") -> Study:
    """At equal tokens seen, as in the paper: its models train for the same steps at every rate."""
    cells = {}
    for size, (width, layers) in SIZES.items():
        for rate in RATES:
            run = small.run(small.model("encoder", width=width, layers=layers), config.Masked(rate=rate))
            facts = {"size": size, "rate": f"{rate:.0%}"}
            cells[f"{size}_{rate:.2f}"] = Cell(f"{size}, {rate:.0%}", run, facts, scores=("infill", "pll"), tasks=TASKS)
    average, infill, source = "downstream/average", "infill/bits_per_byte", "arXiv 2202.08005"
    relations = (
        Relation("large: 40 % > 15 %", average, "large_0.40", "large_0.15", source=source),
        Relation("small: 15 % > 40 %", average, "small_0.15", "small_0.40", source=source),
        Relation("large: 40 % > 15 %, infill", infill, "large_0.40", "large_0.15", source=source, primary=False),
        Relation("small: 15 % > 40 %, infill", infill, "small_0.15", "small_0.40", source=source, primary=False),
    )
    metrics = (
        Metric(average, "average of the tasks"),
        *(Metric(part, part.replace("/", ", ")) for part in PARTS),
        Metric(infill, "infill, bits per byte", higher=False),
        Metric("pll/bits_per_byte", "pseudo-log-likelihood, bits per byte", higher=False, flag="not normalised"),
    )
    title = "Masking rate and model size (arXiv 2202.08005)"
    return Study("mask_rate", title, cells, seeds, metrics, relations, match, budget, derive=mean_of(PARTS))
