"""Writes the report of a comparison study, of what is done so far.

  python -m experiments.report runs/scaling --out=experiments/scaling

D is a study's work directory (study.json and <cell>/seed<k>/result.json) or a folder with study.json and the results.json
that an earlier report wrote. Writes report.md, report.html, report.tex, results.json, study.json and pictures into --out
(default: D).
"""

import copy
import importlib
import json
import math
import shlex
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

from experiments import pages, pictures, tables
from experiments.judge import Judged, judge
from experiments.pages import Block, Code, Heading, Markdown, Paragraph, Picture
from experiments.study import Results, Study
from experiments.units import made
from lm import cli
from lm.errors import UserError


@cli.command
def main(argv: list[str] | None = None) -> int:
    p = cli.parser("experiments.report", __doc__)
    p.add_argument("directory", help="a study's work directory, or the folder of its results.json")
    p.add_argument("--out", help="where the report goes; the same directory unless given")
    flags = p.parse(argv)
    study, results = load(flags.directory)
    out = Path(flags.out or flags.directory)
    written = write(study, results, out, command=f"python -m experiments.report {shlex.quote(str(out))}")
    if out.resolve() != Path(flags.directory).resolve():
        (out / "study.json").write_text(Path(flags.directory, "study.json").read_text())
    print("\n".join(str(path) for path in written.values()))
    return 0


def load(directory: str | Path) -> tuple[Study, Results]:
    """The study that study.json names, and its results: from the result.json of its runs, or if there are none from
    results.json.

    Warns if results were made with other settings than the study's current ones. Raises UserError if study.json is missing or a
    file is damaged.
    """
    d = Path(directory)
    if not (d / "study.json").exists():
        raise UserError(f"{d} has no study.json; give a study's work directory or the folder of its report")
    spec = _json(d / "study.json")
    module = f"experiments.{spec['study']}.study"
    try:
        study = made(importlib.import_module(module).study, spec["settings"])
    except ModuleNotFoundError as error:
        if error.name and module.startswith(error.name):
            raise UserError(f"{d / 'study.json'} names study '{spec['study']}', but there is no {module}") from error
        raise
    runs = sorted(d.glob("*/seed*/result.json"))
    found: Results = {}
    for path in runs:
        result = _json(path)
        found.setdefault(result["cell"], {})[int(result["seed"])] = result
    if not runs and (d / "results.json").exists():
        found = {cell: {int(k): r for k, r in seeds.items()} for cell, seeds in _json(d / "results.json").items()}
    marks = {name: study.mark(name) for name in study.cells}
    for name, seeds in found.items():
        if any(r.get("settings", marks.get(name)) != marks.get(name) for r in seeds.values()):
            warnings.warn(f"results of '{name}' in {d} were made with other settings than {study.name} has now", stacklevel=2)
    return study, found


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not valid JSON ({error}); delete it and run the study again") from error


def write(study: Study, results: Results, out: str | Path, *, command: str = "") -> dict[str, Path]:
    """Writes the report of these results into `out`. Returns the paths by "md", "html", "tex", "results" and each picture's
    stem."""
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    raw = results
    if study.derive is not None:
        results = study.derive(copy.deepcopy(results))
    judged = judge(study, results)
    drawn = _draw(study, results, judged, out)
    section = study.analyse(results, out) if study.analyse is not None else ""
    blocks = _blocks(study, results, judged, drawn, section, command)
    texts = {
        "md": ("report.md", pages.markdown(blocks)),
        "html": ("report.html", pages.page(study.title, blocks, out)),
        "tex": ("report.tex", pages.latex(blocks, study.name)),
        "results": ("results.json", _compact(raw)),
    }
    for name, text in texts.values():
        (out / name).write_text(text, encoding="utf-8")
    return {key: out / name for key, (name, _) in texts.items()} | {path.stem: path for path in drawn.values()}


def _compact(results: Results) -> str:
    """JSON with one line per run, so that diffs show which run changed."""
    run = lambda seed, result: f'"{seed}":{json.dumps(result, separators=(",", ":"), sort_keys=True)}'
    cell = lambda name, seeds: json.dumps(name) + ":{\n" + ",\n".join(run(*item) for item in sorted(seeds.items())) + "\n}"
    return "{" + ",\n".join(cell(*item) for item in sorted(results.items())) + "}\n"


def _draw(study: Study, results: Results, judged: list[Judged], out: Path) -> dict[str, Path]:
    """Draws the pictures for which there are results: description -> path."""
    paths = {
        f"{m.label}, seeds and means": pictures.dots(study, results, m, out / f"metric_{pictures.slug(m.name)}.png")
        for m in study.metrics
    }
    paths["relations"] = pictures.forest(judged, out / "relations.png")
    paths["learning curves"] = pictures.curves(study, results, out / "curves.png")
    return {text: path for text, path in paths.items() if path is not None}


def _blocks(
    study: Study, results: Results, judged: list[Judged], drawn: dict[str, Path], section: str, command: str
) -> list[Block]:
    checks = [*tables.gates_table(study, results), *tables.floors_table(study, results)]
    show = lambda *words: [Picture(path.name, text) for text, path in drawn.items() if text in words]
    return [
        Heading(study.title, 1),
        *_status(study, results, judged),
        Heading("Results"),
        tables.results_table(study, results),
        *show(*(text for text in drawn if text not in ("relations", "learning curves"))),
        Heading("Compute"),
        *tables.ledger(study, results),
        *([Heading("Gates and floors"), *checks] if checks else []),
        *(
            [Heading("Relations"), tables.relations_table(judged), *show("relations"), tables.checks_table(judged)]
            if judged
            else []
        ),
        *tables.variances_table(study, results),
        *([Heading("Learning curves"), *show("learning curves")] if show("learning curves") else []),
        *([Markdown(section)] if section.strip() else []),
        *([Heading("Made by"), Code(command), *_made_with(study, results)] if command else []),
    ]


def _made_with(study: Study, results: Results) -> list[Block]:
    """How many runs were made with which Python, jax and code; nothing of results that were made before it was recorded."""
    runs = [r for cell in study.cells for r in results.get(cell, {}).values()]
    counts = Counter(", ".join(f"{key} {value}" for key, value in r.get("made_with", {}).items()) for r in runs)
    if not any(counts):
        return []
    texts = (f"{count} run{'s' * (count > 1)} with {words or 'what was not recorded'}" for words, count in counts.items())
    return [Paragraph("; ".join(texts) + ".")]


def _status(study: Study, results: Results, judged: list[Judged]) -> list[Block]:
    missing = {name: study.seeds - len(results.get(name, {})) for name in study.cells}
    missing = {name: n for name, n in missing.items() if n > 0}
    total = len(study.cells) * study.seeds
    seeds = "1 seed" if study.seeds == 1 else f"{study.seeds} seeds"
    done = f"{total - sum(missing.values())} of {total} runs are done ({len(study.cells)} cells, {seeds})."
    if missing:
        to_come = ", ".join(f"{study.cells[name].label} ({n})" for name, n in missing.items())
        done += f" Still to come: {to_come}. Verdicts may change."
    blocks: list[Block] = [Paragraph(done)]
    primary = [j.verdict for j in judged if j.relation.primary and not j.relation.planted]
    if study.withdrawn:
        blocks.append(Paragraph(f"Withdrawn: {study.withdrawn}", bold=True))
    elif primary:
        kinds = ["reproduced", "reversed", "unresolved", *(["not judged"] if "not judged" in primary else [])]
        counts = ", ".join(f"{primary.count(v)} {v}" for v in kinds)
        blocks.append(Paragraph(f"Of {len(primary)} primary relation{'s' * (len(primary) > 1)}: {counts}."))
    planted = [j.as_planted for j in judged if j.relation.planted]
    if planted and not study.withdrawn:
        counts = f"{planted.count(True)} as planted, {planted.count(False)} against it, {planted.count(None)} undecided"
        blocks.append(Paragraph(f"Of {len(planted)} planted relation{'s' * (len(planted) > 1)}: {counts}."))
    if strangers := sorted(set(results) - set(study.labels)):
        names = ", ".join(strangers)
        blocks.append(Paragraph(f"Warning: results of cells that the study does not have are left out: {names}.", bold=True))
    broken = [
        f"{m.label} of {label}, seed {seed}"
        for c, label in study.labels.items()
        for seed, r in sorted(results.get(c, {}).items())
        for m in study.metrics
        if (v := r["metrics"].get(m.name)) is not None and not math.isfinite(v)
    ]
    if broken:
        blocks.append(Paragraph(f"Warning: not finite, and left out: {'; '.join(broken)}.", bold=True))
    return blocks


if __name__ == "__main__":
    cli.enter(main)
