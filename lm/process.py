"""Signals, closed streams, and exits with one line and an exit code, for every command (`lm.cli` has the flags).

    SIGTERM, SIGHUP     exit code 75 (EX_TEMPFAIL): run the same command again to resume
    SIGINT (Ctrl-C)     exit code 130: the same
    a user's mistake    exit code 2

During training steps, `catch(note)` lets the run save before it exits. Elsewhere the first signal raises `Ended` and the second
exits at once, which is safe because files are written atomically.
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
# Seconds. Signals closer together than this count as one: a key may be pressed twice, and a parent process may forward a
# signal that the terminal has sent to the whole group.
GAP = 1.0
CURES = {
    errno.ENOSPC: "no disk space; free some and start again",
    errno.EDQUOT: "the disk quota is used up; free some space and start again",
    errno.EFBIG: "a file exceeds this shell's size limit; raise it (ulimit -f) and start again",
    errno.EMFILE: "too many open files; raise the limit (ulimit -n) and start again",
    errno.ENFILE: "too many open files on this machine; close some and start again",
}


class Ended(KeyboardInterrupt):
    """A signal asked the process to exit. `code` is its exit code."""

    def __init__(self, code: int):
        super().__init__(f"exit code {code}")
        self.code = code


class _Asked:
    """The exit code of the latest `Ended`, or None. Kept outside of the exception because a library that `Ended` interrupts may
    replace it by one of its own."""

    code: int | None = None


def was_asked() -> bool:
    """Whether a signal has raised `Ended`."""
    return _Asked.code is not None


# ------------------------------------------------------------------------------------------------------------- signals


class _Handler:
    """A signal handler, see `catch`. It may interrupt any line of the main thread."""

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
            say_now("exited at once; run the same command to start again\n")
            os._exit(code)


def catch(note: Callable[[int], None] | None = None, signals: tuple[int, ...] = SIGNALS) -> Callable[[], None]:
    """Installs a handler for signals and returns a function that restores the earlier ones.

    Each signal calls `note` with an exit code. A second Ctrl-C raises `Ended`, as does the first signal if `note` is None.
    Signals that are already ignored (nohup) stay ignored. Does nothing outside of the main thread.
    """
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
    """Writes to standard error without buffering, for a signal handler, which may have interrupted a `print`."""
    try:
        os.write(2, text.encode())
    except OSError:
        pass


# ------------------------------------------------------------------------------------------------------------- streams


class _Stream(io.RawIOBase):
    """A raw stream on a file descriptor that drops output once its reader is gone. Errors on standard error are ignored."""

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
            while done < len(data):  # os.write may write a part only, and with `python -u` no buffer retries
                done += os.write(self.descriptor, memoryview(data)[done:])
            return done
        except OSError as error:
            if self.descriptor == 2 or error.errno == errno.EPIPE:
                return len(data)
            raise


def _replace_streams() -> None:
    """Replaces stdout and stderr by streams that escape unencodable characters and ignore a reader that is gone."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:  # it is closed; the next opened file would get this descriptor, and the printed text
            os.open(os.devnull, os.O_RDWR)
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        old: Any = getattr(sys, name)
        encoding = getattr(old, "encoding", None) or "utf-8"
        lines = descriptor == 2 or os.isatty(descriptor)
        at_once = getattr(old, "write_through", False)  # `python -u`, PYTHONUNBUFFERED
        raw: Any = _Stream(descriptor) if at_once else io.BufferedWriter(_Stream(descriptor))
        settings: dict[str, Any] = dict(errors="backslashreplace", line_buffering=lines, write_through=at_once)
        setattr(sys, name, io.TextIOWrapper(raw, encoding, **settings))


# ----------------------------------------------------------------------------------------------------- start and exit


# After a failed save, which has been reported, TensorStore's other writes report to an event loop that is closed.
CLOSED_LOOP = "Event loop is closed"


def begin() -> None:
    """Installs streams, signal handlers and exception hooks. `lm/__init__.py` calls it for every `python -m lm...`, before any
    slow import. A second call does nothing."""
    if sys.excepthook is _uncaught:
        return
    _replace_streams()
    catch()
    sys.excepthook = _uncaught
    sys.unraisablehook = _unraisable


def _uncaught(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    """The `sys.excepthook`: handles exceptions raised outside of a `cli.command`, mostly while modules are imported.

    It also gets errors in callbacks on a library's threads, which must not end the process; CLOSED_LOOP is not printed.
    """
    if threading.current_thread() is not threading.main_thread():
        if str(error) != CLOSED_LOOP:
            sys.__excepthook__(kind, error, trace)
        return
    if (ended := ending(error)) is None:
        sys.__excepthook__(kind, error, trace)
        return
    line, code = ended
    say_now(line + "\n")
    os._exit(code)


def _unraisable(info: Any) -> None:
    """The `sys.unraisablehook`: sends the signal again if `Ended` was raised in a destructor, where Python drops it. Errors in
    callbacks of a library come here or to `_uncaught`, depending on how its C++ code calls Python."""
    if not issubclass(info.exc_type, Ended):
        # An event loop that found no free file descriptor raises in its destructor as well; the first error is reported.
        if str(info.exc_value) != CLOSED_LOOP and getattr(info.object, "__qualname__", "") != "BaseEventLoop.__del__":
            sys.__unraisablehook__(info)
        return
    number = signal.SIGINT if _Asked.code == EXIT_INTERRUPTED else signal.SIGTERM
    handler = signal.getsignal(number)
    if isinstance(handler, _Handler):
        handler.raised, handler.last = False, -GAP
    threading.Timer(0.05, os.kill, (os.getpid(), number)).start()


def ending(error: BaseException) -> tuple[str, int] | None:
    """Returns the line to print and the exit code, or None if the exception is a bug, whose traceback should be printed."""
    if (ended := _ending(error)) is None:
        return None
    line, code = ended
    also = (note for note in getattr(error, "__notes__", []) if note.startswith(ALSO))
    return "; ".join([line, *(printable(redacted(note)) for note in also)]), code


def _ending(error: BaseException) -> tuple[str, int] | None:
    code = _Asked.code if was_asked() else EXIT_INTERRUPTED if isinstance(error, KeyboardInterrupt) else None
    if isinstance(error, Stopped):
        return str(error), error.code
    if code is not None:
        return f"{'interrupted' if code == EXIT_INTERRUPTED else 'terminated'}; the same command starts again", code
    if isinstance(error, UserError):
        return f"error: {redacted(str(error))}", EXIT_USER_ERROR
    if isinstance(error, OSError) and error.errno is not None:
        where = f" ({error.filename})" if error.filename else ""
        cause = CURES.get(error.errno, f"{error.strerror}; fix that and start again")
        return f"error: {printable(redacted(cause + where))}", EXIT_USER_ERROR
    if isinstance(error, RuntimeError) and "home directory" in str(error):  # raised by `expanduser`
        return "error: there is no home directory for a path with '~'; set HOME, or give absolute paths", EXIT_USER_ERROR
    return None


def leave(code: int, *, waits: bool = False) -> NoReturn:
    """Flushes standard output and exits with `code`, or with 2 instead of 0 if the flush fails.

    Signals are ignored from here on, since one during the interpreter's shutdown would print a traceback. With `waits`, where
    the process may wait for other hosts, a signal kills it.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL if waits else signal.SIG_IGN)
    try:
        sys.stdout.flush()
    except OSError as error:
        print(f"error: what was printed is lost: {error.strerror}", file=sys.stderr)
        sys.stdout = open(os.devnull, "w", encoding="utf-8")
        code = code or EXIT_USER_ERROR
    sys.exit(code)
