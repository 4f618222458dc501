"""What a run prints: a progress bar, the parameters that it trains, its results."""

from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from lm.errors import printable
from lm.training.recipe import Computation
from lm.training.rundir import RunDir


class Display:
    """A progress bar on a terminal; elsewhere a line for each twentieth of the run."""

    def __init__(self, total: int, first: int, quiet: bool = False):
        self.console = Console(stderr=True, quiet=quiet)
        columns = ("step", MofNCompleteColumn(), BarColumn(), TextColumn("{task.fields[text]}"))
        self.bar = Progress(
            *columns, TimeElapsedColumn(), TimeRemainingColumn(), console=self.console, disable=not self.console.is_terminal
        )
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
        """Prints the last samples, the held-out figures, the baselines and where the report is."""
        for text in rundir.rows("samples.jsonl")[-3:]:
            self.say(f"\n> {printable(text['prompt'])} -> {printable(text['text'])}")
        self.say("")
        for name, value in summary["heldout"].items():
            self.say(f"held-out {name:<14} {value:,.4f}")
        for name, value in (summary["baselines"] or {}).items():
            self.say(f"  baseline {name:<22} {value:.4f} bits per byte")
        self.say(f"\nreport: {report}")


def parameter_table(made: Computation, depth: int = 3) -> str:
    """Returns lines with the number of parameters of each module, down to `depth` names, and the model FLOPs of a step."""
    counts: dict[str, int] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(made.plan.abstract.params)[0]:
        name = "/".join(jax.tree_util.keystr(path, simple=True, separator="/").split("/")[:depth])
        counts[name] = counts.get(name, 0) + leaf.size
    total = sum(counts.values())
    lines = [f"{n:>14,}  {name}" for name, n in counts.items()]
    if made.frozen is not None:
        held = sum(leaf.size for leaf in jax.tree.leaves(made.frozen))
        lines.append(f"{held:>14,}  frozen, beside them")
    return "\n".join([*lines, f"{total:>14,}  parameters", f"{made.flops_per_step:>14.3e}  model FLOPs a step"])
