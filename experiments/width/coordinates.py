"""Draws the coordinate check of muP (arXiv 2203.03466, figure 5): how far layers and logits move in the first steps, by width.

  python -m experiments.width.coordinates
  python -m experiments.width.coordinates --optimizer=lion --out=runs/lion

Trains models of each width for a few steps, as they are and with optimizer.base_width, and prints the slope of the mean
absolute change of a coordinate against the width, both in logarithms: 0 if no layer moves more because the model is wide, 1 if
it moves as the width. Writes coordinates.png into --out, and the table into README.md if there is one. A minute on two cores.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from experiments import pictures
from experiments.filled import fill
from experiments.width import study
from lm import cli, config
from lm.config.ranges import Positive

HERE = Path(__file__).parent
PART = "coordinates"  # of README.md
WIDTHS, STEPS, SEEDS, ROWS = (64, 128, 256, 512), 4, 3, 8
Moved = Mapping[str, np.ndarray]  # a layer's name -> float [steps]: mean absolute change of its output's coordinates
Found = Mapping[str, Mapping[int, Moved]]  # of each parametrization and width


def parser() -> cli.Parser:
    p = cli.parser("experiments.width.coordinates", __doc__)
    kinds = ["adamw", "lion", "muon"]
    p.add_argument("--optimizer", default="adamw", choices=kinds, metavar="NAME", help="adamw, lion or muon")
    p.add_argument("--rate", default=2.0**-7, hint=Positive, help="the learning rate; of muon also that of its Adam")
    p.add_argument("--out", default=str(HERE), help="folder of coordinates.png, and of a README.md with the table")
    return p


@cli.command
def main(argv: list[str] | None = None) -> int:
    flags = parser().parse(argv)
    cli.start_jax()
    optimizer = config.Optimizer(flags.optimizer, flags.rate, config.Schedule("constant", warmup=0))
    found = by_width(run_of, optimizer)
    out = Path(flags.out)
    out.mkdir(parents=True, exist_ok=True)
    draw(found, out / "coordinates.png")
    text = table(found)
    if (out / "README.md").exists():
        fill(out / "README.md", PART, text)
    print(text)
    return 0


def run_of(width: int) -> tuple[config.Run, Any]:
    """A run of the study at this width, and the batch of the default corpus that each of its steps reads."""
    from lm.data.corpus.prepare import prepare
    from lm.recipes import recipe

    run = next(cell.run for cell in study.study().cells.values() if cell.run.model.width == width)
    rows = recipe(run).rows(run, prepare(run.data, progress=False))["train"]
    return run, rows.rows(np.arange(ROWS))


def by_width(
    make: Callable[[int], tuple[config.Run, Any]],
    optimizer: config.Optimizer,
    *,
    widths: Sequence[int] = WIDTHS,
    seeds: int = SEEDS,
    steps: int = STEPS,
) -> Found:
    """How much the outputs of the run that `make(width)` returns, with its batch, move in the standard parametrization and
    under muP, where the first width is the base. Both begin with the same parameters."""
    import flax.linen as nn
    import jax

    from lm.recipes import task

    found: dict[str, dict[int, Moved]] = {kind: {} for kind in study.KINDS}
    for width in widths:
        run, batch = make(width)
        init = jax.jit(lambda key, run=run, batch=batch: nn.unbox(task(run).init(key, batch)))
        params = [init(jax.random.key(seed)) for seed in range(seeds)]
        for kind, of_width in found.items():
            base = widths[0] if kind == "mup" else None
            of_width[width] = moved(replace(run, optimizer=replace(optimizer, base_width=base)), batch, params, steps)
    return found


def moved(run: config.Run, batch: Any, starts: Sequence[Any], steps: int) -> Moved:
    """Trains a run's model, of one stack that is not scanned, for so many steps on one batch, from each of some parameters.
    Returns how much the embeddings, each layer's output and the logits have changed after each step, a mean over the starts."""
    import jax
    import jax.numpy as jnp
    import optax

    from lm import optim
    from lm.models.block import Block
    from lm.models.embedding import Embed
    from lm.models.transformer import Transformer
    from lm.recipes import task

    model, made = Transformer(run.model), task(run)
    tx, _ = optim.make(run.optimizer, steps, width=run.model.width)

    def outputs(params: Any) -> dict[str, jax.Array]:
        chosen = lambda module, name: isinstance(module, (Embed, Block)) and name == "__call__"
        logits, sown = model.apply({"params": params}, batch, capture_intermediates=chosen, mutable=["intermediates"])
        named = {jax.tree_util.keystr(path): x for path, x in jax.tree_util.tree_flatten_with_path(sown)[0]}
        numbers = lambda name: [int(number) for number in re.findall(r"_(\d+)'", name)]  # of group and block; [] of embeddings
        embedded, *layers = (named[name] for name in sorted(named, key=numbers))
        return {"embedding": embedded, **{f"layer {i}": x for i, x in enumerate(layers, 1)}, "logits": logits}

    @jax.jit
    def step(params: Any, state: Any) -> tuple[Any, Any, dict[str, jax.Array]]:
        """The parameters and moments after a step, and the outputs before it."""
        gradient = jax.grad(lambda p: made.loss(p, None, batch, None)[0].mean)(params)
        change, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, change), state, outputs(params)

    changes = []
    for params in starts:
        state, seen = tx.init(params), []
        for _ in range(steps + 1):
            params, state, found = step(params, state)
            seen.append(found)
        changes.append([[float(jnp.mean(jnp.abs(now[name] - seen[0][name]))) for now in seen[1:]] for name in seen[0]])
    return dict(zip(seen[0], np.mean(changes, axis=0), strict=True))


def slopes(found: Mapping[int, Moved]) -> dict[str, float]:
    """Of each layer's change after the last step against the width, in logarithms: least squares."""
    widths = np.log(list(found))
    last = lambda name: np.log([of_layer[name][-1] for of_layer in found.values()])
    return {name: float(np.polyfit(widths, last(name), 1)[0]) for name in next(iter(found.values()))}


def table(found: Found) -> str:
    """Markdown: the slope of each layer, in both parametrizations."""
    each = {kind: slopes(of_width) for kind, of_width in found.items()}
    lines = [f"| output | {' | '.join(study.KINDS.values())} |", "|---|---:|---:|"]
    for name in each["mup"]:
        lines.append(f"| {name} | {' | '.join(f'{each[kind][name]:+.2f}' for kind in study.KINDS)} |")
    return "\n".join(lines) + "\n"


def draw(found: Found, path: Path) -> None:
    """A row of panels for each parametrization, a panel for each output, a line for each step."""
    from matplotlib.ticker import NullFormatter

    plot = pictures.pyplot()
    names = list(next(iter(found["mup"].values())))
    figure, axes = plot.subplots(
        len(found), len(names), figsize=(2.6 * len(names), 4.8), sharex=True, sharey="col", squeeze=False
    )
    for row, (kind, of_width) in zip(axes, found.items(), strict=True):
        fitted = slopes(of_width)
        for axis, name in zip(row, names, strict=True):
            widths = list(of_width)
            for step in range(len(of_width[widths[0]][name])):
                colour, style = pictures.COLOURS[step % 7], pictures.STYLES[step % 4]
                values = [of_layer[name][step] for of_layer in of_width.values()]
                axis.plot(widths, values, style, color=colour, marker="o", ms=3, label=f"step {step + 1}")
            axis.set(xscale="log", yscale="log", xticks=widths, xticklabels=widths)
            axis.set_title(f"{study.KINDS[kind]}, {name}: slope {fitted[name]:+.2f}", size=9)
            axis.xaxis.set_minor_formatter(NullFormatter())
            axis.grid(alpha=0.3)
        row[0].set_ylabel("mean absolute change")
    for axis in axes[-1]:
        axis.set_xlabel("width")
    axes[-1, 1].legend(fontsize=7, loc="upper right")  # where no line is
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plot.close(figure)


if __name__ == "__main__":
    cli.enter(main)
