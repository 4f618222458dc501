"""The best learning rate at widths 64 to 512, in the standard parametrization and under muP (arXiv 2203.03466)."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np

from experiments import small
from experiments.pictures import COLOURS, GREY, STYLES, pyplot
from experiments.study import Cell, Derived, Gate, Metric, Relation, Results, Study, derived_result
from lm import config

VOCAB = 1024
WIDTHS = (64, 128, 256, 512)
BASE, WIDEST = WIDTHS[0], WIDTHS[-1]
KINDS = {"standard": "standard", "mup": "muP"}
# Powers of 2. The base model is the same in both kinds. Wider standard models have their best rate further down.
RATES = {"base": range(-9, -4), "standard": range(-11, -6), "mup": range(-9, -4)}
UNIGRAM = 5.817  # nats a held-out token, by the frequencies of 384,000 training tokens
LOSS, MOVED, FAR, LOST, TAKEN, BEST, BASE_LOSS = "heldout/loss", "moved", "far", "lost", "taken", "best", "base"


def kind_at(kind: str, width: int) -> str:
    return kind if width > BASE else "base"


def key(kind: str, width: int, octave: int) -> str:
    return f"{kind_at(kind, width)}_{width}_{octave}"


def model(width: int) -> config.Model:
    """Two layers with heads of 32: heads are added as the width grows."""
    return small.model("decoder", width=width, layers=2, vocab_size=VOCAB)


def study(seeds: int = 2, steps: int = 120) -> Study:
    data = config.Data(tokenizer=config.Tokenizer(vocab_size=VOCAB), decoder_length=64)
    cells = {}
    for width, (kind, label) in ((width, item) for width in WIDTHS for item in KINDS.items()):
        for octave in RATES[kind_at(kind, width)]:
            rate = 2.0**octave
            run = small.run(model(width), config.Causal(), steps=steps, batch_size=8, learning_rate=rate, data=data)
            if kind == "mup" and width > BASE:
                run = replace(run, optimizer=replace(run.optimizer, base_width=BASE))
            facts = {"width": str(width), "rate": f"2^{octave}"}
            name = label if width > BASE else "base"
            cells[key(kind, width, octave)] = Cell(f"{name}, {width} wide, rate 2^{octave}", run, facts)
    lines = {"chance": math.log(VOCAB), "single tokens": UNIGRAM}
    metrics = (
        Metric(LOSS, "held-out loss", higher=False, lines=lines, unit="nats a token"),
        Metric(MOVED, f"octaves that the best rate moves from width {BASE} to {WIDEST}", higher=None),
        Metric(FAR, "octaves that it moves, up or down", higher=False),
        Metric(LOST, f"loss at width {WIDEST}, with the base's best rate less with its own", higher=False, unit="nats a token"),
        Metric(TAKEN, f"loss at width {WIDEST} with the base's best rate", higher=False, unit="nats a token"),
        Metric(BEST, f"loss at width {WIDEST} with its own best rate", higher=False, unit="nats a token"),
        Metric(BASE_LOSS, "loss of the base model with its best rate", higher=False, unit="nats a token"),
    )
    source = "arXiv 2203.03466, figure 1"
    relations = (
        Relation("muP: the best rate stays", MOVED, "mup", "constant", kind="equivalent", margin=0.5, source=source),
        Relation("standard: the best rate falls", MOVED, "constant", "standard", source=source),
        Relation("with the base's rate less is lost under muP", LOST, "mup", "standard", source=source),
        Relation("the best rate moves less far under muP", FAR, "mup", "standard", primary=False, source=source),
        Relation("with the base's rate muP > standard", TAKEN, "mup", "standard", primary=False, source=source),
        Relation("with its own best rate each, muP > standard", BEST, "mup", "standard", primary=False, source=source),
    )
    derived = {kind: Derived(label) for kind, label in KINDS.items()} | {"constant": Derived("a constant rate")}
    gate = Gate("the base model knows more than the frequencies of tokens", BASE_LOSS, at_most=UNIGRAM - 0.25)
    title = "The best learning rate by width, with muP and without (arXiv 2203.03466)"
    how = dict(derive=best_rates, derived=derived, analyse=analyse, gates=(gate,))
    return Study("width", title, cells, seeds, metrics, relations, **how)


def losses(results: Results, kind: str, width: int, seed: int) -> dict[int, float]:
    """Octave of the rate -> held-out loss, of the runs that there are and that did not diverge."""
    found = {o: results.get(key(kind, width, o), {}).get(seed) for o in RATES[kind_at(kind, width)]}
    return {o: r["metrics"][LOSS] for o, r in found.items() if r and LOSS in r["metrics"]}


def best_octave(by_octave: dict[int, float]) -> float | None:
    """log2 of the best rate: where the parabola through the lowest loss and its neighbours has its minimum. None if the lowest
    is the first or the last of the rates, or has no neighbour."""
    if not by_octave:
        return None
    lowest = min(by_octave, key=by_octave.__getitem__)
    if not {lowest - 1, lowest + 1} <= by_octave.keys():
        return None
    left, middle, right = (by_octave[lowest + step] for step in (-1, 0, 1))
    curvature = left - 2 * middle + right
    return lowest + (left - right) / (2 * curvature) if curvature else float(lowest)


def best_rates(results: Results) -> Results:
    """Adds cells of both parametrizations, for the seeds that have all runs of the smallest and of the largest width, and one
    whose best rate does not move."""
    for kind in KINDS:
        for seed in sorted({seed for by_seed in results.values() for seed in by_seed}):
            narrow, wide = (losses(results, kind, width, seed) for width in (BASE, WIDEST))
            ends = best_octave(narrow), best_octave(wide)
            if len(wide) < len(RATES[kind]) or len(narrow) < len(RATES["base"]):
                continue
            chosen = min(narrow, key=narrow.__getitem__)
            metrics = {BEST: min(wide.values()), BASE_LOSS: narrow[chosen]}
            if chosen in wide:
                metrics |= {TAKEN: wide[chosen], LOST: wide[chosen] - min(wide.values())}
            if None not in ends:
                metrics |= {MOVED: ends[1] - ends[0], FAR: abs(ends[1] - ends[0])}
            results.setdefault(kind, {})[seed] = derived_result(metrics)
            results.setdefault("constant", {})[seed] = derived_result({MOVED: 0.0, BASE_LOSS: narrow[chosen]})
    return results


def analyse(results: Results, folder: Path) -> str:
    """Draws the loss against the rate, and returns Markdown with the best rate of each width."""
    seeds = sorted({seed for name in results for seed in results[name]})
    lines = ["## Best rates", "", f"| width | {' | '.join(KINDS.values())} |", "|---:|---|---|"]
    for width in WIDTHS:
        row = []
        for kind in KINDS:
            octaves = [best_octave(losses(results, kind, width, seed)) for seed in seeds]
            row.append(", ".join(f"2^{o:.1f}" for o in octaves if o is not None) or "not inside of the rates")
        lines.append(f"| {width} | {' | '.join(row)} |")
    plot(results, seeds, folder / "rates.png")
    return "\n".join([*lines, "", "One figure a seed, from the parabola through the lowest loss and its neighbours.", ""]) + (
        "\n![loss against the rate](rates.png)\n"
    )


def plot(results: Results, seeds: list[int], path: Path) -> None:
    """A panel for each parametrization: a line for each width through the means over seeds, a ring for each run."""
    figure, axes = pyplot().subplots(1, len(KINDS), figsize=(9, 3.8), sharex=True, sharey=True, layout="constrained")
    for axis, (kind, label) in zip(axes, KINDS.items(), strict=True):
        for i, width in enumerate(WIDTHS):
            found = [losses(results, kind, width, seed) for seed in seeds]
            octaves = [o for o in RATES[kind_at(kind, width)] if any(o in one for one in found)]
            means = [np.mean([one[o] for one in found if o in one]) for o in octaves]
            colour, style = COLOURS[i % len(COLOURS)], STYLES[i % len(STYLES)]
            axis.plot([2.0**o for o in octaves], means, style, color=colour, label=f"width {width}")
            points = [(2.0**o, loss) for one in found for o, loss in one.items()]
            if points:
                axis.plot(*zip(*points, strict=True), "o", mfc="none", color=colour, ms=4)
        axis.axhline(UNIGRAM, color=GREY, lw=1, ls=":")
        below = dict(xycoords=axis.get_yaxis_transform(), xytext=(-3, -3), textcoords="offset points", ha="right", va="top")
        axis.annotate("frequencies of tokens", (1, UNIGRAM), color=GREY, size=8, **below)
        axis.set(xlabel="learning rate", title=label)
        axis.set_xscale("log", base=2)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("held-out loss, nats a token")
    axes[1].legend(fontsize=8)
    figure.savefig(path, dpi=130)
    pyplot().close(figure)
