"""Puts runs side by side on one page.

  python -m lm.report runs/a runs/b runs/c
  python -m lm.report runs/* gs://bucket/runs/d --out=all.html

Each D is the --workdir of a run, finished or not, here or in a bucket (gs://
or another that fsspec reads). The page has a table of the results, curves over
steps, tokens, FLOPs and seconds, the differences of the configs, and the latest
samples. It is a single file that needs nothing else, so it can be sent and
opened anywhere. (A run keeps a page of its own in its WORKDIR/report.html, from
the first evaluation on.)
"""

from pathlib import Path

from lm import cli
from lm.errors import UserError


@cli.command
def main(argv: list[str] | None = None) -> int:
    flags = parser().parse(argv)
    out = Path(flags.out)
    if not flags.out or out.is_dir() or not out.parent.is_dir():
        raise UserError(f"--out={flags.out} is no name for a file in a folder that exists; give one, such as --out=runs.html")
    from lm.training.report_runs import write_comparison

    print(write_comparison(flags.directories, out))
    return 0


def parser() -> cli.Parser:
    p = cli.parser("lm.report", __doc__)
    p.add_argument("directories", nargs="+", metavar="D", help="the --workdir of a run")
    p.add_argument("--out", default="comparison.html", metavar="F", help="the page (default: comparison.html)")
    return p


if __name__ == "__main__":
    cli.enter(main)
