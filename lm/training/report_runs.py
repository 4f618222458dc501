"""Several runs side by side on one page: curves over steps, tokens, FLOPs and seconds, results, differences of configs."""

import html
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lm import paths, redact
from lm.config import resolve
from lm.data.corpus import places
from lm.data.corpus.places import Url
from lm.errors import UserError
from lm.training import jsonl
from lm.training.goodput import elapsed
from lm.training.report import cell, so_far, write_page, written
from lm.training.report_curves import MISSING, Panel, Row, finish, grid, image, number, points, unit

STYLE = "<style>body{max-width:90rem}.wide{overflow-x:auto}thead th{border-bottom:1px solid #222}</style>"
AXES = ("step", "tokens read", "model FLOPs", "seconds of wall time")
# What is drawn, of those that any run has.
MEASURES = {
    "loss": "training loss",
    "heldout/loss": "held-out loss",
    "heldout/nll": "held-out negative log-likelihood",
    "heldout/bits_per_byte": "held-out bits per byte",
    "heldout/accuracy": "held-out accuracy",
    "heldout/exact": "held-out exact matches",
    "heldout/f1": "held-out F1",
    "reward": "reward of samples",
    "heldout/reward": "held-out reward",
}


@dataclass(frozen=True)
class Logged:
    """What the files in the folder of a run say, finished or not."""

    name: str
    rows: list[Row]
    samples: list[Row]
    config: dict[str, Any]  # flat: dotted key -> value
    manifest: dict[str, Any]
    summary: dict[str, Any]
    finished: bool
    reached: list[tuple[int, float]]  # (step, seconds), of `goodput.elapsed`

    def along(self, axis: str, steps: Sequence[int]) -> np.ndarray | None:
        """Where these steps are on an axis of AXES, or None if the run's files do not say. The logs have tokens and seconds of
        some steps; between two of them they grow evenly."""
        if axis == "step":
            return np.asarray(steps, float)
        if axis.startswith("seconds"):
            known = self.reached
        else:
            known = [(0, 0), *points(self.rows, "tokens_seen")]
            if axis == "model FLOPs":
                seen, flops = self.summary.get("tokens_seen"), self.summary.get("model_flops")
                if not seen or flops is None:
                    return None
                known = [(step, tokens * flops / seen) for step, tokens in known]
        if len(known) < 2:
            return None
        at, values = zip(*known, strict=True)
        return np.interp(np.asarray(steps, float), np.asarray(at, float), np.asarray(values, float))


def opened(given: str | Path) -> tuple[Path | Url, Logged]:
    """The folder, local or a URL, and what its files say. UserError if it is not that of a run."""
    folder: Any = places.at(str(given)) if paths.URL.match(str(given)) else paths.local(given, name="the run")
    parsed = lambda name: resolve.parsed((folder / name).read_bytes().decode(errors="replace"), f"{folder}/{name}")
    try:
        config, manifest = parsed("config.json"), parsed("manifest.json")
        rows = jsonl.read(folder / "metrics.jsonl")
        try:
            summary, finished = parsed("summary.json"), True
        except FileNotFoundError:
            summary, finished = so_far(folder, rows), False
    except places.Unreachable as error:
        raise UserError(f"{error}; copy the run to a local folder and give that") from None
    except OSError as error:
        raise UserError(f"{given} has no {Path(error.filename).name}: give the --workdir of a run that has begun") from None
    samples, reached = jsonl.read(folder / "samples.jsonl"), elapsed(jsonl.read(folder / "goodput.jsonl"))
    return folder, Logged(folder.name, rows, samples, resolve.flatten(config), manifest, summary, finished, reached)


def named(folders: Sequence[Path | Url]) -> list[str]:
    """The shortest ends of these paths that differ: ["a/run", "b/run"], or ["a", "b"]. UserError if one is there twice."""
    if len(set(folders)) < len(folders):
        raise UserError("a run is given twice: give each once")
    split = [Path(str(folder)).parts for folder in folders]
    for count in range(1, max(map(len, split)) + 1):
        names = ["/".join(parts[-count:]) for parts in split]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]


def write_comparison(given: Sequence[str | Path], out: Path) -> Path:
    """Writes the page of these runs, which needs no other file, and returns its path."""
    folders, logged = zip(*map(opened, given), strict=True)
    runs = dict(zip(named(folders), logged, strict=True))
    pieces = [
        f"<h1>{len(runs)} run{'s' * (len(runs) != 1)}</h1>",
        *(f"<p><b>{note}</b></p>" for note in _notes(logged)),
        "<h2>Results</h2>",
        _table({name: _results(run) for name, run in runs.items()}),
        "<h2>Curves</h2>",
        *_curves(runs),
        "<h2>Config</h2>",
        _differences(runs),
        "<h2>Latest samples</h2>",
        *_samples(runs),
    ]
    return write_page(out, ", ".join(runs), pieces, head=STYLE)


def _notes(runs: Sequence[Logged]) -> list[str]:
    """What makes figures hard to compare."""
    different = lambda key: len({run.manifest.get(key) for run in runs}) > 1
    notes = []
    if different("data_fingerprint"):
        notes.append("The runs have different data: held-out figures may be of different texts.")
    if different("tokenizer_fingerprint"):
        notes.append("The runs have different tokenizers: compare bits per byte, not losses per token.")
    if unfinished := [run.name for run in runs if not run.finished]:
        notes.append(f"Not finished, so without baselines: {html.escape(', '.join(unfinished))}.")
    if unknown := [run.name for run in runs if "model_flops" not in run.summary]:
        notes.append(f"Without FLOPs, which their files do not say yet: {html.escape(', '.join(unknown))}.")
    return notes


def _results(run: Logged) -> dict[str, tuple[Any, str]]:
    """Name -> (value, unit) of the figures of a run."""
    summary, steps = run.summary, run.config.get("train.steps")
    names = (
        "parameters",
        "parameters_without_embeddings",
        "tokens_seen",
        "tokens_with_loss",
        "model_flops",
        "tokens_per_second",
    )
    commit = (run.manifest.get("git") or {}).get("commit")
    return {
        "state": ("finished" if run.finished else f"at step {number(summary['step'])} of {steps}", ""),
        "started": (run.manifest.get("started", ""), ""),
        "commit": (commit[:12] if commit else "", ""),
        "devices": ("{count} x {kind}".format(**run.manifest["devices"]) if "devices" in run.manifest else "", ""),
        "step": (summary["step"], unit("step")),
        **{name: (summary[name], unit(name)) for name in names if name in summary},
        "wall time": (summary["goodput"]["wall_seconds"], "s"),
        **{f"held-out {name}": (value, unit(name)) for name, value in (summary.get("heldout") or {}).items()},
        **{f"baseline {name}": (value, "bits per byte") for name, value in (summary.get("baselines") or {}).items()},
    }


def _table(columns: dict[str, dict[str, tuple[Any, str]]]) -> str:
    """A table with a column for each run, and a last one with the units."""
    names = list(dict.fromkeys(name for values in columns.values() for name in values))
    lines = []
    for name in names:
        found = [values.get(name) for values in columns.values()]
        cells = "".join("<td>" if pair is None else f"<td{_right(pair[0])}>{cell(pair[0])}" for pair in found)
        lines.append(f"<tr><th>{html.escape(name)}{cells}<td class=unit>{next(pair[1] for pair in found if pair)}")
    head = "".join(f"<th>{html.escape(name)}" for name in columns)
    return f"<div class=wide><table><thead><tr><th>{head}<th></thead>{''.join(lines)}</table></div>"


def _right(value: Any) -> str:
    return " class=r" if isinstance(value, (int, float)) else ""


def _curves(runs: dict[str, Logged]) -> list[str]:
    """A picture for each measure, with an axis for each of AXES."""
    pieces = []
    for measure, title in MEASURES.items():
        found = {name: points(run.rows, measure) for name, run in runs.items()}
        if not any(found.values()):
            continue
        if (made := grid(len(AXES))) is None:
            return [f"<p>No curves: {MISSING}.</p>"]
        figure, axes = made
        for axis, x in zip(axes, AXES, strict=True):
            for i, (name, drawn) in enumerate(found.items()):
                steps, values = zip(*drawn, strict=True) if drawn else ((), ())
                if (at := runs[name].along(x, steps)) is not None and drawn:
                    dots = "o" if measure.startswith("heldout") or len(steps) == 1 else None
                    style = dict(color=f"C{i % 10}", ls=("-", "--", ":", "-.")[i // 10 % 4], marker=dots, ms=3)
                    axis.plot(at, values, label=_label(name), **style)
            finish(axis, x, Panel((measure,), f"{title} ({unit(measure)})" if unit(measure) else title))
        pieces += [f"<h3>{title[0].upper() + title[1:]}</h3>", image(figure, title)]
    return pieces or ["<p>No curves yet: nothing is logged.</p>"]


def _label(name: str) -> str:
    """A run's name in a legend: matplotlib reads formulas between dollars, and leaves out names that begin with `_`."""
    return " " + (name if len(name) <= 40 else "..." + name[-37:]).replace("$", r"\$")


def _differences(runs: dict[str, Logged]) -> str:
    """The keys of the configs whose values differ; "-" where a config has no such key."""
    keys = list(dict.fromkeys(key for run in runs.values() for key in run.config))
    text = lambda run, key: redact.redacted(json.dumps(run.config[key], ensure_ascii=False)) if key in run.config else "-"
    shown = {key: [text(run, key) for run in runs.values()] for key in keys}
    different = {key: values for key, values in shown.items() if len(set(values)) > 1}
    if not different:
        return "<p>All configs are equal.</p>" if len(runs) > 1 else ""
    return _table({name: {key: (values[i], "") for key, values in different.items()} for i, name in enumerate(runs)})


def _samples(runs: dict[str, Logged]) -> list[str]:
    pieces = []
    for name, run in runs.items():
        last = max((sample["step"] for sample in run.samples), default=None)
        if last is not None:
            pieces.append(f"<h3>{html.escape(name)}, step {number(last)}</h3>")
        pieces += [f"<pre>{written(sample)}</pre>" for sample in run.samples if sample["step"] == last]
    return pieces or ["<p>None.</p>"]
