"""Prepares the data of a run: reads, cleans, deduplicates, splits, tokenizes and caches it.

  python -m lm.prepare --config=configs/quickstart.py
  python -m lm.prepare --config=configs/quickstart.py --config.data.cache=/data

Training prepares data that is not in the cache. This does it ahead of time, on a machine without an accelerator.
"""

from lm import cli, config
from lm.data.corpus import stages
from lm.data.corpus.prepare import Prepared, prepare


@cli.command
def main(argv: list[str] | None = None) -> int:
    run = cli.load(parser().parse(argv))
    prepared = prepared_for(run)
    stages.show(prepared.report, prepared.path)
    return 0


def prepared_for(run: config.Run) -> Prepared:
    """Returns the data as training will read it. Fine-tuning uses the tokenizer of the model in `train.init_from`."""
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
