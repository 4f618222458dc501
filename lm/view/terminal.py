"""Strips and tables in a terminal, or as plain text where there is none (NO_COLOR, a pipe)."""

from collections.abc import Sequence

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from lm.errors import printable
from lm.view.counts import Table
from lm.view.look import Look
from lm.view.strips import NOTHING, Row, Strip

LABEL = 10  # columns before the tokens
WIDEST = 24  # columns of a token
STYLES = {"text": "", "mask": "bold red", "sentinel": "bold magenta", "role": "bold yellow", "special": "bold cyan"}
STYLES |= {"prefix": "underline", "asked": "green"}
SPARSE = ("predicts", "weight", "prefix")  # lines that are left out where they have no entry


def show(look: Look, console: Console) -> None:
    """Prints everything on a page."""
    say = lambda text: console.print(text, soft_wrap=True)
    say(Text(printable(look.title), "bold"))
    for line in look.about:
        say(Text(printable(line)))
    if look.legend:
        say(Text(", ").join(Text(words, STYLES[kind]) for kind, words in look.legend))
    for row in look.rows:
        for text in row_texts(row, console.width, ids=look.ids):
            say(text)
    for table in look.tables:
        say("")
        say(Text(table.title, "bold"))
        console.print(grid(table, console.width))
        say(Text(table.note, "dim"))
    for line in look.notes:
        say(Text(printable(line)))


def row_texts(row: Row, width: int, *, ids: bool) -> list[Text]:
    """The lines of a row."""
    out = [Text(""), Text(printable(row.title), "bold")]
    out += [Text(f"{name}: {printable(value)}") for name, value in row.facts.items()]
    for name, strips in row.parts.items():
        for strip in strips:
            out += [Text(strip.headed(name)), *strip_texts(strip, width, ids=ids)]
    return out


def strip_texts(strip: Strip, width: int, *, ids: bool = False) -> list[Text]:
    """A block of lines for as many tokens as fit into `width` columns, a token below another what is said of it; then the next
    block; lines without an entry in a block are left out. `ids`: with a line of their numbers in the vocabulary."""
    lines = {"at": [str(j) for j in range(len(strip.ids))]} | strip.lines
    if ids:
        lines["id"] = [str(i) for i in strip.ids]
    widest = max(1, min(WIDEST, width - LABEL - 1))
    cells = {name: [_clipped(text, widest) for text in texts] for name, texts in lines.items()}
    widths = [max(map(cell_len, column)) + 1 for column in zip(*cells.values(), strict=True)]
    out = []
    for first, last in _blocks(widths, max(width - LABEL, widest + 1)):
        for name, texts in cells.items():
            if name in SPARSE and set(texts[first:last]) == {NOTHING}:
                continue
            line = Text().append(name.ljust(LABEL), "dim")
            for j in range(first, last):
                line.append(texts[j], _style(strip, name, j))
                line.append(" " * (widths[j] - cell_len(texts[j])))
            line.rstrip()
            out.append(line)
        out.append(Text(""))
    return out


def _style(strip: Strip, name: str, j: int) -> str:
    if name == "predicts":
        return STYLES["asked"] if strip.asked[j] else "dim"
    if name != "reads":
        return "dim"
    return " ".join(filter(None, (STYLES[strip.kinds[j]], STYLES["prefix"] if strip.prefix[j] else "")))


def _blocks(widths: Sequence[int], room: int) -> list[tuple[int, int]]:
    """(first, last + 1) of runs of columns whose widths sum to at most `room`."""
    found, first, used = [], 0, 0
    for j, width in enumerate(widths):
        if used + width > room and j > first:
            found.append((first, j))
            first, used = j, 0
        used += width
    return [*found, (first, len(widths))] if widths else []


def _clipped(text: str, most: int) -> str:
    return text if cell_len(text) <= most else set_cell_size(text, most - 1) + "…"


def grid(table: Table, width: int) -> Grid:
    """The table of rich, folded where it is long and the terminal wide."""
    if table.long:
        sizes = [max(min(cell_len(cell), WIDEST) for cell in column) for column in zip(table.head, *table.rows, strict=True)]
        table = table.folded(max(1, (width + 2) // (sum(sizes) + 2 * len(sizes))))
    out = Grid(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for name in table.head:
        out.add_column(name, justify="left" if name in table.left else "right", overflow="fold")
    for row in table.rows:
        out.add_row(*(Text(_clipped(printable(cell), WIDEST) if table.long else printable(cell)) for cell in row))
    return out
