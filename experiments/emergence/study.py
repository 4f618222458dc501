"""Whether an ability appears suddenly by its metric: exact match of eight signs against nats, of the same answers."""

import itertools
from pathlib import Path

import numpy as np

from experiments import small
from experiments.languages import cipher
from experiments.pictures import COLOURS, pyplot
from experiments.study import Cell, Derived, Gate, Metric, Relation, Results, Study, derived_result
from lm import config

LENGTH = 8
STEPS = (35, 50, 71, 100, 141, 200, 283)  # the scale, in factors of 1.4: each point is a run with its whole schedule
SHARPNESS = "sharpness"
# What is measured of the same answers, and how its value counts as more: name -> (metric, label, sign).
MEASURES = {
    "exact": ("message/exact", "exact match of all signs", 1),
    "signs": ("message/accuracy", "share of the signs", 1),
    "nats": ("message/nats", "nats of an answer", -1),
}


def study(seeds: int = 3) -> Study:
    language = cipher.language(length=LENGTH)
    cells = {}
    for steps in STEPS:
        model = small.model("decoder", width=64, layers=2, vocab_size=language.vocab_size)
        data = language.data(decoder_length=small.LENGTH)
        run = small.run(model, config.Causal(), steps=steps, batch_size=16, data=data)
        cells[_cell(steps)] = Cell(f"{steps} steps", run, {"steps": str(steps)}, items=dict(language.items))
    relations = tuple(
        Relation(
            f"exact match rises more suddenly than {label}",
            SHARPNESS,
            "exact",
            name,
            source="arXiv 2304.15004",
        )
        for name, (_, label, _) in MEASURES.items()
        if name != "exact"
    )
    metrics = (
        Metric(
            SHARPNESS, "share of the rise that falls into one factor of 1.4 of the steps", lines={"even": 1 / (len(STEPS) - 1)}
        ),
        Metric("message/exact", "exact match of all signs", lines={"chance": cipher.WORDS**-LENGTH}),
        Metric("message/accuracy", "share of the signs", lines={"chance": 1 / cipher.WORDS}),
        Metric("message/nats", "answer", higher=False, unit="nats"),
    )
    ends = _cell(STEPS[0]), _cell(STEPS[-1])
    gates = (
        Gate("the longest run knows the signs", "message/exact", at_least=0.9, cells=ends[1:]),
        Gate("the shortest run does not", "message/exact", at_most=0.1, cells=ends[:1]),
    )
    return Study(
        "emergence",
        "Exact match jumps where nats fall (arXiv 2304.15004, 2206.07682)",
        cells,
        seeds,
        metrics,
        relations,
        derive=sharpness,
        derived={name: Derived(label, ends) for name, (_, label, _) in MEASURES.items()},
        gates=gates,
        analyse=plot,
    )


def _cell(steps: int) -> str:
    return f"steps_{steps}"


def sharpness(results: Results) -> Results:
    """Adds, for each measure and each seed that has all cells, the largest change between neighbours on the scale as a share
    of the change from its first point to its last. 1/6 is an even rise, 1 is a jump; above 1, it also fell."""
    every = [results.get(_cell(steps), {}) for steps in STEPS]
    for seed in set.intersection(*(set(found) for found in every)):
        points = [found[seed]["metrics"] for found in every]
        if not all(metric in point for point in points for metric, _, _ in MEASURES.values()):  # one diverged
            continue
        for name, (metric, _, sign) in MEASURES.items():
            rises = [sign * (b[metric] - a[metric]) for a, b in itertools.pairwise(points)]
            metrics = {SHARPNESS: max(rises) / sum(rises)} if sum(rises) > 0 else {}
            results.setdefault(name, {})[seed] = derived_result(metrics)
    return results


def plot(results: Results, folder: Path) -> str:
    """Draws each measure's share of its rise over the steps, a line a seed. Returns the Markdown section."""
    figure, axis = pyplot().subplots(figsize=(5.5, 3.6), layout="constrained")
    every = [results.get(_cell(steps), {}) for steps in STEPS]
    for colour, style, (metric, label, _) in zip(COLOURS, "o^s", MEASURES.values(), strict=False):
        for i, seed in enumerate(sorted(set.intersection(*map(set, every)))):
            values = np.array([found[seed]["metrics"].get(metric, np.nan) for found in every])
            rise = values[-1] - values[0] or np.nan  # none: nothing is drawn
            axis.plot(
                STEPS,
                (values - values[0]) / rise,
                f"{style}-",
                color=colour,
                lw=0.8,
                ms=4,
                alpha=0.7,
                label=None if i else label,
            )
    axis.set(xscale="log", xlabel="steps", ylabel="share of the change from first to last")
    axis.set_xticks(STEPS, list(map(str, STEPS)))
    axis.set_xticks([], minor=True)
    axis.grid(alpha=0.3)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(frameon=False)
    figure.savefig(folder / "rise.png", dpi=130)
    pyplot().close(figure)
    return "## The same answers by three measures\n\nA line is a seed.\n\n![rise of each measure](rise.png)\n"
