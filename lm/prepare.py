"""Prepares the data of a run: reads, cleans, deduplicates, splits, tokenizes and stores it, once.

    python -m lm.prepare --config=configs/quickstart.py [--config.data.tokenizer.vocab_size=4096]

Training prepares what is not prepared yet; this does it ahead of time, on a machine without an accelerator.
"""

import argparse
import sys

from lm import cli
from lm.config import resolve
from lm.data.corpus import stages
from lm.data.corpus.prepare import prepare


@cli.command
def main(argv: list[str] | None = None) -> int:
    """Prepares what a config file describes and prints the report. 0, or 2 after a mistake of the user's."""
    parser = argparse.ArgumentParser(
        prog="python -m lm.prepare",
        description="Read, clean, deduplicate, split, tokenize and store the data of a run. Done once.",
        epilog="Any value can be set: --config.data.tokenizer.vocab_size=4096",
    )
    parser.add_argument("--config", required=True, metavar="FILE", help="a file with get_config(); it is executed")
    rest, overrides = resolve.split_flags(sys.argv[1:] if argv is None else argv)
    run = resolve.load(parser.parse_args(rest).config, overrides)
    prepared = prepare(run.data)
    stages.show(prepared.report, prepared.path)
    return 0


if __name__ == "__main__":
    cli.leave(main())
