"""Around every command: signals, closed streams, and an end with one line and an exit code (`lm.cli` has the flags).

    SIGTERM, SIGHUP     exit code 75 (EX_TEMPFAIL): run the same command again to go on
    SIGINT (Ctrl-C)     exit code 130: the same
    a user's mistake    exit code 2

During training steps, `catch(note)` lets the run save before it ends. Elsewhere the first signal raises `Ended` and the second
ends the process at once, which is safe because files on disk are complete at any moment.
"""

import errno
import io
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn

from lm.errors import ALSO, EXIT_INTERRUPTED, EXIT_PREEMPTED, EXIT_USER_ERROR, Stopped, UserError, printable
from lm.redact import redacted

SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
# Seconds. Signals closer together than this count as one request: a key may be pressed twice, and a parent process may pass
# on what the terminal has sent to all.
GAP = 1.0
CURES = {
    errno.ENOSPC: "no disk space; free some and start again",
    errno.EDQUOT: "the disk quota is used up; free some space and start again",
    errno.EFBIG: "a file exceeds this shell's size limit; raise it (ulimit -f) and start again",
    errno.EMFILE: "too many open files; raise the limit (ulimit -n) and start again",
    errno.ENFILE: "too many open files on this machine; close some and start again",
}


class Ended(KeyboardInterrupt):
    """A signal asked the process to end; `code` is what it exits with."""

    def __init__(self, code: int):
        super().__init__(f"exit code {code}")
        self.code = code


class _Asked:
    """The exit code of the latest `Ended`, or None. Kept here because a library that `Ended` interrupts may raise another
    exception instead."""

    code: int | None = None


def was_asked() -> bool:
    """Whether a signal has raised `Ended`."""
    return _Asked.code is not None


# ------------------------------------------------------------------------------------------------------------- signals


class _Handler:
    def __init__(self, note: Callable[[int], None] | None):
        self.note, self.noted, self.raised, self.last = note, False, False, -GAP

    def __call__(self, number: int, frame: Any) -> None:
        now = time.monotonic()
        if now - self.last < GAP:
            return
        self.last = now
        code = EXIT_INTERRUPTED if number == signal.SIGINT else EXIT_PREEMPTED
        if self.note is not None and not (self.noted and number == signal.SIGINT):
            self.noted |= number == signal.SIGINT
            self.note(code)
        elif not self.raised:
            self.raised, _Asked.code = True, code
            raise Ended(code)
        else:
            say_now("ended at once; the same command starts again\n")
            os._exit(code)


def catch(note: Callable[[int], None] | None = None, signals: tuple[int, ...] = SIGNALS) -> Callable[[], None]:
    """Handles signals until the returned function is called. Each signal calls `note` with an exit code; a second Ctrl-C raises
    `Ended`, and so does the first signal where `note` is None. Signals that are ignored already (nohup) stay ignored."""
    if threading.current_thread() is not threading.main_thread():
        return lambda: None
    handler = _Handler(note)
    before = {s: signal.getsignal(s) for s in signals}
    before = {s: old for s, old in before.items() if old not in (signal.SIG_IGN, None)}
    for number in before:
        signal.signal(number, handler)

    def restore() -> None:
        for number, old in before.items():
            signal.signal(number, old)

    return restore


def say_now(text: str) -> None:
    """Writes to standard error from a signal handler, which may have interrupted a `print`."""
    try:
        os.write(2, text.encode())
    except OSError:
        pass


# ------------------------------------------------------------------------------------------------------------- streams


class _Stream(io.RawIOBase):
    """A file descriptor whose reader may be gone. Errors in writing to standard error never end a run."""

    def __init__(self, descriptor: int):
        self.descriptor = descriptor

    def fileno(self) -> int:
        return self.descriptor

    def isatty(self) -> bool:
        return os.isatty(self.descriptor)

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        try:
            done = 0
            while done < len(data):  # a buffer would write the rest, but with `python -u` there is none
                done += os.write(self.descriptor, memoryview(data)[done:])
            return done
        except OSError as error:
            if self.descriptor == 2 or error.errno == errno.EPIPE:
                return len(data)
            raise


def _unbreakable() -> None:
    """Replaces the standard streams by ones that write every character and ignore a reader that is gone."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:  # it is closed; the next file to be opened would get its number and what is printed
            os.open(os.devnull, os.O_RDWR)
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        old: Any = getattr(sys, name)
        encoding = getattr(old, "encoding", None) or "utf-8"
        lines = descriptor == 2 or os.isatty(descriptor)
        at_once = getattr(old, "write_through", False)  # `python -u`, PYTHONUNBUFFERED
        raw: Any = _Stream(descriptor) if at_once else io.BufferedWriter(_Stream(descriptor))
        settings: dict[str, Any] = dict(errors="backslashreplace", line_buffering=lines, write_through=at_once)
        setattr(sys, name, io.TextIOWrapper(raw, encoding, **settings))


# ------------------------------------------------------------------------------------------------- beginning and end


def begin() -> None:
    """Sets up streams, signals and hooks. `lm/__init__.py` calls it for every `python -m lm...`, before any slow import; a
    second call does nothing."""
    if sys.excepthook is _uncaught:
        return
    _unbreakable()
    catch()
    sys.excepthook = _uncaught
    sys.unraisablehook = _unraisable


def _uncaught(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    """Handles exceptions that are raised outside of a `cli.command`, mostly while modules are imported.

    A library's own threads report an error in a callback here too, and that does not end the process. After a failed save,
    TensorStore's other writes report to an event loop that is closed: its error has been told already.
    """
    if threading.current_thread() is not threading.main_thread():
        if str(error) != "Event loop is closed":
            sys.__excepthook__(kind, error, trace)
        return
    if (told := ending(error)) is None:
        sys.__excepthook__(kind, error, trace)
        return
    say_now(told[0] + "\n")
    os._exit(told[1])


def _unraisable(info: Any) -> None:
    """Sends the signal again where `Ended` was raised in a destructor or callback, whose exceptions Python drops."""
    if not issubclass(info.exc_type, Ended):
        sys.__unraisablehook__(info)
        return
    number = signal.SIGINT if _Asked.code == EXIT_INTERRUPTED else signal.SIGTERM
    handler = signal.getsignal(number)
    if isinstance(handler, _Handler):
        handler.raised, handler.last = False, -GAP
    threading.Timer(0.05, os.kill, (os.getpid(), number)).start()


def ending(error: BaseException) -> tuple[str, int] | None:
    """The line to print and the exit code, or None where the exception is a bug and its traceback should be printed."""
    if (told := _ending(error)) is None:
        return None
    also = (note for note in getattr(error, "__notes__", []) if note.startswith(ALSO))
    return "; ".join([told[0], *(printable(redacted(note)) for note in also)]), told[1]


def _ending(error: BaseException) -> tuple[str, int] | None:
    code = _Asked.code if was_asked() else EXIT_INTERRUPTED if isinstance(error, KeyboardInterrupt) else None
    if isinstance(error, Stopped):
        return str(error), error.code
    if code is not None:
        return f"{'interrupted' if code == EXIT_INTERRUPTED else 'told to end'}; the same command starts again", code
    if isinstance(error, UserError):
        return f"error: {redacted(str(error))}", EXIT_USER_ERROR
    if isinstance(error, OSError) and error.errno is not None:
        where = f" ({error.filename})" if error.filename else ""
        cause = CURES.get(error.errno, f"{error.strerror}; mend that and start again")
        return f"error: {printable(redacted(cause + where))}", EXIT_USER_ERROR
    if isinstance(error, RuntimeError) and "home directory" in str(error):  # raised by `expanduser`
        return "error: there is no home directory for a path with '~'; set HOME, or give absolute paths", EXIT_USER_ERROR
    return None


def leave(code: int, *, waits: bool = False) -> NoReturn:
    """Flushes standard output and ends the process. Signals are ignored meanwhile, since one that comes while the interpreter
    shuts down prints a traceback. With `waits`, where this one may have to wait for other processes, a signal kills it."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL if waits else signal.SIG_IGN)
    try:
        sys.stdout.flush()
    except OSError as error:
        print(f"error: what was printed is lost: {error.strerror}", file=sys.stderr)
        sys.stdout = open(os.devnull, "w", encoding="utf-8")
        code = code or EXIT_USER_ERROR
    sys.exit(code)
