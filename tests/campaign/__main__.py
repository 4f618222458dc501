"""Injects faults into real runs, one after the other, and reports what happened.

    python -m tests.campaign [--only REGEX] [--out FILE.md] [--list]

Config values, files, corpora, names, conversion, signals, limits: each injection asserts an invariant (a user's mistake gives a
one-line error and exit code 2; damage costs no more than the damaged file; a stopped run resumes to the same bits). All of
them take about five minutes on two quiet cores; table.md has the results of the last time. 20 of the injections are among the
tests (tests/e2e/test_campaign.py). Exit code 1 if any invariant does not hold.
"""

import argparse
import re
import sys
import tempfile
import time
import traceback
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tests.campaign import convert, data, files, processes, values
from tests.campaign.bench import Bench, Injection

INJECTIONS: list[Injection] = [
    injection for module in (values, files, data, convert, processes) for injection in module.INJECTIONS
]


def attempt(injection: Injection, bench: Bench) -> tuple[bool, str]:
    """Runs an injection; returns whether its invariant held, and what happened in words."""
    try:
        return True, injection.run(bench)
    except AssertionError as error:
        return False, str(error) or traceback.format_exc(limit=-1)
    except Exception as error:  # an error of the injection itself is a failure as well
        return False, f"{type(error).__name__}: {error}"


def table(results: list[tuple[Injection, bool, str]]) -> str:
    """Markdown: a row for each injection."""
    cell = lambda text: " ".join(text.replace("|", "\\|").split())
    head = ["| area | injection | holds | seen |", "|---|---|---|---|"]
    return "\n".join(
        [
            *head,
            *(
                f"| {i.area} | {cell(i.name)} | {'yes' if held else '**no**'} | {cell(seen)[:240]} |"
                for i, held, seen in results
            ),
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.campaign", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", metavar="REGEX", help="injections whose area and name match")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the table there, as Markdown")
    parser.add_argument("--list", action="store_true", help="name them and stop")
    flags = parser.parse_args()
    chosen = [i for i in INJECTIONS if re.search(flags.only, f"{i.area}: {i.name}")]
    if flags.list:
        print("\n".join(f"{i.area}: {i.name}" for i in chosen))
        return 0
    results: list[tuple[Injection, bool, str]] = []
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with tempfile.TemporaryDirectory(prefix="campaign-") as root, Progress(*columns, console=console) as bar:
        bench, task = Bench(Path(root)), bar.add_task("injections", total=len(chosen))
        for injection in chosen:
            began = time.perf_counter()
            held, seen = attempt(injection, bench)
            seen = seen.replace(root, "ROOT")
            results.append((injection, held, seen))
            mark = "ok  " if held else "FAIL"
            seconds = time.perf_counter() - began
            console.print(
                f"{mark} {seconds:5.1f} s  {injection.area}: {injection.name}: {seen[:300]}", highlight=False, markup=False
            )
            bar.advance(task)
        bench.close()
    if flags.out:
        flags.out.write_text(table(results) + "\n")
    failed = [i for i, held, _ in results if not held]
    console.print(f"{len(results) - len(failed)} of {len(results)} hold", highlight=False)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
