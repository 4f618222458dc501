"""Causal and masked pretraining continued with the other objective, compared with training from scratch (Wang et al. 2022).

Both use the same decoder: with the causal objective it predicts every next token; with span corruption it reads the corrupted
text as a bidirectional prefix (the paper's non-causal decoder). The learning rate is constant after the warm-up, so the first
half of a curve is the curve of half the budget.
"""

from pathlib import Path

import numpy as np

from experiments import small
from experiments.pictures import pyplot
from experiments.study import Cell, Metric, Relation, Results, Study
from lm import config

SPLITS = (0.25, 0.5, 0.75)  # share of the budget before the change of objective
OBJECTIVES = {"causal": config.Causal(), "masked": config.SpanCorruption()}
OTHER = {"causal": "masked", "masked": "causal"}
PUBLISHED = {"causal": 1.6, "masked": 3.3}  # speed-up of adapting to the objective over training from scratch
SCHEDULE = config.Schedule("constant", warmup=20)


def cells() -> dict[str, Cell]:
    def cell(label: str, objective: str, share: float, start: str | None = None, **facts: str) -> Cell:
        run = small.run(small.model("decoder"), OBJECTIVES[objective], learning_rate=1e-3, schedule=SCHEDULE, evaluate_every=20)
        return Cell(label, run, {"objective": objective} | facts, start, share, scores=("suffix", "infill"))

    out = {name: cell(f"{name} from scratch", name, 1.0) for name in OBJECTIVES}
    for name in OBJECTIVES:
        for split in SPLITS:
            first = f"{OTHER[name]}_{split:.2f}"
            out[first] = cell(f"{OTHER[name]}, {split:.0%} of the budget", OTHER[name], split)
            label = f"{OTHER[name]} for {split:.0%}, then {name}"
            out[f"{first}_then_{name}"] = cell(label, name, 1 - split, first, before=OTHER[name], split=f"{split:.0%}")
    return out


def study(seeds: int = 3, budget: float = 5e12) -> Study:
    relations = []
    for name in OBJECTIVES:
        adapted = f"{OTHER[name]}_0.50_then_{name}"
        relations.append(
            Relation(
                f"{name}: adapting from {OTHER[name]} learns faster than from scratch",
                "speed_up",
                adapted,
                name,
                source="Wang et al. 2022, section 5",
                published=(PUBLISHED[name], 1.0),
            )
        )
        relations += [
            Relation(
                f"{name}: {split:.0%} {OTHER[name]} first beats the whole budget from scratch",
                "heldout/loss",
                f"{OTHER[name]}_{split:.2f}_then_{name}",
                name,
                source="arXiv 2507.00994: causal, then masked is best at a fixed budget",
                primary=False,
            )
            for split in SPLITS
        ]
    metrics = (
        Metric(
            "heldout/loss", "held-out loss of its own objective", higher=False, comparable=False, unit="nats a predicted token"
        ),
        Metric("speed_up", "FLOPs of scratch / FLOPs of adapting, at equal loss"),
        Metric("suffix/bits_per_byte", "suffix, bits per byte", higher=False),
        Metric("infill/bits_per_byte", "infill, bits per byte", higher=False),
    )
    return Study(
        "wang_adapt",
        "Adapting between causal and masked (Wang et al. 2022)",
        cells(),
        seeds,
        metrics,
        tuple(relations),
        "flops",
        budget,
        derive=speed_ups,
        analyse=plot,
    )


def cost_of(curve: list[dict[str, float]], loss: float) -> float | None:
    """FLOPs at which a curve first reaches this loss, interpolated linearly; None if it never does."""
    before: dict[str, float] | None = None
    for point in curve:
        if point["loss"] <= loss:
            if before is None:
                return point["flops"]
            share = (before["loss"] - loss) / (before["loss"] - point["loss"])
            return before["flops"] + share * (point["flops"] - before["flops"])
        before = point
    return None


def speed_ups(results: Results) -> Results:
    """Adds the speed-up for each seed: FLOPs from scratch / FLOPs after the change, at the worse of the two final losses.

    FLOPs before the change do not count, as in the paper, where the first model already exists.
    """
    for name in OBJECTIVES:
        for seed, scratch in results.get(name, {}).items():
            scratch["metrics"]["speed_up"] = 1.0
            for split in SPLITS:
                adapted = results.get(f"{OTHER[name]}_{split:.2f}_then_{name}", {}).get(seed)
                if adapted is None or not (scratch["curve"] and adapted["curve"]):  # a diverged run has none
                    continue
                loss = max(scratch["curve"][-1]["loss"], adapted["curve"][-1]["loss"])
                costs = cost_of(scratch["curve"], loss), cost_of(adapted["curve"], loss)
                if None not in costs:
                    adapted["metrics"]["speed_up"] = costs[0] / costs[1]
    return results


def plot(results: Results, folder: Path) -> str:
    """Draws held-out loss over the FLOPs under each objective, from scratch and after each split. Returns the Markdown
    section."""
    figure, axes = pyplot().subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for axis, name in zip(axes, OBJECTIVES, strict=True):
        names = {name: "from scratch"} | {
            f"{OTHER[name]}_{split:.2f}_then_{name}": f"after {split:.0%} {OTHER[name]}" for split in SPLITS
        }
        for i, (cell, label) in enumerate(names.items()):
            curves = [r["curve"] for r in results.get(cell, {}).values()]
            if not curves:
                continue
            length = min(map(len, curves))
            x = [point["flops"] for point in curves[0][:length]]
            y = np.array([[point["loss"] for point in curve[:length]] for curve in curves])
            axis.plot(x, y.mean(0), color=f"C{i}", label=label)
            axis.fill_between(x, y.min(0), y.max(0), color=f"C{i}", alpha=0.2, lw=0)
        axis.set(xlabel=f"model FLOPs under the {name} objective", ylabel="held-out loss, nats a predicted token", title=name)
        axis.grid(alpha=0.3)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(frameon=False)
    figure.savefig(folder / "adapting.png", dpi=120)
    pyplot().close(figure)
    return "## Curves\n\nMean over seeds; the band is their range.\n\n![held-out loss while adapting](adapting.png)\n"
