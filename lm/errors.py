"""The one exception for mistakes a user can mend: `python -m lm...` prints it as a single line and exits with 2."""

import difflib
from collections.abc import Iterable

EXIT_USER_ERROR = 2
EXIT_HOST_MISSING = 69  # sysexits' EX_UNAVAILABLE: another host did not start, or died; start all of them again
EXIT_PREEMPTED = 75  # sysexits' EX_TEMPFAIL: saved, start the same command again to go on
EXIT_INTERRUPTED = 130  # the shell's number for Ctrl-C; saved as well


class UserError(Exception):
    """Bad input. The message says the cause first, then the cure.

    `str` gives one line without control characters, whatever names and values of the user's it includes.
    """

    def __str__(self) -> str:
        return printable(super().__str__())


class Busy(UserError):
    """Another process is using the same folder."""


class Diverged(UserError):
    """The last steps of a run were skipped because they were not finite; the parameters are those of the last finite step."""


class Stopped(Exception):
    """The run was stopped by a signal, and is saved; `code` is the exit code of the process."""

    def __init__(self, code: int, step: int):
        super().__init__(f"stopped at step {step}, saved; the same command goes on from there")
        self.code = code


class HostMissing(Exception):
    """Another host of the run did not reach the barrier where this one waits."""


ALSO = "also: "


def add_also(error: BaseException, text: str) -> None:
    """Adds a second cause, which `lm.cli` prints on the same line. A note with a prefix, since libraries add notes too."""
    error.add_note(ALSO + text)


def printable(text: str) -> str:
    """The text on one line, with line ends and other unprintable characters escaped as in a Python literal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def nearest(name: str, known: Iterable[str]) -> str:
    """`"; did you mean 'steps'?"`, or the list of what is known when nothing is close."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean '{close[0]}'?" if close else f"; known: {', '.join(known) or 'none'}"
