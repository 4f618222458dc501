"""Runs commands one after the other in one process: reads lines `["lm.train", [flags]]`, writes lines of JSON."""

import contextlib
import importlib
import json
import os
import resource
import sys
import tempfile
import traceback
import warnings
from collections.abc import Generator
from typing import Any

MEMORY = 8 * 2**30  # limit of a command's data in bytes, so that unbounded growth ends with MemoryError


@contextlib.contextmanager
def captured() -> Generator[dict[str, str]]:
    """Captures what Python or a native library writes to the file descriptors 1 and 2."""
    texts: dict[str, str] = {}
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        kept = {number: os.dup(number) for number in (1, 2)}
        try:
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            yield texts
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, copy in kept.items():
                os.dup2(copy, number)
                os.close(copy)
            for name, file in (("out", out), ("err", err)):
                file.seek(0)
                texts[name] = file.read().decode(errors="replace")


def run(module: str, argv: list[str]) -> Any:
    """The exit code that the interpreter would end with."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            return importlib.import_module(module).main(argv) or 0
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1


def main() -> None:
    replies = os.fdopen(os.dup(1), "w")
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    for line in sys.stdin:
        with captured() as texts:
            code = run(*json.loads(line))
        replies.write(json.dumps({"code": code, **texts}) + "\n")
        replies.flush()


if __name__ == "__main__":
    main()
