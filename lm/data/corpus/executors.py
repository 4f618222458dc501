"""Where the tasks of a preparation run: in this process, in processes on this machine, or on a Ray cluster.

    process       this one alone
    processes     one for each core (the default), or processes:8; a small corpus is prepared in this process
    ray           the Ray cluster that this machine is a node of; ray://host:10001 one elsewhere (`lm.data.corpus.cluster`)

A task is a picklable function without arguments that writes files and returns a little JSON, so that it may run anywhere,
twice, or again after a kill. What a preparation writes does not depend on where it runs.
"""

import os
import re
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from contextvars import ContextVar
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

from lm.errors import UserError

Task = Callable[[], Any]
MEMORY = 1 << 30  # bytes that sorting may take in one process
SMALL = 24 << 20  # bytes of text: up to this many, starting processes does not pay


class Executor(Protocol):
    memory: int  # bytes that sorting may take in one process

    def check(self, folder: Path) -> None:
        """Raises UserError if a task would not find this folder where it runs."""
        ...

    def run(self, tasks: Iterable[Task], *, size: int) -> Iterator[Any]:
        """Yields what each task returns, in order. `size`: bytes of text that all of them read. Raises the error of the
        first task in order that fails; those after it are given up."""
        ...

    def close(self) -> None: ...


class Process:
    """Runs tasks in this process, one after the other."""

    def __init__(self, memory: int = MEMORY) -> None:
        self.memory = memory

    def check(self, folder: Path) -> None:
        pass

    def run(self, tasks: Iterable[Task], *, size: int) -> Iterator[Any]:
        return (task() for task in tasks)

    def close(self) -> None:
        pass


def _cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Processes:
    """Runs tasks in processes on this machine. They are spawned, because forking under jax is unsafe, so a script that prepares
    a large corpus needs the usual `if __name__ == "__main__":`."""

    def __init__(self, workers: int | None = None, memory: int = MEMORY) -> None:
        self.memory = memory
        self._workers = workers or _cores()
        self._pool: ProcessPoolExecutor | None = None
        self._lifeline: Connection | None = None

    def check(self, folder: Path) -> None:
        pass

    def run(self, tasks: Iterable[Task], *, size: int) -> Iterator[Any]:
        if size <= SMALL or self._workers == 1:
            yield from (task() for task in tasks)
            return
        pool = self._started()
        try:
            yield from in_order(tasks, lambda task: pool.submit(task), Future.result, 2 * self._workers)
        except BrokenProcessPool:
            self.close()
            raise UserError(
                "a process of the preparation was killed, perhaps for want of memory: the same command goes on; give fewer "
                f"(--on=processes:{max(1, self._workers // 2)}) or less memory to each (--memory)"
            ) from None
        except BaseException:
            self.close()
            raise

    def _started(self) -> ProcessPoolExecutor:
        if self._pool is None:
            context = get_context("spawn")
            theirs, self._lifeline = context.Pipe(duplex=False)
            self._pool = ProcessPoolExecutor(self._workers, mp_context=context, initializer=_start, initargs=(theirs,))
        return self._pool

    def close(self) -> None:
        """Ends the processes, whatever they are doing."""
        if self._pool is not None and self._lifeline is not None:
            self._lifeline.close()
            self._pool.shutdown(wait=True, cancel_futures=True)
        self._pool = self._lifeline = None


_worker = False


def become_worker() -> None:
    """Tells this process that it is one of many: the other cores have tasks of their own."""
    global _worker
    _worker = True
    os.environ["RAYON_NUM_THREADS"] = "1"  # of the tokenizers library


def is_worker() -> bool:
    return _worker


def _start(lifeline: Connection) -> None:
    """Prepares a worker process: it ignores Ctrl-C, which the main process handles, and ends when the main process is gone."""
    become_worker()
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        try:
            lifeline.recv_bytes()
        except (EOFError, OSError):
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def in_order(tasks: Iterable[Task], submit: Callable[[Task], Any], result: Callable[[Any], Any], ahead: int) -> Iterator[Any]:
    """Yields the results in order, with at most `ahead` tasks submitted that were not asked for."""
    pending: deque[Any] = deque()
    for task in tasks:
        pending.append(submit(task))
        if len(pending) > ahead:
            yield result(pending.popleft())
    while pending:
        yield result(pending.popleft())


# ------------------------------------------------------------------------------------------------------- which one

_CHOSEN: ContextVar[Executor | None] = ContextVar("executor", default=None)


@contextmanager
def using(on: str, memory: int = MEMORY) -> Generator[Executor]:
    """Every preparation in this context runs where `on` says (see above). Raises UserError if that is no such place."""
    executor = _named(on, memory)
    token = _CHOSEN.set(executor)
    try:
        yield executor
    finally:
        _CHOSEN.reset(token)
        executor.close()


def limit() -> int | None:
    """The `memory` that `using` was given; None outside of it."""
    executor = _CHOSEN.get()
    return None if executor is None else executor.memory


@contextmanager
def chosen() -> Generator[Executor]:
    """The executor of `using`, or processes on this machine."""
    if executor := _CHOSEN.get():
        yield executor
        return
    executor = Processes()
    try:
        yield executor
    finally:
        executor.close()


def _named(on: str, memory: int) -> Executor:
    if on == "process":
        return Process(memory)
    if found := re.fullmatch(r"processes(?::([1-9]\d{0,3}))?", on):
        return Processes(int(found[1]) if found[1] else None, memory)
    if on == "ray" or on.startswith("ray://"):
        from lm.data.corpus.cluster import Ray

        return Ray(on, memory)
    raise UserError(f"--on={on} is no place to prepare data on: give process, processes, processes:8, ray or ray://host:10001")
