"""Sections of Markdown files that commands write: the text between `<!-- name -->` and `<!-- /name -->`."""

from pathlib import Path

from lm import atomic
from lm.errors import UserError

ROOT = Path(__file__).resolve().parents[1]


def fill(file: Path, name: str, text: str) -> None:
    """Replaces the section `name` of the file by `text`. Raises UserError if there is none."""
    before, after = around(file, name)
    atomic.write_bytes(file, f"{before}{text.rstrip()}\n{after}".encode())


def around(file: Path, name: str) -> tuple[str, str]:
    """The text before and after the section, with its markers. Raises UserError if there is none; commands call it first, so
    that they fail before they run for minutes."""
    first, last = f"<!-- {name} -->\n", f"<!-- /{name} -->\n"
    before, found, rest = file.read_text("utf-8").partition(first)
    _, ended, after = rest.partition(last)
    if not found or not ended:
        raise UserError(f"{file} has no section between {first.strip()} and {last.strip()}: add the two lines")
    return before + first, last + after
