"""Parts of Markdown files that commands write: what stands between `<!-- name -->` and `<!-- /name -->`."""

from pathlib import Path

from lm import atomic
from lm.errors import UserError

ROOT = Path(__file__).resolve().parents[1]


def fill(file: Path, name: str, text: str) -> None:
    """Replaces the part of this name and leaves the rest of the file as it is."""
    before, after = around(file, name)
    atomic.write_bytes(file, f"{before}{text.rstrip()}\n{after}".encode())


def around(file: Path, name: str) -> tuple[str, str]:
    """The text up to the part of this name and from its end on. UserError if there is none, so that a command can ask before
    it runs for minutes."""
    first, last = f"<!-- {name} -->\n", f"<!-- /{name} -->\n"
    before, found, rest = file.read_text("utf-8").partition(first)
    _, ended, after = rest.partition(last)
    if not found or not ended:
        raise UserError(f"{file} has no part between {first.strip()} and {last.strip()}: put the two lines where it goes")
    return before + first, last + after
