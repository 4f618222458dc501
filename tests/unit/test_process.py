"""Every exit of a command is one line and an exit code. Signals and streams are tested in real processes."""

import ast
import asyncio
import errno
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from lm import cli, process
from lm.errors import Stopped, UserError, add_also
from tests.processes import HANGS

ENDS = {
    "a mistake": (UserError("no such thing"), 2, "error: no such thing"),
    "a mistake in hostile words": (UserError("no file a\x1b[2J\nb"), 2, "error: no file a\\x1b[2J\\nb"),
    "a mistake with a secret": (UserError("cannot read https://me:hush@h/x"), 2, "error: cannot read https://(redacted)@h/x"),
    "stopped": (Stopped(75, 8), 75, "stopped at step 8, saved; the same command goes on from there"),
    "Ctrl-C": (KeyboardInterrupt(), 130, "interrupted; the same command starts again"),
    "no space": (OSError(errno.ENOSPC, "x", "f"), 2, "error: no disk space; free some and start again (f)"),
    "a limit": (
        OSError(errno.EFBIG, "x"),
        2,
        "error: a file exceeds this shell's size limit; raise it (ulimit -f) and start again",
    ),
    "no access": (PermissionError(errno.EACCES, "no", "f"), 2, "error: no; fix that and start again (f)"),
    "no home": (
        RuntimeError("Could not determine home directory."),
        2,
        "error: there is no home directory for a path with '~'",
    ),
}


@pytest.mark.parametrize("case", ENDS)
def test_every_exit_is_one_line(capsys, case):
    error, code, line = ENDS[case]

    def main(argv):
        raise error

    assert cli.command(main)([]) == code
    err = capsys.readouterr().err
    assert err.startswith(line) and err.count("\n") == 1


def test_an_error_in_a_callback_of_a_library_does_not_end_the_process(monkeypatch):
    """The library's thread calls the hook. Errors that follow from a failed save, which was reported, are not printed."""
    shown = []
    monkeypatch.setattr(sys, "__excepthook__", lambda kind, error, trace: shown.append(str(error)))
    monkeypatch.setattr(process.os, "_exit", lambda code: shown.append(code))
    for error in (RuntimeError("Event loop is closed"), RuntimeError("else"), OSError(errno.ENOSPC, "no space")):
        thread = threading.Thread(target=process._uncaught, args=(type(error), error, None))
        thread.start()
        thread.join()
    assert shown == ["else", "[Errno 28] no space"]
    monkeypatch.setattr(sys, "__unraisablehook__", lambda info: shown.append(str(info.exc_value)))
    half_made = AttributeError("no attribute '_ssock'")
    for error, where in (
        (RuntimeError("Event loop is closed"), None),
        (half_made, asyncio.BaseEventLoop.__del__),
        (RuntimeError("unraisable"), None),
    ):
        process._unraisable(SimpleNamespace(exc_type=type(error), exc_value=error, object=where))
    assert shown[2:] == ["unraisable"]


def test_a_second_cause_is_on_the_same_line(capsys):
    """Such as a save that failed while the run stopped for another reason. Notes of libraries are not printed."""

    def main(argv):
        error = UserError("the steps were skipped")
        error.add_note("JAX has removed its internal frames")
        add_also(error, "the save under way failed: no space in\nhttps://me:hush@h")
        raise error

    assert cli.command(main)([]) == 2
    said = "error: the steps were skipped; also: the save under way failed: no space in\\nhttps://(redacted)@h\n"
    assert capsys.readouterr().err == said


def test_a_fault_of_the_program_keeps_its_trace():
    def main(argv):
        raise ValueError("a fault")

    with pytest.raises(ValueError, match="a fault"):
        cli.command(main)([])


# ------------------------------------------------------------------------------------------------------------- signals


@pytest.fixture
def now(monkeypatch):
    """A clock that stands still: `now.value` is its time."""

    class Clock:
        value = 0.0

    monkeypatch.setattr(process.time, "monotonic", lambda: Clock.value)
    monkeypatch.setattr(process._Asked, "code", None)
    return Clock


@pytest.fixture
def left(monkeypatch):
    """What `os._exit` was asked for."""
    codes = []
    monkeypatch.setattr(process.os, "_exit", codes.append)
    return codes


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGHUP, 75), (signal.SIGINT, 130)])
def test_the_first_signal_raises_and_a_later_one_ends_at_once(now, left, number, code):
    before = signal.getsignal(number)
    restore = process.catch()
    try:
        with pytest.raises(process.Ended) as ended:
            signal.raise_signal(number)
        assert ended.value.code == code and process.was_asked()
        now.value = 0.3
        signal.raise_signal(number)  # pressed twice
        assert not left
        now.value = 2.0
        signal.raise_signal(number)
        assert left == [code]
    finally:
        restore()
    assert signal.getsignal(number) == before


def test_between_steps_it_is_noted_and_only_ctrl_c_is_impatient(now, left):
    noted = []
    restore = process.catch(noted.append)
    try:
        for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGTERM):
            signal.raise_signal(number)
            now.value += 2
        signal.raise_signal(signal.SIGINT)  # the first Ctrl-C: work is saved after a SIGTERM as well
        now.value += 2
        signal.raise_signal(signal.SIGTERM)
        assert noted == [75, 75, 75, 130, 75]
        now.value += 2
        with pytest.raises(process.Ended):
            signal.raise_signal(signal.SIGINT)
        now.value += 2
        signal.raise_signal(signal.SIGINT)
        assert left == [130]
    finally:
        restore()


def test_what_is_to_be_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
    try:
        restore = process.catch()
        signal.raise_signal(signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        restore()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_an_error_of_a_library_that_was_interrupted_is_the_interruption(now, capsys):
    def main(argv):
        try:
            signal.raise_signal(signal.SIGTERM)
        except process.Ended:
            raise RuntimeError("callback failed") from None

    restore = process.catch()
    try:
        assert cli.command(main)([]) == 75
    finally:
        restore()
    assert capsys.readouterr().err == "terminated; the same command starts again\n"


SCRIPT = """
import sys, time
sys.argv = ["-m"]
import lm  # begins as `python -m lm...` does
from lm import cli, process

@cli.command
def main(argv):
    print("begun", flush=True)
    {body}
    return 0

process.leave(main())
"""


def script(body, *, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options):
    words = [sys.executable, "-c", SCRIPT.format(body=body)]
    return subprocess.Popen(words, stdout=stdout, stderr=stderr, text=True, **options)


def test_a_signal_in_a_process(tmp_path):
    """In a loop, in a destructor, where Python drops exceptions, and while modules are imported."""
    (tmp_path / "slow.py").write_text("import time; print('begun', flush=True); time.sleep(3600)")
    destructor = "class D:\n        def __del__(self): print('begun', flush=True); time.sleep(3600)\n    D(); time.sleep(3600)"
    imported = SCRIPT.split("@cli")[0] + f"sys.path.insert(0, {str(tmp_path)!r})\nimport slow\n"
    cases = {
        (signal.SIGTERM, 75): script("time.sleep(3600)"),
        (signal.SIGINT, 130): script(destructor),
        (signal.SIGHUP, 75): subprocess.Popen([sys.executable, "-c", imported], stdout=-1, stderr=-1, text=True),
    }
    for (number, code), child in cases.items():
        assert child.stdout.readline() == "begun\n"
        if "__del__" in str(child.args):
            assert child.stdout.readline() == "begun\n"
        time.sleep(0.05)
        child.send_signal(number)
        err = child.communicate(timeout=HANGS)[1]
        assert child.returncode == code, err
        assert err == ("interrupted" if code == 130 else "terminated") + "; the same command starts again\n"


def test_streams_that_are_gone_or_take_no_such_characters():
    said = r"print('\xe9\udcff\u65e5', file=sys.stderr); print('\xe9\u65e5'); print('x' * 100_000, file=sys.stderr)"
    ascii_only = os.environ | {"PYTHONIOENCODING": "ascii:strict", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    reader, gone = os.pipe()
    os.close(reader)
    with open("/dev/full", "w") as full:
        processes = {
            "ascii": script(said, env=ascii_only),
            "full": script(said, stderr=full),
            "gone": script(said, stdout=gone, stderr=gone),
            "closed": script(said, stdout=None, stderr=None, preexec_fn=lambda: [os.close(i) for i in (0, 1, 2)]),
            "lost": script(said, stdout=full),
        }
        os.close(gone)
        out = {name: process.communicate(timeout=HANGS) for name, process in processes.items()}
    assert {name: process.returncode for name, process in processes.items()} == dict.fromkeys(out, 0) | {"lost": 2}
    assert out["ascii"][0] == "begun\n\\xe9\\u65e5\n" and out["ascii"][1].startswith("\\xe9\\udcff\\u65e5\n")
    assert out["lost"][1].splitlines()[-1] in (
        "error: no disk space; free some and start again",
        "error: what was printed is lost: No space left on device",
    )


def test_unbuffered_output_is_still_unbuffered():
    """`python -u`: what is printed without an end of line is out before anything else is written to the same descriptor."""
    body = "import os; print('a', end=''); os.write(1, b'b'); print('c' * 300_000)"
    for setting, order in (("1", "ab"), ("", "ba")):
        process = script(body, env=os.environ | {"PYTHONUNBUFFERED": setting})
        assert process.communicate(timeout=HANGS)[0] == f"begun\n{order}{'c' * 300_000}\n"


def test_no_text_depends_on_the_locale():
    """In an ASCII locale `open` reads and writes ASCII, and a run would end with its report."""

    def unnamed(call):
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        named = {keyword.arg for keyword in call.keywords}
        words = [a.value for a in call.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
        if name in ("read_text", "write_text"):
            return "encoding" not in named and not any(word.startswith("utf-8") for word in words)
        if name == "open" and not (
            isinstance(call.func, ast.Attribute)
            and ast.unparse(call.func.value)
            in ("os", "ts", "ts.KvStore", "Store", "saved", "self._opener", "Image", "wave", "LanguageModel")
        ):
            return "encoding" not in named and not any("b" in word for word in words)
        return name in ("run", "Popen") and "text" in named and not named & {"encoding", "errors"}

    files = sorted((Path(cli.__file__).parent).rglob("*.py"))
    calls = [(f, c) for f in files for c in ast.walk(ast.parse(f.read_text("utf-8"))) if isinstance(c, ast.Call)]
    calls = [(f, c) for f, c in calls if (f.name, ast.unparse(c.func)) != ("saved.py", "open")]  # its own, of folders
    assert len(calls) > 1000
    assert [f"{f}:{c.lineno}: {ast.unparse(c)}" for f, c in calls if unnamed(c)] == []
