"""Writes the table of all relations into experiments/README.md, from the results that are stored beside the studies.

  python -m experiments.page

Run it after `python -m experiments.report runs/STUDY --out=experiments/STUDY`. It trains nothing.
"""

import copy
import math
from dataclasses import dataclass
from pathlib import Path

from experiments import filled, report, tables
from experiments.judge import Judged, judge
from experiments.pictures import slug
from experiments.run import SUITES
from experiments.study import Results, Study
from experiments.units import load_study, studies
from lm import cli

HERE = Path(__file__).parent
README = HERE / "README.md"
DECIDED = ("reproduced", "reversed")
GAIN = (
    "Gain: how much better the first is, in the metric's unit; published figures are in the paper's. Core-seconds: of all runs "
    "of the two cells, or their model FLOPs where the time was not kept."
)


@dataclass(frozen=True)
class Stored:
    """A study with its stored results, which are {} if it has not been run."""

    study: Study
    results: Results
    judged: list[Judged]

    @property
    def name(self) -> str:
        return self.study.name


@cli.command
def main(argv: list[str] | None = None) -> int:
    cli.parser("experiments.page", __doc__).parse(argv)
    filled.around(README, "relations")
    filled.fill(README, "relations", section(stored()))
    print(README)
    return 0


def stored() -> list[Stored]:
    """All studies but the template, those of the suites first."""
    order = dict.fromkeys((*(name for suite in SUITES.values() for name in suite), *studies()))
    return [read(HERE / name) for name in order if name != "template" and (HERE / name / "study.py").exists()]


def read(folder: Path) -> Stored:
    """The study of a folder, and its relations judged by the results.json there."""
    if not (folder / "results.json").exists():
        return Stored(load_study(folder.name, {}), {}, [])
    study, results = report.load(folder)
    if not study.relations:
        return Stored(study, results, [])
    full = study.derive(copy.deepcopy(results)) if study.derive else results
    return Stored(study, results, judge(study, full))


def section(all_studies: list[Stored]) -> str:
    """The text between the markers, in Markdown."""
    judged = [(of, j) for of in all_studies for j in of.judged if not of.study.withdrawn]
    lines = [*_counts([j for _, j in judged]), ""]
    lines += [
        "| study | relation | paper | published | here: gain, 95 % interval | verdict | core-seconds | picture |",
        "|---|---|---|---:|---:|---|---:|---|",
        *(_row(of, j) for of, j in judged),
        "",
        GAIN,
        "",
    ]
    withdrawn = [f"- [{of.name}]({of.name}): {of.study.withdrawn}" for of in all_studies if of.study.withdrawn]
    if withdrawn:
        lines += ["**Withdrawn.**", "", *withdrawn, ""]
    link = lambda some: ", ".join(f"[{of.name}]({of.name})" for of in some)
    if waiting := [of for of in all_studies if not of.results and not of.study.withdrawn]:
        lines += [f"**Not run.** {link(waiting)}.", ""]
    if without := [of for of in all_studies if of.results and not of.study.relations and not of.study.withdrawn]:
        lines += [f"**Without relations.** {link(without)}: measured, nothing is tested.", ""]
    return "\n".join(lines)


def _counts(judged: list[Judged]) -> list[str]:
    """How many relations are decided, and what became of the planted ones."""
    own = [j for j in judged if not j.relation.planted]
    if not own:
        return ["No study has stored results with relations."]
    of = lambda *verdicts: sum(j.verdict in verdicts for j in own)
    exploratory = sum(not j.relation.primary for j in own)
    words = (
        f"**{of(*DECIDED)} of {len(own)} relations are decided**: {of('reproduced')} reproduced, {of('reversed')} reversed; "
        f"{of('unresolved')} unresolved, {of('not judged')} not judged. {exploratory} of them are exploratory."
    )
    planted = []
    for kind, found in (("null", "not found"), ("effect", "found")):
        mine = [j for j in judged if j.relation.planted == kind]
        good, wrong = (sum(j.as_planted is value for j in mine) for value in (True, False))
        if mine:
            planted.append(f"planted {kind}s: {good} of {len(mine)} {found} as they should be, {wrong} decided wrongly")
    return [words + (f" Known by construction: {'; '.join(planted)}." if planted else "")]


def _row(of: Stored, judged: Judged) -> str:
    r = judged.relation
    published = "" if r.published is None else f"{r.published[0]:g} vs {r.published[1]:g}"
    name = r.name + (f" (within ±{r.margin:g})" if r.kind == "equivalent" else "")
    verdict = f"**{judged.words}**" if judged.verdict in DECIDED else judged.words
    gain = tables.gain(judged)
    unit = f" {judged.metric.unit}" if judged.metric.unit and judged.interval else ""
    cells = [
        f"[{of.name}]({of.name})",
        name,
        r.source,
        published,
        gain + unit,
        verdict,
        _cost(of, judged),
        _picture(of, judged),
    ]
    escaped = (cell.replace("|", "\\|") for cell in cells)
    return f"| {' | '.join(escaped)} |"


def _cost(of: Stored, judged: Judged) -> str:
    """What the runs of the two cells took; of cells that `derive` adds, all runs of the study.

    Added by fsum, which gives one value in any order of the cells and on any Python (3.12 changed how `sum` rounds).
    """
    cells = {judged.relation.better, judged.relation.than}
    runs = [r for cell in (cells if cells <= set(of.results) else of.results) for r in of.results[cell].values()]
    ledgers = [run["ledger"] for run in runs if run["ledger"]]
    if ledgers and all("core_seconds" in ledger for ledger in ledgers):
        return f"{math.fsum(ledger['core_seconds'] for ledger in ledgers):,.0f}"
    return f"{math.fsum(ledger['model_flops'] for ledger in ledgers):.2g} FLOPs" if ledgers else ""


def _picture(of: Stored, judged: Judged) -> str:
    """A link to the metric's picture, else to that of the study's relations."""
    names = (f"metric_{slug(judged.metric.name)}.png", "relations.png")
    found = next((name for name in names if (HERE / of.name / name).exists()), None)
    return f"[picture]({of.name}/{found})" if found else ""


if __name__ == "__main__":
    cli.enter(main)
