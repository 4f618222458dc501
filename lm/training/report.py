"""`report.html`: a single page with the state, figures, curves, samples, config and manifest of a run."""

import html
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lm import atomic, redact
from lm.training import jsonl
from lm.training.goodput import account
from lm.training.report_curves import curves, number, unit

STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}
img{width:100%}table{border-collapse:collapse}td,th{padding:.2rem .8rem .2rem 0;text-align:left;vertical-align:top}
td,pre{overflow-wrap:anywhere}td.r{text-align:right;font-variant-numeric:tabular-nums}.unit{color:#666;white-space:nowrap}td.t{max-width:16rem}
pre{background:#f6f6f6;padding:.8rem;overflow:auto;white-space:pre-wrap}h2{margin-top:2rem}
.time{display:flex;height:1.4rem;margin:.6rem 0}.key{display:inline-block;width:.8rem;height:.8rem;margin-right:.5rem}
img.p{width:auto;min-width:96px;image-rendering:pixelated;vertical-align:middle}"""
REFRESH = 60  # seconds after which a browser loads the page of a run in progress again
SHOWN = 5  # evaluations whose samples are shown

# Kinds of goodput (`lm.training.goodput`): productive time dark, overhead lighter, lost time red.
COLOURS = {
    "productive": "#2a6f4e",
    "data_wait": "#c9b458",
    "compile": "#7da7c9",
    "prepare": "#a9c4d9",
    "checkpoint": "#8d7bb0",
    "evaluate": "#b7d1a8",
    "profile": "#cccccc",
    "lost": "#c0392b",
    "down": "#e59a90",
}


def write_report(folder: Path, summary: Mapping[str, Any] | None = None, *, ended: str | None = None) -> Path:
    """Writes report.html from the logs in a run's folder and returns its path. Without matplotlib, it has a note instead of
    curves.

    `summary`: of a finished run. Without it, the latest rows of the logs take its place, and the page says that the run is in
    progress, or that it `ended` in this way before its last step."""
    rows = jsonl.read(folder / "metrics.jsonl")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    state = _state(rows, config["train"]["steps"], summary, ended)
    summary = so_far(folder, rows) if summary is None else summary
    pieces = [
        f"<h1>{html.escape(folder.name)}</h1>",
        f"<p>{html.escape(state)}; as of {time.strftime('%Y-%m-%d %H:%M:%S %Z')}.</p>",
        _figures(summary),
        _baselines(summary),
        "<h2>Curves</h2>",
        curves(rows, summary),
        _goodput(summary["goodput"]),
        _samples(jsonl.read(folder / "samples.jsonl")),
        "<h2>Config</h2>",
        f"<pre>{html.escape(redact.redacted(json.dumps(config, indent=2, ensure_ascii=False)))}</pre>",
        "<h2>Manifest</h2>",
        f"<pre>{html.escape((folder / 'manifest.json').read_text(encoding='utf-8'))}</pre>",
    ]
    head = f"<meta http-equiv=refresh content={REFRESH}>" if state.startswith("training") else ""
    return write_page(folder / "report.html", folder.name, pieces, head=head)


def write_page(path: Path, title: str, pieces: list[str], *, head: str = "") -> Path:
    """Writes pieces of HTML as a page of its own and returns its path."""
    page = f"<!doctype html><meta charset=utf-8><title>{html.escape(title)}</title><style>{STYLE}</style>{head}"
    # Text from other programs may contain lone surrogates, which UTF-8 cannot encode.
    atomic.write_bytes(path, (page + "\n".join(pieces)).encode(errors="backslashreplace"))
    return path


def so_far(folder: Any, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What the logs and the manifest of an unfinished run say under the names of summary.json. `folder`: a Path or a
    `lm.data.corpus.places.Url`."""
    a_token = json.loads((folder / "manifest.json").read_bytes()).get("model_flops_per_token")  # of later versions
    logged = next((row for row in reversed(rows) if "loss" in row), {})
    judged = next((row for row in reversed(rows) if any(name.startswith("heldout/") for name in row)), {})
    kept = ("loss", "tokens_seen", "tokens_with_loss", "skipped", "tokens_per_second")
    return {
        "step": max((row["step"] for row in rows), default=0),
        **{name: logged[name] for name in kept if name in logged},
        **({"model_flops": a_token * logged["tokens_seen"]} if a_token and "tokens_seen" in logged else {}),
        "heldout": {name.removeprefix("heldout/"): value for name, value in judged.items() if name != "step"},
        "goodput": account(jsonl.read(folder / "goodput.jsonl")),
    }


def _state(rows: list[dict[str, Any]], steps: int, summary: Mapping[str, Any] | None, ended: str | None) -> str:
    if summary is not None:
        return f"finished: {number(summary['step'])} steps"
    return ended or f"training: step {number(max((row['step'] for row in rows), default=0))} of {number(steps)}"


def table(values: Mapping[str, tuple[Any, str]]) -> str:
    """A table of {name: (value, unit)}."""
    kind = lambda value: "r" if isinstance(value, (int, float)) else "t"
    lines = (
        f"<tr><th>{html.escape(name)}<td class={kind(value)}>{cell(value)}<td class=unit>{unit}"
        for name, (value, unit) in values.items()
    )
    return f"<table>{''.join(lines)}</table>"


def cell(value: Any) -> str:
    """The HTML of a value: a number in the format of all pages, a text as it is, anything else as JSON."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return number(value)
    return html.escape(value if isinstance(value, str) else json.dumps(value))


def _figures(summary: Mapping[str, Any]) -> str:
    own = {k: (v, unit(k)) for k, v in summary.items() if not isinstance(v, dict) and v is not None}
    return table(own | {f"held-out {k}": (v, unit(k)) for k, v in summary.get("heldout", {}).items()})


def _baselines(summary: Mapping[str, Any]) -> str:
    """The model's bits per byte among those of the baselines, the best first."""
    baselines, own = summary.get("baselines"), summary.get("heldout", {}).get("bits_per_byte")
    if not baselines:
        return ""
    every = baselines | ({} if own is None else {"this model": own})
    ranked = {name: (every[name], "bits per byte") for name in sorted(every, key=lambda name: every[name])}
    return "<h2>Baselines on the same held-out bytes</h2>" + table(ranked)


def _samples(samples: list[dict[str, Any]]) -> str:
    """The samples of the latest evaluations, the newest first."""
    steps = sorted({sample["step"] for sample in samples}, reverse=True)
    pieces = []
    for step in steps[:SHOWN]:
        pieces.append(f"<h2>Samples at step {number(step)}</h2>")
        pieces += [f"<pre>{written(sample)}{_reward(sample)}</pre>" for sample in samples if sample["step"] == step]
    if len(steps) > SHOWN:
        pieces.append(f"<p>Those of {len(steps) - SHOWN} earlier evaluations are in samples.jsonl.</p>")
    return "\n".join(pieces)


def written(sample: Mapping[str, Any]) -> str:
    """The HTML of a prompt and what the model wrote to it, after the sample's pictures if it has any: "pictures" is a list of
    PNG files in base64 (`lm.data.png`)."""
    pictures = [f'<img class=p src="data:image/png;base64,{html.escape(str(one))}">' for one in sample.get("pictures", ())]
    return f"{' '.join(pictures)} <b>{html.escape(sample['prompt'])}</b> &rarr; {html.escape(sample['text'])}".lstrip()


def _reward(sample: dict[str, Any]) -> str:
    return f"   <i>reward {number(sample['reward'])}</i>" if "reward" in sample else ""


def _goodput(goodput: dict[str, Any]) -> str:
    """A bar and a table of the run's seconds by kind; `lm.training.goodput` defines the kinds."""
    wall, seconds = max(goodput["wall_seconds"], 1e-9), goodput["seconds"]
    kinds = {k: seconds[k] for k in [*COLOURS, *seconds] if seconds.get(k, 0) > 0}  # known ones in their order, then others
    colour = lambda kind: COLOURS.get(kind, "#999")
    bar = "".join(
        f'<div title="{html.escape(k)}" style="width:{100 * v / wall:.2f}%;background:{colour(k)}"></div>'
        for k, v in kinds.items()
    )
    lines = "".join(
        f'<tr><th><span class=key style="background:{colour(k)}"></span>{html.escape(k)}'
        f"<td class=r>{v:,.1f} s<td class=r>{v / wall:.1%}"
        for k, v in kinds.items()
    )
    starts = f"{goodput['starts']} start" + "s" * (goodput["starts"] != 1)
    share = f"{goodput['share']:.1%} of it in steps whose result was kept"
    text = f"<p>{goodput['wall_seconds']:,.0f} s over {starts}; {share}.</p>"
    return f"<h2>Where the time went</h2>{text}<div class=time>{bar}</div><table>{lines}</table>"
