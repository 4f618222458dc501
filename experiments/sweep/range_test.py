"""The learning-rate range test (Smith, arXiv 1506.01186, section 3.3): a short run whose rate grows exponentially from step to
step, its loss against the rate, and a rate that this suggests.

The rate of every parameter grows by the same factor, from `low` to `high`, without warm-up or decay. A loss is that of the
batch after the update at its rate. The test ends early where the loss has risen to RISEN times the least.
"""

import shlex
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from experiments import pages, pictures
from lm import atomic, cli, config
from lm.config import resolve
from lm.errors import UserError

RISEN = 3.0
HIGHEST = 1e6  # rates are below it
SMOOTH = 0.03  # standard deviation of the smoothing, as a share of the steps


@dataclass(frozen=True)
class Found:
    """What a range test found. Rates and losses are float64 [n]."""

    rates: np.ndarray
    losses: np.ndarray

    @property
    def smooth(self) -> np.ndarray:
        """The losses, smoothed over log(rate) by a Gaussian, which unlike a moving average does not lag."""
        from scipy import ndimage

        return ndimage.gaussian_filter1d(self.losses, max(1.0, SMOOTH * len(self.losses)), mode="nearest")

    @property
    def least(self) -> int:
        """Where the smoothed loss is least."""
        return int(np.argmin(self.smooth))

    @property
    def steepest(self) -> int:
        """Where the smoothed loss falls fastest per log(rate), before it is least."""
        slope = np.gradient(self.smooth, np.log(self.rates))
        return int(np.argmin(slope[: self.least + 1]))

    @property
    def suggested(self) -> float:
        """The rate where the loss falls fastest."""
        return float(self.rates[self.steepest])

    @property
    def tenth(self) -> float:
        """A tenth of the rate where the loss is least, which others suggest (fastai's `lr_find`)."""
        return float(self.rates[self.least] / 10)

    @property
    def note(self) -> str:
        """Why the test shows nothing, or too little; "" if it does."""
        if self.least == 0:
            return "the loss never fell: begin at a lower rate"
        if self.least > 0.97 * len(self.rates):
            return "the loss still fell at the end: end at a higher rate"
        return ""


def ends(text: str) -> tuple[float, float]:
    """`"1e-6,1"` -> (1e-6, 1.0). UserError unless 0 < low < high < HIGHEST."""
    numbers = [resolve.literal(part.strip()) for part in text.split(",")]
    if len(numbers) != 2 or not all(type(x) in (int, float) for x in numbers) or not 0 < numbers[0] < numbers[1] < HIGHEST:
        raise UserError(
            f"--range_test={text}: give the lowest and the highest rate, above 0 and below {HIGHEST:,.0f}, such as 1e-6,1"
        )
    return float(numbers[0]), float(numbers[1])


def tested(run: config.Run, low: float, steps: int) -> config.Run:
    """The run of the test, at a constant rate `low`; a second rate (Muon's for other parameters) keeps its ratio to the first.
    It has a step more, whose loss is that after the last update."""
    o = run.optimizer
    ratio = o.adam_learning_rate / o.learning_rate if o.adam_learning_rate and o.learning_rate else 1.0
    second = low * ratio if o.adam_learning_rate else None
    constant = config.Schedule("constant", warmup=0)
    optimizer = replace(o, learning_rate=low, adam_learning_rate=second, schedule=constant, ema=None)
    return replace(run, optimizer=optimizer, train=replace(run.train, steps=steps + 1))


def losses(run: config.Run, low: float, high: float, steps: int) -> Found:
    """Trains the run of the test."""
    import jax
    import jax.numpy as jnp
    import optax

    from lm import optim, recipes, sharding
    from lm.data.loader import Position
    from lm.training import adapted, resume
    from lm.training.assembly import assemble
    from lm.training.recipe import abstract_batch
    from lm.training.step import make_step, plan_state

    recipe = recipes.recipe(run)
    run = adapted.complete(recipe.complete(tested(run, low, steps), None), recipe, None)
    parts = assemble(run, recipe)
    task, updates = parts.task, parts.task.updates.count if parts.task.updates else 1
    constant, _ = optim.make(run.optimizer, steps + 1, updates=updates, width=run.model.width)
    growth = (high / low) ** (1 / max(steps - 1, 1))
    tx = optax.chain(constant, optax.scale_by_schedule(lambda count: growth ** (count // updates)))
    shapes = abstract_batch(parts.row, run.train.batch_size)
    zeros = lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    plan = plan_state(lambda key: task.init(key, zeros()), tx, parts.mesh, ema=False)
    step = make_step(task.loss, tx, plan, optimizer=run.optimizer, train=run.train, asked=task.asked, updates=task.updates)
    with sharding.use(parts.mesh):
        state = resume.first_state(run, parts.data.tokenizer, plan, task)
        frozen = task.frozen.load(parts.frozen) if task.frozen else None
        source = recipe.source(parts, Position(0, 0, run.train.batch_size), range(steps + 1))
        if recipe.reads_params:
            source = adapted.View(parts, frozen).source(source)
        found: list[float] = []
        for k in range(steps + 1):
            state, metrics = step(state, frozen, source(k, state))
            found.append(float(metrics["loss"]))
            if not np.isfinite(found[-1]) or int(metrics["skipped"]) or found[-1] > RISEN * min(found):
                break
            if k and k % max(steps // 10, 1) == 0:
                print(
                    f"step {k}/{steps}  rate {low * growth ** (k - 1):.2e}  loss {found[-1]:.4f}", file=sys.stderr, flush=True
                )
    after = [x for x in found[1:] if np.isfinite(x)]
    if len(after) < 5:
        raise UserError(f"the loss left all bounds within {len(found)} steps at rates from {low:g}: begin at a lower rate")
    return Found(low * growth ** np.arange(len(after)), np.array(after))


def execute(run: config.Run, text: str, steps: int, workdir: Path, *, command: list[str]) -> str:
    """Runs the test, writes range.json, range.md, range.html and range.png into the folder, and returns what a terminal shows.
    `command`: the words that train the config."""
    low, high = ends(text)
    cli.start_jax()
    found = losses(run, low, high, steps)
    workdir.mkdir(parents=True, exist_ok=True)
    drawn = draw(found, workdir / "range.png")
    figures = {"rates": found.rates.tolist(), "losses": found.losses.tolist()}
    figures |= {"suggested": found.suggested, "tenth": found.tenth, "note": found.note}
    atomic.write_json(workdir / "range.json", figures)
    words = shlex.join([*command, f"--config.optimizer.learning_rate={found.suggested:.2g}", "--workdir=runs/best"])
    said = (
        f"Over {len(found.rates)} updates at rates from {low:g} to {found.rates[-1]:.2e}, the smoothed loss falls fastest at "
        f"{found.suggested:.2e}, and is least at {found.rates[found.least]:.2e}."
    )
    choice = f"Suggested: {found.suggested:.2g}, where it falls fastest. (A tenth of where it is least: {found.tenth:.2g}.)"
    blocks = [
        pages.Heading("Learning-rate range test", 1),
        pages.Paragraph(said),
        pages.Paragraph(f"No suggestion: {found.note}." if found.note else choice, bold=True),
        *([] if found.note else [pages.Code(words)]),
        pages.Picture(drawn.name, "loss against learning rate"),
    ]
    atomic.write_bytes(workdir / "range.md", pages.markdown(blocks).encode())
    atomic.write_bytes(workdir / "range.html", pages.page("Learning-rate range test", blocks, workdir).encode())
    lines = [said, f"No suggestion: {found.note}."] if found.note else [said, choice, words]
    return "\n".join([*lines, str(workdir / "range.md")])


def draw(found: Found, path: Path) -> Path:
    """Draws the loss against the rate, with the marks of a suggestion."""
    figure, axis = pictures.pyplot().subplots(figsize=(6.5, 4.2))
    axis.plot(found.rates, found.losses, color=pictures.GREY, lw=0.8, alpha=0.7, label="loss of each batch")
    axis.plot(found.rates, found.smooth, color=pictures.COLOURS[0], lw=1.8, label="smoothed")
    marks = {"falls fastest": (found.steepest, "s"), "least": (found.least, "v")}
    for i, (name, (at, shape)) in enumerate(marks.items()):
        rate, colour = found.rates[at], pictures.COLOURS[1 + i]
        axis.plot(rate, found.smooth[at], shape, color=colour, ms=8, zorder=3, label=f"{name}: {rate:.2e}")
    axis.axvline(found.tenth, color=pictures.COLOURS[3], ls="--", lw=1.2, label=f"a tenth of that: {found.tenth:.2e}")
    low, high = found.smooth.min(), found.smooth[0]
    axis.set(xscale="log", xlabel="learning rate", ylabel="loss of the training batch, nats")
    axis.set_ylim(low - 0.1 * (high - low), high + 0.5 * (high - low) + 1e-9)  # beyond is where it explodes
    pictures.log_ticks(axis)
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=8)
    return pictures.save(figure, path)
