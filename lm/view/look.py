"""What `lm.show` found, for a terminal and for a page."""

from dataclasses import dataclass, field

from lm.view.counts import Table
from lm.view.pieces import KINDS
from lm.view.strips import Row


@dataclass(frozen=True)
class Look:
    """`about` are lines before the rows, `notes` lines at the end. `ids`: whether numbers of tokens are shown beside them."""

    title: str
    about: list[str] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    ids: bool = False

    @property
    def legend(self) -> list[tuple[str, str]]:
        """(kind, words) of what is marked in the rows: kinds of tokens, "prefix" and "asked"."""
        strips = [strip for row in self.rows for part in row.parts.values() for strip in part]
        words = {kind: text for kind, text in KINDS.items() if kind != "text" and any(kind in strip.kinds for strip in strips)}
        words |= {"prefix": "prefix, which the whole segment sees"} if any(any(s.prefix) for s in strips) else {}
        words |= {"asked": "predicted: below the token that it is asked at"} if any(any(s.asked) for s in strips) else {}
        return [*words.items()]
