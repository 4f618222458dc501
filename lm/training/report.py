"""`report.html`: a single page with the figures, curves, samples, config and manifest of a run."""

import base64
import html
import io
import json
from pathlib import Path
from typing import Any

from lm import atomic, redact
from lm.training.rundir import RunDir

STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}
img{width:100%}table{border-collapse:collapse}td,th{padding:.2rem .8rem .2rem 0;text-align:left;vertical-align:top}
pre{background:#f6f6f6;padding:.8rem;overflow:auto;white-space:pre-wrap}h2{margin-top:2rem}
.time{display:flex;height:1.4rem;margin:.6rem 0}.key{display:inline-block;width:.8rem;height:.8rem;margin-right:.5rem}"""

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

# Panels of runs that learn from rewards of what they write.
REWARDED = (
    (("reward", "heldout/reward"), "linear"),
    (("kl", "entropy", "clipped", "truncated"), "linear"),
    (("length",), "linear"),
    (("mismatch", "mismatch_max"), "log"),
)
ACCURACIES = ("heldout/accuracy", "heldout/exact", "heldout/f1")  # of models that label or answer


def write_report(rundir: RunDir, summary: dict[str, Any]) -> Path:
    """Writes report.html from the run's logs and `summary`, and returns its path. Without matplotlib, it has a note instead of
    curves."""
    rows, samples = rundir.rows("metrics.jsonl"), rundir.rows("samples.jsonl")
    last = max((s["step"] for s in samples), default=None)
    pieces = [
        f"<h1>{html.escape(rundir.path.name)}</h1>",
        _table(_figures(summary)),
        "<h2>Curves</h2>",
        _curves(rows, summary),
        _goodput(summary["goodput"]),
        f"<h2>Samples at step {last}</h2>" if samples else "",
        *(
            f"<pre><b>{html.escape(s['prompt'])}</b> &rarr; {html.escape(s['text'])}{_reward(s)}</pre>"
            for s in samples
            if s["step"] == last
        ),
        "<h2>Baselines on the same held-out bytes</h2>" + _table(summary["baselines"]) if summary.get("baselines") else "",
        "<h2>Config</h2>",
        f"<pre>{html.escape(redact.redacted((rundir.path / 'config.json').read_text(encoding='utf-8')))}</pre>",
        "<h2>Manifest</h2>",
        f"<pre>{html.escape((rundir.path / 'manifest.json').read_text(encoding='utf-8'))}</pre>",
    ]
    page = f"<!doctype html><meta charset=utf-8><title>{html.escape(rundir.path.name)}</title><style>{STYLE}</style>"
    path = rundir.path / "report.html"
    # Text from other programs may contain lone surrogates, which UTF-8 cannot encode.
    atomic.write_bytes(path, (page + "\n".join(pieces)).encode(errors="backslashreplace"))
    return path


def _reward(sample: dict[str, Any]) -> str:
    return f"   <i>reward {sample['reward']:.3g}</i>" if "reward" in sample else ""


def _figures(summary: dict[str, Any]) -> dict[str, Any]:
    flat = {k: v for k, v in summary.items() if not isinstance(v, dict)}
    return flat | {f"held-out {k}": v for k, v in summary.get("heldout", {}).items()}


def _table(values: dict[str, Any]) -> str:
    def show(v: Any) -> str:
        if isinstance(v, float):
            return f"{v:,.4g}" if abs(v) >= 1e-3 else f"{v:g}"
        return f"{v:,}" if isinstance(v, int) else html.escape(v if isinstance(v, str) else json.dumps(v))

    cells = (f"<tr><th>{html.escape(str(k))}<td>{show(v)}" for k, v in values.items())
    return f"<table>{''.join(cells)}</table>"


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
        f'<tr><th><span class=key style="background:{colour(k)}"></span>{html.escape(k)}<td>{v:,.1f} s<td>{v / wall:.1%}'
        for k, v in kinds.items()
    )
    starts = f"{goodput['starts']} start" + "s" * (goodput["starts"] != 1)
    share = f"{goodput['share']:.1%} of it in steps whose result was kept"
    text = f"<p>{goodput['wall_seconds']:,.0f} s over {starts}; {share}.</p>"
    return f"<h2>Where the time went</h2>{text}<div class=time>{bar}</div><table>{lines}</table>"


def _curves(rows: list[dict[str, Any]], summary: dict[str, Any]) -> str:
    try:
        import matplotlib
    except ImportError:
        return "<p>No curves: matplotlib is not installed (<code>pip install -e '.[report]'</code>).</p>"
    matplotlib.use("Agg")
    from matplotlib import pyplot

    judged = ("heldout/bits_per_byte",) if any("heldout/bits_per_byte" in r for r in rows) else ACCURACIES
    panels: list[tuple[tuple[str, ...], str]] = [
        (("loss", "heldout/loss", "heldout/nll"), "linear"),
        (judged, "linear"),
        (("grad_norm", "learning_rate"), "log"),
        (("tokens_per_second",), "linear"),
        *(REWARDED if any("mismatch" in r for r in rows) else ()),
    ]
    figure, axes = pyplot.subplots(len(panels) // 2, 2, figsize=(11, 1.75 * len(panels)), layout="constrained")
    for axis, (names, scale) in zip(axes.flat, panels, strict=True):
        for name in names:
            points = [(r["step"], r[name]) for r in rows if isinstance(r.get(name), (int, float))]
            if points:
                axis.plot(*zip(*points, strict=True), label=name, marker="o" if name.startswith("heldout") else None, ms=4)
        axis.set(xlabel="step", yscale=scale)
        if scale == "linear" and "tokens_per_second" in names:
            axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
        if "heldout/bits_per_byte" in names:
            _baseline_lines(axis, summary.get("baselines") or {})
        if names is ACCURACIES:
            _baseline_lines(axis, {k: v for k, v in (summary.get("heldout") or {}).items() if k == "majority"})
        if axis.get_legend_handles_labels()[0]:
            axis.legend(frameon=False, fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    pyplot.close(figure)
    return f'<img alt="curves" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'


def _baseline_lines(axis: Any, baselines: dict[str, Any]) -> None:
    for i, (name, value) in enumerate(sorted(baselines.items())):
        axis.axhline(value, ls=":", lw=1, color=f"C{i + 2}", label=f"{name} {value:.3f}")
