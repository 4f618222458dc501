"""Prepares the data of a run: reads, cleans, deduplicates, splits, tokenizes and stores it, once.

  python -m lm.prepare --config=configs/quickstart.py
  python -m lm.prepare --config=configs/quickstart.py --config.data.cache=/data

Training prepares what is not prepared yet; this does it ahead of time, on a machine without an accelerator.
"""

from lm import cli
from lm.data.corpus import stages
from lm.data.corpus.prepare import prepare


@cli.command
def main(argv: list[str] | None = None) -> int:
    run = cli.load(parser().parse(argv))
    prepared = prepare(run.data)
    stages.show(prepared.report, prepared.path)
    return 0


def parser() -> cli.Parser:
    return cli.parser("lm.prepare", __doc__, config=True)


if __name__ == "__main__":
    cli.enter(main)
