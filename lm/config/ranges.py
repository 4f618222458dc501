"""Types for the config's numbers and texts that carry the allowed values; `lm.config.resolve.build` checks them.

    steps: Count        # an int of 1 or more
    dropout: Decay      # a float of 0 or more and less than 1

Every field of `lm.config` that holds a number or a text has one of these types (`tests/unit/config/test_ranges.py` checks all).
Conditions on several fields are checked in `__post_init__` of their dataclass.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Any

from lm.errors import UserError

INT32 = 2**31 - 1  # steps, array sizes and indices are int32
LARGEST, SMALLEST = 3.4028234e38, 1.1754944e-38  # of float32: larger numbers are infinity, smaller ones 0


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`; `above` and `below` exclude the ends, `also` allows single values outside."""

    low: float
    high: float = LARGEST
    above: bool = False  # more than `low`
    below: bool = False  # less than `high`
    also: tuple[int, ...] = ()
    note: str = ""  # appended to the error, such as what None would mean

    def wrong(self, value: float) -> str | None:
        """None if `value` is allowed; else the reason and what is allowed, to follow the field's name in an error."""
        if value in self.also:
            return None
        if isinstance(value, float) and not math.isfinite(value):
            why = "is no finite number"
        elif self.high == LARGEST and abs(value) > LARGEST:
            why = "is infinite in float32"
        elif isinstance(value, float) and 0 < abs(value) < SMALLEST:
            why = "is 0 in float32"
        elif value < self.low or (self.above and value == self.low):
            why = "is too small"
        elif value > self.high or (self.below and value == self.high):
            why = "is too large"
        else:
            return None
        least = f"more than {_shown(self.low)}" if self.above else f"{_shown(self.low)} or more"
        most = f", {'less than' if self.below else 'at most'} {_shown(self.high)}"
        # Omit the upper bound when it is only a device limit and the value was too small.
        return f" {why}: give {least}{most if self.high < INT32 or why == 'is too large' else ''}{self.note}"


@dataclass(frozen=True)
class Only:
    """A choice that some machines alone take, which an error says beside the choice: `splash (on TPUs alone)`."""

    choice: str
    where: str


@dataclass(frozen=True)
class Text:
    """Texts of at least `least` characters that can be encoded in UTF-8, without zero bytes (no file name may have one)."""

    least: int = 0

    def wrong(self, value: str) -> str | None:
        """As `Range.wrong`."""
        try:
            value.encode()
        except UnicodeEncodeError:
            return " has characters that are not UTF-8: give a text that is"
        if "\0" in value:
            return " holds a zero byte: give a text without one"
        return None if len(value) >= self.least else f" is too short: give {self}"

    def __str__(self) -> str:
        return f"a text of {self.least} or more characters"


class Conflict(UserError):
    """Fields of a section that do not go together, named by their dotted keys within it. `lm.config.resolve.load` adds which of
    them a flag, the config file or nobody has set."""

    def __init__(self, message: str, *fields: str) -> None:
        super().__init__(message)
        self.fields = fields


def _shown(number: float) -> str:
    return f"{number:,}" if isinstance(number, int) else f"{number:g}"


def show(value: Any) -> str:
    """`repr(value)` cut to 100 characters, for errors: a number or a text may have millions."""
    try:
        text = repr(value)
    except ValueError:  # Python refuses to print an int of more than 4,300 digits
        return "a number of thousands of digits"
    return text if len(text) <= 100 else f"{text[:97]}..."


Count = Annotated[int, Range(1, INT32)]
Natural = Annotated[int, Range(0, INT32)]
Every = Annotated[int, Range(1, INT32, note="; None is never")]  # done every so many steps
Axis = Annotated[int, Range(1, INT32, also=(-1,), note=", or -1 for what the others leave")]  # devices along a mesh axis
Seed = Annotated[int, Range(0, 2**32 - 1)]
Layers = Annotated[int, Range(1, 10_000)]  # each is traced and compiled: with more a run would never start
Vocabulary = Annotated[int, Range(1, 2**24)]  # the host keeps tables with an entry for every token
Year = Annotated[int, Range(1000, 9999)]  # a date without month and day
Length = Annotated[int, Range(8, INT32)]  # tokens in a row

Positive = Annotated[float, Range(0.0, above=True)]
NonNegative = Annotated[float, Range(0.0)]
Share = Annotated[float, Range(0.0, 1.0)]
PositiveShare = Annotated[float, Range(0.0, 1.0, above=True)]
Decay = Annotated[float, Range(0.0, 1.0, below=True)]  # dropout, momenta, averages: at 1 nothing new would count
Span = Annotated[float, Range(1.0, 1e6)]  # mean tokens of a span

Words = Annotated[str, Text()]
Name = Annotated[str, Text(1)]
