"""Prints the table of families: the parameter count of every preset, by `eval_shape`, as Markdown.

  python -m experiments.families.run > experiments/families/table.md

Cost: a minute. tests/shape/test_presets.py compares the same counts with transformers and the papers.
"""

import importlib
import math
import pkgutil
from dataclasses import replace

import jax

from lm import cli, config
from lm.models import presets
from lm.models.transformer import abstract_params


def count(model: config.Model) -> int:
    """The number of parameters. Layers are scanned if the pattern allows, which is faster to trace."""
    stacks = {name: getattr(model, name) for name in ("encoder", "decoder")}
    scanned = {n: s and replace(s, scan=s.num_layers % len(s.pattern) == 0) for n, s in stacks.items()}
    return sum(math.prod(x.shape) for x in jax.tree.leaves(abstract_params(replace(model, **scanned))))


@cli.command
def main(argv: list[str] | None = None) -> int:
    cli.parser("experiments.families.run", __doc__).parse(argv)
    print("| file | what, and where its sizes are from | parameters |\n|---|---|---|")
    for found in pkgutil.iter_modules(presets.__path__):
        module = importlib.import_module(f"lm.models.presets.{found.name}")
        about = " ".join((module.__doc__ or "").split("\n\n")[0].split())
        sizes = [f"`{name}` {count(v):,}" for name, v in vars(module).items() if isinstance(v, config.Model)]
        grids = [
            f"`{name}[{key}]` {count(v):,}"
            for name, g in vars(module).items()
            if isinstance(g, dict)
            for key, v in g.items()
            if isinstance(v, config.Model)
        ]
        print(f"| `{found.name}` | {about} | {', '.join(sizes + grids)} |")
    return 0


if __name__ == "__main__":
    cli.enter(main)
