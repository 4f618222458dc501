"""Runs a generated Python program in a process of its own, within limits.

    run("assert 1 + 1 == 2")        Outcome(ok=True, reason="")
    run("import sys; sys.exit(0)")  Outcome(ok=False, reason="SystemExit: 0")
    run("while True: pass")         Outcome(ok=False, reason="time")

The process has an empty environment, no standard input or output, a temporary folder, and the standard library alone. An audit
hook (PEP 578) refuses sockets, other processes, native code, files outside of the folder, and reading files outside of the
folder and of Python. This keeps a program that is wrong from doing harm. It is no wall against one that is written to break
out, which needs a container or a virtual machine.

This file is also what the process runs, so it imports nothing but the standard library.
"""

import contextlib
import math
import os
import resource
import secrets
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from typing import Any

WAIT = 4  # a program that sleeps is stopped after so many times its seconds
FILES = 1 << 20  # bytes that a file may have
END = 16  # bytes of the number that says that a program came to its end
LONGEST = 300  # characters of a reason
# Audit events, or what they begin with, that are refused.
REFUSED = ("socket.", "subprocess.", "ctypes.", "resource.", "signal.", "os.fork", "os.exec", "os.spawn", "os.posix_spawn")
REFUSED += ("os.system", "os.kill", "os.startfile", "pty.", "webbrowser.", "urllib.", "mmap.")
CHANGES = ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.chmod", "os.chown", "os.link", "os.symlink", "os.truncate")
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


@dataclass(frozen=True)
class Outcome:
    """`ok`: the program ran to its end. Otherwise `reason` is the exception and its text, "time", or such as "signal 11"."""

    ok: bool
    reason: str = ""


def run(program: str, *, seconds: float = 5.0, memory: int = 512 << 20) -> Outcome:
    """Runs the program as a main module. A program that leaves early, even with exit code 0, is not `ok`: only who knows a
    number that the process is told can say that the end was reached.

    seconds: of a core, rounded up to whole ones, so that the outcome does not depend on what else the machine does
    memory: bytes of address space, the interpreter's own included
    """
    with tempfile.TemporaryDirectory(prefix="lm-sandbox-") as folder:
        with open(os.path.join(folder, "program.py"), "wb") as file:
            file.write(program.encode("utf-8", "surrogatepass"))
        end = secrets.token_bytes(END)
        ours, theirs = os.pipe()
        os.set_blocking(ours, False)
        try:
            command = [sys.executable, "-I", "-S", __file__, str(theirs), str(math.ceil(seconds)), str(memory)]
            pipes: Any = dict(stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            process = subprocess.Popen(command, cwd=folder, env={}, pass_fds=[theirs], start_new_session=True, **pipes)
            os.close(theirs)
            try:
                assert process.stdin
                with contextlib.suppress(BrokenPipeError), process.stdin:
                    os.write(process.stdin.fileno(), end)
                code = process.wait(WAIT * math.ceil(seconds))
            except subprocess.TimeoutExpired:
                return Outcome(False, "time")
            finally:
                if process.returncode is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
            said = b""
            with contextlib.suppress(BlockingIOError):
                said = os.read(ours, 8 * LONGEST)
        finally:
            os.close(ours)
    if said:
        return Outcome(said == end, "" if said == end else said[1:].decode("utf-8", "replace"))
    names = {-signal.SIGXCPU: "time", -signal.SIGXFSZ: "a file is too large"}
    return Outcome(False, names.get(code, f"signal {-code}" if code < 0 else f"exit code {code}"))


def _inside(report: int, seconds: int, memory: int) -> None:
    """Runs ./program.py within the limits; writes to `report` what standard input said if it came to its end, else "0" and why
    not."""
    end = sys.stdin.buffer.read(END)
    with open("program.py", "rb") as file:
        program = file.read()
    for what, most in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, FILES),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_AS, memory),
    ):
        resource.setrlimit(what, (most, most))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    sys.argv = ["program.py"]
    said = end
    try:
        code = compile(program, "program.py", "exec")
        sys.addaudithook(_guard(os.getcwd()))
        exec(code, {"__name__": "__main__", "__builtins__": __builtins__})
    except BaseException as error:
        said = f"0{_reason(error)}".encode("utf-8", "replace")
    os.write(report, said)
    os._exit(0)  # threads that go on, and what the program has registered for its exit, do not count


def _reason(error: BaseException) -> str:
    """The exception's name and text, `LONGEST` characters at most."""
    try:
        text = " ".join(str(error).split())
    except BaseException:  # a class of the program's own may fail at being printed
        text = ""
    return f"{type(error).__name__}: {text}"[:LONGEST].removesuffix(": ")


def _guard(folder: str) -> Any:
    """An audit hook that lets the program have its folder, and read Python's own files."""
    readable = tuple(os.path.realpath(path) + os.sep for path in (folder, sys.base_prefix, sys.base_exec_prefix))
    writable = readable[:1]

    def within(path: Any, roots: tuple[str, ...]) -> bool:
        return isinstance(path, int) or (os.path.realpath(os.fsdecode(path)) + os.sep).startswith(roots)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event.startswith(REFUSED):
            raise PermissionError(f"{event} is refused")
        if event == "open":
            path, _, flags = arguments
            if not within(path, writable if flags & WRITES else readable):
                raise PermissionError(f"{os.fsdecode(path)} is outside of the program's folder")
        elif event in CHANGES and not all(within(a, writable) for a in arguments if isinstance(a, str | bytes)):
            raise PermissionError(f"{event} outside of the program's folder")

    return hook


if __name__ == "__main__":
    _inside(*map(int, sys.argv[1:]))
