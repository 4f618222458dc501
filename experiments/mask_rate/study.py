"""Masking rates, and whether larger models prefer higher ones (arXiv 2202.08005)."""

from experiments import small
from experiments.study import Cell, Metric, Relation, Results, Study
from lm import config

RATES = (0.15, 0.25, 0.4, 0.6)
SIZES = {"small": (64, 3), "large": (160, 4)}  # width, layers
TASKS = ("questions", "topics")
INFILL = "infill/bits_per_byte"
GAIN = "gain of 40 % over 15 %"


def name_of(size: str, rate: float) -> str:
    return f"{size}_{rate:.2f}"


def study(seeds: int = 3, budget: float = 1e6) -> Study:
    """Matched by tokens seen, as in the paper, whose models train for the same number of steps at every rate."""
    cells = {}
    for size, (width, layers) in SIZES.items():
        for rate in RATES:
            run = small.run(small.model("encoder", width=width, layers=layers), config.Masked(rate=rate))
            facts = {"size": size, "rate": f"{rate:.0%}"}
            how = dict(scores=("infill", "pll"), tasks=small.tasks("head", *TASKS))
            cells[name_of(size, rate)] = Cell(f"{size}, {rate:.0%}", run, facts, **how)
    source = "arXiv 2202.08005"
    relations = (
        Relation("the gain of 40 % over 15 % is greater in the large model", GAIN, "large, gain", "small, gain", source=source),
        Relation("large: 40 % > 15 %", small.AVERAGE, "large_0.40", "large_0.15", source=source),
        Relation("small: 15 % > 40 %", small.AVERAGE, "small_0.15", "small_0.40", source=source, primary=False),
        Relation("large: 40 % > 15 %, infill", INFILL, "large_0.40", "large_0.15", source=source, primary=False),
        Relation("small: 15 % > 40 %, infill", INFILL, "small_0.15", "small_0.40", source=source, primary=False),
    )
    metrics = (
        *small.task_metrics(*TASKS),
        Metric(INFILL, "infill, bits per byte", higher=False),
        Metric("pll/bits_per_byte", "pseudo-log-likelihood, bits per byte", higher=False, flag="not normalised"),
        Metric(GAIN, GAIN),
    )
    title = "Masking rate and model size (arXiv 2202.08005)"
    derived = {f"{size}, gain": f"{size}, 40 % less 15 %" for size in SIZES}
    return Study("mask_rate", title, cells, seeds, metrics, relations, "seen", budget, derive=gains, derived=derived)


def gains(results: Results) -> Results:
    """Adds, for each size and seed, the average accuracy at 40 % minus that at 15 %; the paper claims that it grows with
    size."""
    results = small.average(*TASKS)(results)
    for size in SIZES:
        more, less = (results.get(name_of(size, rate), {}) for rate in (0.4, 0.15))
        for seed in more.keys() & less.keys():
            pair = [r[seed]["metrics"].get(small.AVERAGE) for r in (more, less)]
            if None not in pair:
                gain = {"metrics": {GAIN: pair[0] - pair[1]}, "flags": {}, "ledger": {}, "curve": []}
                results.setdefault(f"{size}, gain", {})[seed] = gain
    return results
