"""Processes under test: how long they may take, and waiting for what they do.

No test measures time. A limit only ends a test whose process hangs: a machine with other work may be slower than an idle one
by any factor.
"""

import socket
import subprocess
import time
from collections.abc import Callable
from typing import Any

HANGS = 3600  # seconds of wall time after which a process counts as hanging


def wait_for(condition: Callable[[], Any], *processes: subprocess.Popen[Any], seconds: float = HANGS) -> None:
    """Returns once `condition()` is true; files that it reads need not exist. Fails where one of the processes ends first."""

    def met() -> bool:
        try:
            return bool(condition())
        except OSError:
            return False

    end = time.monotonic() + seconds
    while not met():
        if any(process.poll() is not None for process in processes) and not met():
            errors = [p.stderr.read() if p.stderr else "" for p in processes if p.poll() is not None]
            raise AssertionError(f"a process ended too early: {errors}")
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.005)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
