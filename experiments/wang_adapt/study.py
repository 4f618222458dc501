"""Causal and masked pretraining continued with the other objective, compared with training from scratch (Wang et al. 2022).

Both use the same decoder: with the causal objective it predicts every next token; with span corruption it reads the corrupted
text as a bidirectional prefix (the paper's non-causal decoder). The learning rate is constant after the warm-up, so the first
half of a curve is the curve of half the budget.
"""

from pathlib import Path

import numpy as np

from experiments import small
from experiments.languages import villages
from experiments.pictures import pyplot
from experiments.study import Cell, Gate, Metric, Relation, Results, Study
from lm import config

OBJECTIVES = {"causal": config.Causal(), "masked": config.SpanCorruption(roll=True)}
OTHER = {"causal": "masked", "masked": "causal"}
PUBLISHED = {"causal": 1.6, "masked": 3.3}  # speed-up of adapting to the objective over training from scratch
SCHEDULE = config.Schedule("constant", warmup=20)
LENGTH = 64  # tokens in a row, about two paragraphs
CAUSAL = villages.UNIGRAM - 1  # losses that a model of word frequencies does not reach
MASKED = 2.0  # of spans: about two words in three at UNIGRAM, and sentinels and ends for nothing, would be 2.8
LOSS, SPEED_UP = "heldout/loss", "speed_up"


def cells() -> dict[str, Cell]:
    language = villages.language()
    model = small.model("decoder", layers=2, vocab_size=language.vocab_size)
    data = language.data(decoder_length=LENGTH)

    def cell(label: str, name: str, share: float, start: str | None = None) -> Cell:
        settings = dict(learning_rate=2e-3, schedule=SCHEDULE, evaluate_every=20, evaluate_rows=128, data=data)
        facts = {"objective": name, "before": OTHER[name] if start else "nothing", "share of the budget": f"{share:g}"}
        return Cell(label, small.run(model, OBJECTIVES[name], **settings), facts, start, share)

    out = {}
    for name in OBJECTIVES:
        out[name] = cell(f"{name} from scratch", name, 1.0)
        out[f"{name}_half"] = cell(f"{name} from scratch, half the budget", name, 0.5)
    for name, other in OTHER.items():
        out[f"{other}_then_{name}"] = cell(f"{other} for half the budget, then {name}", name, 0.5, f"{other}_half")
    return out


def study(seeds: int = 3, budget: float = 1e12) -> Study:
    relations = []
    for name, other in OTHER.items():
        adapted = f"{other}_then_{name}"
        source = f"Wang et al. 2022, section 5: {PUBLISHED[name]} times as fast"
        relations.append(Relation(f"{name}: after {other} > from scratch", LOSS, adapted, f"{name}_half", source=source))
    for name, other in OTHER.items():
        about = dict(source="arXiv 2507.00994: causal, then masked is best at a fixed budget", primary=False)
        sentence = f"{name}: half the budget on {other} first > all of it from scratch"
        relations.append(Relation(sentence, LOSS, f"{other}_then_{name}", name, **about))
    metrics = (
        Metric(LOSS, "held-out loss of its own objective", higher=False, comparable=False, unit="nats a predicted token"),
        Metric(SPEED_UP, "FLOPs from scratch / FLOPs after the other objective, at equal loss"),
    )
    gates = (
        Gate("the causal model knows more than the frequencies of words", LOSS, at_most=CAUSAL, cells=named("causal")),
        Gate("the masked model knows more than the frequencies of words", LOSS, at_most=MASKED, cells=named("masked")),
    )
    title = "Adapting between causal and masked (Wang et al. 2022)"
    how = dict(derive=speed_ups, analyse=plot, gates=gates)
    return Study("wang_adapt", title, cells(), seeds, metrics, tuple(relations), "flops", budget, **how)


def named(objective: str) -> tuple[str, ...]:
    """The cells that end with this objective."""
    return objective, f"{objective}_half", f"{OTHER[objective]}_then_{objective}"


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
    """Adds, to cells that change their objective, the FLOPs that the run from scratch of the same seed took to the final loss,
    over their own after the change; nothing if that run never got there.

    FLOPs before the change do not count, as in the paper, where the first model already exists.
    """
    for name, other in OTHER.items():
        for seed, adapted in results.get(f"{other}_then_{name}", {}).items():
            scratch = results.get(name, {}).get(seed, {"curve": []})["curve"]
            if scratch and adapted["curve"]:  # a diverged run has none
                end = adapted["curve"][-1]
                if cost := cost_of(scratch, end["loss"]):
                    adapted["metrics"][SPEED_UP] = cost / end["flops"]
    return results


def plot(results: Results, folder: Path) -> str:
    """Draws held-out loss over the FLOPs under each objective, from scratch and after the other. Returns the Markdown
    section."""
    figure, axes = pyplot().subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for axis, (name, other) in zip(axes, OTHER.items(), strict=True):
        for i, (cell, label) in enumerate({name: "from scratch", f"{other}_then_{name}": f"after {other}"}.items()):
            curves = [r["curve"] for r in results.get(cell, {}).values() if r["curve"]]
            if not curves:
                continue
            length = min(map(len, curves))
            x = [point["flops"] / 1e12 for point in curves[0][:length]]
            y = np.array([[point["loss"] for point in curve[:length]] for curve in curves])
            axis.plot(x, y.mean(0), color=f"C{i}", label=label)
            axis.fill_between(x, y.min(0), y.max(0), color=f"C{i}", alpha=0.2, lw=0)
        axis.set(xlabel=f"$10^{{12}}$ model FLOPs under the {name} objective", title=name)
        axis.set(ylabel="held-out loss, nats a predicted token")
        axis.grid(alpha=0.3)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(frameon=False)
    figure.savefig(folder / "adapting.png", dpi=120)
    pyplot().close(figure)
    return "## Curves\n\nMean over seeds; the band is their range.\n\n![held-out loss while adapting](adapting.png)\n"
