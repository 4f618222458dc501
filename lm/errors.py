"""Exceptions of all commands and their exit codes. A UserError is printed as one line, and the command exits with 2."""

import difflib
from collections.abc import Iterable

EXIT_USER_ERROR = 2
EXIT_HOST_MISSING = 69  # sysexits' EX_UNAVAILABLE: another host did not connect, or is gone; restart all hosts
EXIT_PREEMPTED = 75  # sysexits' EX_TEMPFAIL: the run is saved; the same command resumes it
EXIT_INTERRUPTED = 130  # the shell's exit code for Ctrl-C; the run is saved too


class UserError(Exception):
    """Bad input. The message gives the cause first, then the cure.

    `str` of it is one line of printable characters, whatever names and values of the user's it contains: see `printable`.
    """

    def __str__(self) -> str:
        return printable(super().__str__())


class Busy(UserError):
    """Another process is writing to the same folder."""


class Diverged(UserError):
    """The last steps of a run were skipped because their loss or gradient was not finite; the parameters are those of
    the last finite step."""


class Stopped(Exception):
    """A signal stopped the run, and it is saved. `code` is the exit code of the process."""

    def __init__(self, code: int, step: int):
        super().__init__(f"stopped at step {step}, saved; the same command goes on from there")
        self.code = code


class HostMissing(Exception):
    """Another host of the run did not reach the barrier that this one waits at."""


ALSO = "also: "


def add_also(error: BaseException, text: str) -> None:
    """Adds a second cause, which `lm.process.ending` prints on the same line. The prefix ALSO
    distinguishes it from notes that libraries add."""
    error.add_note(ALSO + text)


def printable(text: str) -> str:
    """Returns the text with unprintable characters, such as newlines and escapes, as in a Python literal (`\\n`, `\\x1b`)."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns `"; did you mean 'steps'?"` with the known name that is most similar, or `"; known: a, b"` if none is similar."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean '{close[0]}'?" if close else f"; known: {', '.join(known) or 'none'}"
