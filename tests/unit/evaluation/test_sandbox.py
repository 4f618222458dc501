"""A program that is right runs to its end; one that is wrong, endless, greedy or curious is stopped and says why."""

import os
from pathlib import Path

import pytest

from lm.evaluation import sandbox
from lm.evaluation.sandbox import LONGEST, Outcome, run


@pytest.mark.parametrize(
    "program",
    [
        "assert 1 + 1 == 2",
        "import collections, dataclasses, functools, heapq, itertools, json, math, random, re, string, threading, typing",
        "open('a', 'w').write('b')\nassert open('a').read() == 'b'",
        "assert __name__ == '__main__'\nimport sys\nassert sys.argv == ['program.py']",
        "import threading, time\nthreading.Thread(target=time.sleep, args=(1000,)).start()",
        "import atexit\natexit.register(lambda: 1 / 0)",
        "import os\nassert not set(os.environ) - {'LC_CTYPE'}",  # Python itself sets it
    ],
)
def test_a_program_that_ends_is_ok(program):
    assert run(program) == Outcome(True)


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("assert 1 + 1 == 3, 'no'", "AssertionError: no"),
        ("assert False", "AssertionError"),
        ("raise ValueError('one\\ntwo')", "ValueError: one two"),
        ("def f(:", "SyntaxError: "),
        ("a\0b", "SyntaxError: "),
        ("\ud800", "SyntaxError: "),
        ("def f(): f()\nf()", "RecursionError: "),
        ("import numpy", "ModuleNotFoundError: "),
        ("input()", "EOFError: "),
        # It left before its end, and whoever checks the exit code alone believes that it passed.
        ("import sys; sys.exit(0)", "SystemExit: 0"),
        ("import os; os._exit(0)", "exit code 0"),
        # It says that it came to its end, through every descriptor that it can find.
        ("import os\nfor i in range(3, 64):\n    try: os.write(i, b'1')\n    except OSError: pass\nos._exit(0)", ""),
        ("import os; os.abort()", "signal 6"),
        # What it is not given.
        ("x = [0] * 10**9", "MemoryError"),
        ("open('a', 'wb').write(bytes(2**21))", "OSError: [Errno 27] File too large"),
        ("open('/etc/passwd').read()", "PermissionError: /etc/passwd is outside"),
        ("open('../escaped', 'w')", "PermissionError: ../escaped is outside"),
        ("import os; os.symlink('/etc', 'etc')", "PermissionError: os.symlink outside"),
        ("import os; os.remove('/etc/nothing')", "PermissionError: os.remove outside"),
        ("import socket; socket.socket()", "PermissionError: socket.__new__ is refused"),
        ("import subprocess; subprocess.run(['true'])", "PermissionError: subprocess.Popen is refused"),
        ("import os; os.fork()", "PermissionError: os.fork is refused"),
        ("import os; os.kill(os.getppid(), 9)", "PermissionError: os.kill is refused"),
        ("import ctypes", "PermissionError: ctypes.dlopen is refused"),
        ("import resource; resource.setrlimit(resource.RLIMIT_CPU, (99, 99))", "PermissionError: resource.setrlimit"),
        ("class E(Exception):\n    def __str__(self): raise KeyError\nraise E", "E"),
    ],
)
def test_a_program_that_fails_says_why(program, reason):
    found = run(program)
    assert not found.ok
    assert found.reason.startswith(reason)


@pytest.mark.parametrize(
    "program",
    [
        "while True: pass",
        "import signal, sys\nwhile True: sys.stdout.write('x' * 10000)",
        "import time; time.sleep(1000)",
        "try:\n    while True: pass\nfinally:\n    while True: pass",
    ],
)
def test_a_program_without_an_end_is_stopped(program, monkeypatch):
    monkeypatch.setattr(sandbox, "WAIT", 2)
    assert run(program, seconds=1) == Outcome(False, "time")


def test_a_reason_is_short():
    assert len(run("raise ValueError('x' * 100000)").reason) == LONGEST


def test_nothing_is_left_behind(tmp_path, monkeypatch):
    """Neither its folder nor open files."""
    monkeypatch.setattr(sandbox.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(sandbox, "WAIT", 1)
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    run("open('a', 'w').write('b'); import os; os.mkdir('c')")
    run("import time; time.sleep(1000)", seconds=1)
    assert list(tmp_path.iterdir()) == []
    assert before == (len(os.listdir("/proc/self/fd")) if before else 0)
