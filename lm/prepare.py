"""Prepares the data of a run: reads, cleans, deduplicates, splits, tokenizes and caches it.

  python -m lm.prepare --config=configs/quickstart.py
  python -m lm.prepare --config=configs/quickstart.py --config.data.cache=/data
  python -m lm.prepare --config=configs/quickstart.py --on=ray

Training prepares data that is not in the cache. This does it ahead of time, on a machine without an accelerator, or on a Ray
cluster (docs/data.md). The result has the same bits wherever it is prepared. After a kill, the same command goes on.
"""

from typing import TYPE_CHECKING

from lm import cli, config
from lm.config.ranges import Positive

if TYPE_CHECKING:
    from lm.data.corpus.prepare import Prepared


@cli.command
def main(argv: list[str] | None = None) -> int:
    flags = parser().parse(argv)
    run = cli.load(flags)
    from lm.data.corpus import executors, stages

    with executors.using(flags.on, int(flags.memory * 1e9)):
        prepared = prepared_for(run)

    stages.show(prepared.report, prepared.path)
    return 0


def prepared_for(run: config.Run) -> "Prepared":
    """Returns the data as training will read it. Fine-tuning uses the tokenizer of the model in `train.init_from`."""
    from lm.data.corpus.prepare import prepare

    if isinstance(run.recipe, config.Pretrain):
        return prepare(run.data)
    cli.start_jax()
    from lm import recipes

    recipe = recipes.recipe(run)
    return recipe.data(recipe.complete(run, None), progress=True)


def parser() -> cli.Parser:
    p = cli.parser("lm.prepare", __doc__, config=True)
    p.add_argument(
        "--on",
        default="processes",
        metavar="PLACE",
        help="process (this one), processes (one a core; processes:8), ray (the cluster of this machine) or ray://HOST:10001 "
        "(default %(default)s)",
    )
    p.add_argument(
        "--memory",
        hint=Positive,
        default=1.0,
        metavar="GB",
        help="gigabytes that sorting may take in one process; the result is the same",
    )
    return p


if __name__ == "__main__":
    cli.enter(main)
