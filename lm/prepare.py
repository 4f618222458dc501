"""Prepares the data of a run: reads, cleans, deduplicates, splits, tokenizes and caches it.

  python -m lm.prepare --config=configs/quickstart.py
  python -m lm.prepare --config=configs/quickstart.py --config.data.cache=/data

Training prepares data that is not in the cache. This does it ahead of time, on a machine without an accelerator.
"""

from typing import TYPE_CHECKING

from lm import cli, config

if TYPE_CHECKING:
    from lm.data.corpus.prepare import Prepared


@cli.command
def main(argv: list[str] | None = None) -> int:
    run = cli.load(parser().parse(argv))
    prepared = prepared_for(run)
    from lm.data.corpus import stages

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
    return cli.parser("lm.prepare", __doc__, config=True)


if __name__ == "__main__":
    cli.enter(main)
