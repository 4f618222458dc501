"""The curves of a report, drawn with matplotlib into pictures that a page embeds."""

import base64
import io
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]
MISSING = "matplotlib is not installed (<code>pip install -e '.[report]'</code>)"
ACCURACIES = ("heldout/accuracy", "heldout/exact", "heldout/f1")  # of models that label or answer
UNITS = {
    **dict.fromkeys(("step", "skipped", "skipped_steps"), "steps"),
    **dict.fromkeys(("loss", "nll", "kl", "entropy"), "nats"),
    **dict.fromkeys(("bits_per_byte", "bits_per_byte_bound"), "bits per byte"),
    **dict.fromkeys(("accuracy", "exact", "f1", "majority", "clipped", "truncated", "mfu"), "share"),
    **dict.fromkeys(("tokens", "tokens_seen", "tokens_with_loss", "length"), "tokens"),
    **{"tokens_per_second": "tokens/s", "steps_per_second": "steps/s", "model_flops": "FLOPs", "raw_bytes": "bytes"},
    **{"seconds": "s", "items": "items"},
}


def unit(name: str) -> str:
    """The unit of a figure of the log or the summary, "" if it has none."""
    return UNITS.get(name.removeprefix("heldout/"), "")


def number(value: float) -> str:
    """The one format of numbers on pages: four digits, thousands with commas, powers of ten from a million on for floats."""
    if isinstance(value, int):
        return f"{value:,}"
    size = abs(value)
    if size >= 1e6 or 0 < size < 1e-3:
        return f"{value:.3e}"
    return f"{value:,.0f}" if size >= 999.95 or value == 0 else f"{value:#.4g}"


@dataclass(frozen=True)
class Panel:
    """One pair of axes: the figures that share its vertical axis, which is called `label`."""

    names: tuple[str, ...]
    label: str
    scale: str = "linear"
    from_zero: bool = False


# Panels of runs that learn from rewards of what they write.
REWARDED = (
    Panel(("reward", "heldout/reward"), "reward"),
    Panel(("kl", "entropy", "clipped", "truncated"), "nats (kl, entropy); share"),
    Panel(("length",), "length of a sample (tokens)"),
    Panel(("mismatch", "mismatch_max"), "mismatch of log-probabilities (nats)", "log"),
)


def panels(rows: Sequence[Row]) -> list[Panel]:
    """The panels that these rows of metrics.jsonl have figures for."""
    rewarded = any("mismatch" in row for row in rows)
    in_bits = any("heldout/bits_per_byte" in row for row in rows)
    every = (
        Panel(("loss", "heldout/loss", "heldout/nll"), "loss" if rewarded else "loss (nats)"),
        Panel(("heldout/bits_per_byte",), "held-out bits per byte") if in_bits else Panel(ACCURACIES, "held-out share right"),
        Panel(("learning_rate",), "learning rate"),
        Panel(("grad_norm",), "gradient norm before clipping", "log"),
        Panel(("tokens_per_second",), "tokens per second", from_zero=True),
        Panel(("mfu",), "model FLOPs utilisation (share)", from_zero=True),
        *(REWARDED if rewarded else ()),
    )
    return [panel for panel in every if any(points(rows, name) for name in panel.names)]


def points(rows: Sequence[Row], name: str) -> list[tuple[int, float]]:
    """(step, value) of each row that has a number of this name."""
    return [(row["step"], row[name]) for row in rows if isinstance(row.get(name), (int, float))]


def curves(rows: Sequence[Row], summary: Mapping[str, Any]) -> str:
    """The curves of one run as an <img>, beside its baselines and the majority's share; a sentence if there are none."""
    drawn = panels(rows)
    if not drawn:
        return "<p>No curves yet: nothing is logged.</p>"
    if (made := grid(len(drawn))) is None:
        return f"<p>No curves: {MISSING}.</p>"
    figure, axes = made
    for axis, panel in zip(axes, drawn, strict=True):
        for name in panel.names:
            if found := points(rows, name):
                dots = "o" if name.startswith("heldout") or len(found) == 1 else None
                axis.plot(*zip(*found, strict=True), label=name, marker=dots, ms=4)
        if "heldout/bits_per_byte" in panel.names:
            _lines(axis, summary.get("baselines") or {})
        if panel.names is ACCURACIES:
            _lines(axis, {k: v for k, v in (summary.get("heldout") or {}).items() if k == "majority"})
        finish(axis, "step", panel)
    return image(figure, "curves over steps")


def _lines(axis: Any, values: Mapping[str, float]) -> None:
    for i, (name, value) in enumerate(sorted(values.items())):
        axis.axhline(value, ls=":", lw=1, color=f"C{i + 2}", label=f"{name} {value:.3f}")


def grid(count: int, columns: int = 2) -> tuple[Any, list[Any]] | None:
    """A figure with `count` axes, `columns` in a row; None without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    columns = min(columns, count)
    rows = -(-count // columns)
    wide, high = 5.5 * columns, 3.3 * rows
    figure = Figure(figsize=(wide, high))
    # Margins in inches: an automatic layout draws everything twice, while a training waits.
    figure.subplots_adjust(0.85 / wide, 0.55 / high, 1 - 0.15 / wide, 1 - 0.3 / high, wspace=0.24, hspace=0.32)
    axes = figure.subplots(rows, columns, squeeze=False).flat
    every = list(axes)
    for spare in every[count:]:
        spare.set_axis_off()
    return figure, every[:count]


def finish(axis: Any, x: str, panel: Panel) -> None:
    """Names the axes, and adds a grid and, if there is more than one curve to tell apart, a legend."""
    from matplotlib.ticker import EngFormatter

    axis.set(xlabel=x, ylabel=panel.label, yscale=panel.scale)
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    axis.set_xlim(left=0)
    if panel.scale == "linear":
        axis.ticklabel_format(axis="y", scilimits=(-2, 5), useOffset=False)
    if panel.from_zero:
        axis.set_ylim(bottom=0)
        axis.yaxis.set_major_formatter(EngFormatter(sep=""))
    axis.grid(alpha=0.3)
    if len(axis.get_legend_handles_labels()[0]) > 1:
        axis.legend(frameon=False, fontsize=8)


def image(figure: Any, text: str) -> str:
    """The figure as an <img> that holds its own PNG."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():  # letters that matplotlib's font lacks are drawn as boxes
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(buffer, format="png", dpi=110)
    return f'<img alt="{text}" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'
