"""What a run prints: a progress bar, the parameters that it trains, its results."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text

from lm.errors import printable
from lm.training.recipe import Computation
from lm.training.rundir import RunDir

LAYER = re.compile(r"(?<=group_)\d+")
NARROW = 80  # columns of a terminal below which there is no bar and no elapsed time


class _Latest(ProgressColumn):
    """The figures of the latest log. The only column that gives way when a terminal is too narrow for all."""

    def __init__(self) -> None:
        super().__init__(table_column=Column(no_wrap=False))

    def render(self, task: Task) -> Text:
        return Text(task.fields["text"], no_wrap=True, overflow="ellipsis")


class Display:
    """A progress bar on a terminal, which shows the step and the time that is left down to 40 columns; elsewhere a line for
    each twentieth of the run."""

    def __init__(self, total: int, first: int, quiet: bool = False):
        self.console = Console(stderr=True, quiet=quiet)
        whole = lambda: Column(no_wrap=True)
        step = ("step", MofNCompleteColumn(table_column=whole()))
        left = ("left", TimeRemainingColumn(table_column=whole()))
        wide = (*step, BarColumn(bar_width=10), _Latest(), TimeElapsedColumn(table_column=whole()), *left)
        columns = wide if self.console.width >= NARROW else (*step, *left, _Latest())
        self.bar = Progress(*columns, console=self.console, disable=not self.console.is_terminal)
        self.task = self.bar.add_task("train", total=total, completed=first, text="compiling")
        self.total, self.printed = total, first

    def show(self, step: int, text: str) -> None:
        self.bar.update(self.task, completed=step, text=text)
        if not self.console.is_terminal and (step - self.printed >= self.total / 20 or step == self.total):
            self.say(f"step {step}/{self.total}  {text}")
            self.printed = step

    def say(self, text: str) -> None:
        """Prints lines of text, with control characters escaped."""
        self.console.print("\n".join(map(printable, text.split("\n"))), highlight=False, markup=False, soft_wrap=True)

    def introduce(self, made: Computation, left_out: dict[str, float], why: str) -> None:
        """`left_out`: the share of each split's text that is in no row, and `why` it is not."""
        self.say(parameter_table(made))
        for split, share in left_out.items():
            if share >= 0.001:
                self.say(f"{share:.1%} of the {split} text is in no row: {why}")

    def results(self, summary: dict[str, Any], rundir: RunDir, report: Path) -> None:
        """Prints the samples of the last step, the held-out figures, the baselines and where the report is."""
        samples = rundir.rows("samples.jsonl")
        latest = [sample for sample in samples if sample["step"] == samples[-1]["step"]]
        if latest:
            self.say(f"\nsamples at step {latest[0]['step']}:")
        for sample in latest[:3]:
            self.say(f"\n> {printable(sample['prompt'])} -> {printable(sample['text'])}")
        self.say("")
        for name, value in summary["heldout"].items():
            self.say(f"held-out {name:<14} {figure(value)}")
        for name, value in (summary["baselines"] or {}).items():
            self.say(f"  baseline {name:<22} {figure(value)} bits per byte")
        self.say(f"\nreport: {report}")


def figure(value: float) -> str:
    """A count as it is, a measure with four decimals."""
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4f}"


def parameter_table(made: Computation, depth: int = 3) -> str:
    """Returns lines with the number of parameters of each module, down to `depth` names, and the model FLOPs of a step."""
    counts: dict[str, int] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(made.plan.abstract.params)[0]:
        name = "/".join(jax.tree_util.keystr(path, simple=True, separator="/").split("/")[:depth])
        counts[name] = counts.get(name, 0) + leaf.size
    total = sum(counts.values())
    lines = grouped(counts)
    if made.frozen is not None:
        held = sum(leaf.size for leaf in jax.tree.leaves(made.frozen))
        lines.append(f"{held:>14,}  frozen, beside them")
    return "\n".join([*lines, f"{total:>14,}  parameters", f"{made.flops_per_step:>14.3e}  model FLOPs a step"])


def grouped(counts: Mapping[str, int]) -> list[str]:
    """A line for each module, or for all that differ only in the number of their layer group and are as large.

    {"decoder/group_0/block_0": 10, "decoder/group_1/block_0": 10} is "            20  decoder/group_0-1/block_0, 2 of 10".
    """
    alike: dict[tuple[str, int], list[str]] = {}
    for name, n in counts.items():
        alike.setdefault((LAYER.sub("{}", name), n), []).extend(LAYER.findall(name) or [""])
    one = lambda pattern, n, at: (
        f"{n * len(at):>14,}  {pattern.format(_spans(at))}" + (f", {len(at)} of {n:,}" if at[1:] else "")
    )
    return [one(pattern, n, at) for (pattern, n), at in alike.items()]


def _spans(numbers: list[str]) -> str:
    """Numbers as spans: 0, 1, 2 and 5 are "0-2,5"."""
    if numbers == [""]:
        return ""
    spans: list[list[int]] = []
    for n in sorted(map(int, numbers)):
        if spans and n == spans[-1][-1] + 1:
            spans[-1].append(n)
        else:
            spans.append([n])
    return ",".join(f"{span[0]}-{span[-1]}" if span[1:] else f"{span[0]}" for span in spans)
