"""The tables of a report: results, compute, gates and floors, relations, power and variances."""

import math
from statistics import fmean
from typing import Any

import numpy as np

from experiments import judge, stats, variance
from experiments.judge import Judged, values
from experiments.pages import Block, Paragraph, Table, Text
from experiments.study import Metric, Results, Study

LEDGER = {
    "parameters": "parameters",
    "parameters_without_embeddings": "without embeddings",
    "model_flops": "model FLOPs",
    "tokens_seen": "tokens seen",
    "tokens_with_loss": "tokens with loss",
    "raw_bytes": "raw bytes",
    "finetune_flops": "FLOPs of fine-tuning",
    "device_seconds": "device-seconds",
    "core_seconds": "core-seconds in all",
}
ARROWS = {True: " ↑", False: " ↓", None: ""}
MATCHED = {"flops": "model_flops", "seen": "tokens_seen", "loss_tokens": "tokens_with_loss", "params": "parameters"}
TOLERANCE = 0.01  # relative deviation of the matched figure that is accepted


def _decimals(found: list[float]) -> int:
    """The number of decimals that gives the largest value four digits: 83.28, 0.8328, 2.134."""
    largest = max((abs(v) for v in found), default=0.0)
    return 3 if largest == 0 else max(0, min(6, 3 - math.floor(math.log10(largest))))


class _Notes:
    """Numbers footnotes in order of appearance; equal texts share a number."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def marks(self, *texts: str) -> tuple[int, ...]:
        for text in texts:
            if text and text not in self.texts:
                self.texts.append(text)
        return tuple(sorted({self.texts.index(text) + 1 for text in texts if text}))


def _flags(runs: dict[int, dict[str, Any]]) -> dict[str, set[str]]:
    """Flag -> texts over all seeds: {"sentiment/accuracy": {"10 spans left out"}}. The text of a bare True is the flag's
    name."""
    found: dict[str, set[str]] = {}
    for run in runs.values():
        for key, value in run.get("flags", {}).items():
            if value:
                found.setdefault(key, set()).add(
                    key if value is True else value if isinstance(value, str) else f"{key}: {value}"
                )
    return found


def results_table(study: Study, results: Results) -> Table:
    facts = list(dict.fromkeys(fact for cell in study.cells.values() for fact in cell.facts))
    notes, bold = _Notes(), {m.name: _best(study, results, m) for m in study.metrics}
    header = [Text("cell"), *map(Text, facts), Text("seeds")]
    header += [Text(m.label + ARROWS[m.higher], marks=notes.marks(m.flag)) for m in study.metrics]
    decimals = {
        m.name: _decimals([v for c in study.labels for v in values(results, c, m.name).values()]) for m in study.metrics
    }
    rows = []
    for name, label in study.labels.items():
        described = study.cells[name].facts if name in study.cells else {}
        flags = _flags(results.get(name, {}))
        of_cell = sorted(t for key, texts in flags.items() if key not in decimals for t in texts)
        row = [Text(label, marks=notes.marks(*of_cell)), *(Text(described.get(f, "")) for f in facts)]
        row.append(Text(f"{len(results.get(name, {}))}/{study.seeds}"))
        for m in study.metrics:
            v = list(values(results, name, m.name).values())
            text = _mean(v, decimals[m.name]) if v else "–"
            row.append(Text(text, bold[m.name] == name, notes.marks(*sorted(flags.get(m.name, ())))))
        rows.append(row)
    about = "Mean over seeds ± half of the 95 % interval (Student's t)."
    if not study.withdrawn:
        about += " Bold: better than the second, p < 0.05, uncorrected."
    align = "l" * (1 + len(facts)) + "r" * (1 + len(study.metrics))
    return Table("results", f"{study.title}: results", align, header, rows, notes.texts, about)


def _mean(found: list[float], decimals: int) -> str:
    interval = stats.t_interval(found)
    if interval.high is None:
        return f"{interval.mean:.{decimals}f}"
    return f"{interval.mean:.{decimals}f} ± {interval.high - interval.mean:.{decimals}f}"


def _best(study: Study, results: Results, metric: Metric) -> str | None:
    """The best cell if the second best is significantly worse, among cells without a flag on the metric; otherwise None."""
    plain = [c for c in study.labels if not any(metric.name in r["flags"] for r in results.get(c, {}).values())]
    means = {c: fmean(v.values()) for c in plain if (v := values(results, c, metric.name))}
    order = sorted(means, key=lambda c: means[c], reverse=bool(metric.higher))
    if study.withdrawn or not metric.comparable or metric.higher is None or len(order) < 2:
        return None
    test = judge.contrast(study, results, metric, order[0], order[1])
    p = None if test is None else stats.different(test)
    return order[0] if p is not None and p < stats.ALPHA else None


def ledger(study: Study, results: Results) -> list[Block]:
    runs = {c: list(results[c].values()) for c in study.cells if results.get(c)}
    has = {key for found in runs.values() for r in found for key in r["ledger"]}
    keys = [k for k in LEDGER if k in has] + sorted(has - set(LEDGER))
    held = MATCHED[study.match] if study.match else None
    header = [Text("cell"), *(Text(LEDGER.get(k, k) + (" (held equal)" if k == held else ""), bold=k == held) for k in keys)]
    of = lambda found, key: [float(r["ledger"][key]) for r in found if key in r["ledger"]]
    mean = lambda v: fmean(v) if v else math.nan
    rows = [[Text(study.cells[c].label), *(Text(_amount(mean(of(found, k)))) for k in keys)] for c, found in runs.items()]
    everything = [r for c, found in runs.items() for r in found if study.cells[c].share > 0]  # a floor trains nothing
    of_all = {k: mean(of(everything, k)) for k in keys}
    # The matched figure should be the cell's share of the budget, others the mean of all runs.
    share = lambda c, k: study.budget * study.cells[c].share if k == held and study.budget > 0 else of_all[k]
    trained = [c for c in runs if study.cells[c].share > 0]
    off = lambda k: (abs(v - share(c, k)) / share(c, k) if share(c, k) else 0.0 for c in trained for v in of(runs[c], k))
    deviations = {k: max(off(k), default=0.0) for k in keys}
    rows.append([Text("greatest deviation"), *(Text(f"{100 * deviations[k]:.2f} %", bold=k == held) for k in keys)])
    blocks: list[Block] = []
    if held and held not in deviations and runs:
        blocks.append(Paragraph(f"Warning: {LEDGER[held]} should be held equal, but no run recorded them.", bold=True))
    if held and deviations.get(held, 0.0) > TOLERANCE:
        blocks.append(
            Paragraph(
                f"Warning: {LEDGER[held]} should be held equal, but a run is off by {100 * deviations[held]:.1f} % "
                f"(tolerated: {100 * TOLERANCE:.0f} %).",
                bold=True,
            )
        )
    target = f"the budget of {_amount(study.budget)}" if held and study.budget > 0 else "their mean"
    about = "Greatest deviation: of any trained run from their mean"
    about += f"; of the figure held equal, from {target}." if held else "."
    caption = "What the runs cost, mean over seeds"
    return [*blocks, Table("ledger", caption, "l" + "r" * len(keys), header, rows, about=about, ruled_last=True)]


def _amount(value: float) -> str:
    if math.isnan(value):
        return "–"
    return f"{value:,.0f}" if abs(value) < 1e7 else f"{value:.4g}".replace("e+", "e")


def _p(p: float | None) -> str:
    return "–" if p is None else "<0.0001" if p < 1e-4 else f"{p:.4f}"


def _range(interval: stats.Interval | None, decimals: int) -> str:
    if interval is None:
        return "–"
    ends = "" if interval.low is None else f" [{interval.low:+.{decimals}f}, {interval.high:+.{decimals}f}]"
    return f"{interval.mean:+.{decimals}f}{ends}"


def _width(judged: Judged) -> int:
    """Decimals that distinguish the ends of an interval."""
    i = judged.interval
    return 3 if i is None else _decimals([v for v in (i.mean, i.low, i.high) if v is not None])


def gain(judged: Judged) -> str:
    """The gain with its interval, such as "+0.012 [-0.003, +0.027]"."""
    return _range(judged.interval, _width(judged))


def _needed(judged: Judged) -> str:
    """Seeds needed for a decision."""
    test = judged.test
    if test is None or judged.p is None or test.error == 0:
        return "–"
    if judged.seeds is not None:
        return str(judged.seeds)
    return "more items" if 2 * test.item_error**2 > test.error**2 else f">{stats.CAP}"


def relations_table(judged: list[Judged]) -> Table:
    notes = _Notes()
    header = ["relation", "metric", "published", "gain here, 95 % interval", "seeds", "p", "p (Holm)", "seeds needed in all"]
    rows = []
    for j in judged:
        r = j.relation
        name = r.name + (f" (within ±{r.margin:g})" if r.kind == "equivalent" else "")
        published = "–" if r.published is None else f"{r.published[0]:g} vs {r.published[1]:g}"  # in the paper's unit
        test = ["0", "–", "–", "–"]
        if j.test is not None:
            test = [str(j.test.n), _p(j.p), _p(j.p_holm), _needed(j)]
        row = [published, gain(j), *test]
        decided = j.verdict in ("reproduced", "reversed")
        named = Text(name, marks=notes.marks(r.source)), Text(j.metric.label, marks=notes.marks(j.metric.flag, *j.flags))
        rows.append([*named, *map(Text, row), Text(j.words, decided)])
    about = (
        "The gain is the first cell's advantage over the second, positive where the first is better; its interval is not "
        "corrected for the number of relations. A t test; for an "
        "equivalence, two one-sided tests against the margin or, if the gain is outside, the test that it is outside. "
        "Holm's correction over the primary and the planted relations. Seeds needed: for 80 % power at the gain observed, at "
        "0.05 divided by the number of these relations (exploratory: at 0.05); a rough figure with few seeds."
    )
    align = "ll" + "r" * 6 + "l"
    return Table("relations", "Relations", align, [*map(Text, header), Text("verdict")], rows, notes.texts, about)


def checks_table(judged: list[Judged]) -> Table:
    family = max(1, sum(judge.in_family(j.relation) for j in judged))
    rows = []
    for j in judged:
        test, shown = j.test, ["–"] * 6
        if test is not None and test.df > 0:
            if test.error > 0:
                alpha = stats.ALPHA / (family if judge.in_family(j.relation) else 1)
                decimals = _width(j)
                shown[0] = f"{stats.mde(test.error, test.df, alpha=alpha):.{decimals}f}"
                shown[1] = "–" if j.power is None else f"{100 * j.power:.0f} %"
                shown[2] = f"{100 * (test.item_error / test.error) ** 2:.0f} %" if test.item_error else "–"
            shown[3:] = [test.how, _p(None if math.isnan(test.exact) else test.exact), _p(test.least)]
        rows.append([Text(t) for t in (j.relation.name, *shown)])
    about = (
        "Detectable gain: the true gain that this test finds with 80 % power. Power at the margin: the chance to show an "
        "equivalence if the two cells are equal. Items: the part of the error's square that comes from the choice of test "
        "items, which more seeds do not reduce. Error: paired by design where both cells go on "
        "from the same run, and by seed if a seed's runs share something, else unpaired; with the variance of all cells only "
        "if these two vary like the others, and with that of the test items where their values are stored. "
        "Without assuming normal variation between seeds: the exact permutation test, with the smallest p that these seeds can "
        "give."
    )
    names = ["relation", "detectable gain", "power at the margin", "items", "error", "p (permutations)", "least possible"]
    return Table("checks", "Power, and checks", "lrrrlrr", [Text(h) for h in names], rows, about=about)


def gates_table(study: Study, results: Results) -> list[Block]:
    """The values of all gates; nothing without gates or results."""
    rows = []
    for g in judge.gates(study, results):
        asked = [f"{sign} {bound:g}" for sign, bound in (("≥", g.gate.at_least), ("≤", g.gate.at_most)) if bound is not None]
        found = ", ".join("none" if math.isnan(v) else f"{v:.4g}" for v in g.found.values())
        cells = (g.gate.name, study.labels[g.cell], f"{g.gate.metric} {' and '.join(asked)}", found)
        rows.append([*map(Text, cells), Text("passes" if g.passed else "fails", not g.passed)])
    about = "A relation is judged only if both of its cells pass in every seed."
    header = [Text(h) for h in ("check", "cell", "asked", "value by seed", "")]
    return [Table("gates", "Did the manipulation work", "llllr", header, rows, about=about)] if rows else []


def floors_table(study: Study, results: Results) -> list[Block]:
    """Each cell beside the same model without pretraining, for the metrics that ask for it; nothing without such results."""
    rows = []
    for metric in (m for m in study.metrics if m.floor):
        for name, cell in study.cells.items():
            test = None if cell.floor is None else judge.above_floor(results, name, cell.floor, metric)
            if cell.floor is None or test is None:
                continue
            reached, without = (list(values(results, c, metric.name).values()) for c in (name, cell.floor))
            decimals = _decimals([*reached, *without])
            figures = (_mean(reached, decimals), _mean(without, decimals), _range(test.interval, decimals))
            p = stats.different(test)
            above = "yes" if judge.above(test) else "not shown"
            rows.append([Text(t) for t in (metric.label, cell.label, *figures, _p(p))] + [Text(above, above != "yes")])
    about = (
        "Floor: the same model and fine-tuning without pretraining. A t test of these two cells alone; a relation is judged "
        "only if the better of its cells is above its floor."
    )
    header = [Text(h) for h in ("metric", "cell", "value", "floor", "gain over the floor", "p", "above")]
    return [Table("floors", "Cells and their floors", "llrrrrr", header, rows, about=about)] if rows else []


def variances_table(study: Study, results: Results) -> list[Block]:
    """Where the metrics' variance comes from; nothing without a cell that has two different runs."""
    rows = []
    for metric in study.metrics:
        table = {cell: v for cell in study.labels if (v := values(results, cell, metric.name))}
        found, cells = variance.components(table), variance.varying(table)
        if found is None:
            continue
        own = [float(np.std(list(v.values()), ddof=1)) for v in cells.values()]
        digits = lambda v: f"{v:.3g}"
        nested = _nested(study, results, metric)
        seeds = (
            f"{digits(math.sqrt(found.seed))} (p {_p(found.p_seed)})" if found.seed else f"none shown (p {_p(found.p_seed)})"
        )
        spread = f"{digits(min(own))} to {digits(max(own))}"
        tuned = "–" if nested is None else digits(nested)
        shown = (metric.label, f"{len(cells)} of {len(table)}", digits(math.sqrt(found.residual)), f"{found.df:g}")
        rows.append([Text(t) for t in (*shown, spread, seeds, tuned)])
    about = (
        "Standard deviations. Residual: of a run about its cell's mean, over the cells whose runs differ, without what all "
        "runs of a seed share. Shared: of that part, if an F test shows it; comparisons are then paired by seed. Fine-tuning: "
        "of the fine-tunings of one pretrained model, whose mean is one value here."
    )
    names = ["metric", "cells", "residual", "df", "single cells", "shared by a seed", "fine-tuning"]
    return [Table("variances", "Variance", "lrrrrrr", [Text(h) for h in names], rows, about=about)] if rows else []


def _nested(study: Study, results: Results, metric: Metric) -> float | None:
    """Standard deviation of the fine-tunings of one pretrained model, over all runs; None if no run has two."""
    runs = [r for cell in study.labels for r in results.get(cell, {}).values()]
    found = [x for r in runs if len(x := r.get("nested", {}).get(metric.name, ())) > 1]
    df = sum(len(x) - 1 for x in found)
    return math.sqrt(sum(float(np.var(x, ddof=1)) * (len(x) - 1) for x in found) / df) if df else None
