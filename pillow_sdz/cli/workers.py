"""Processes that work on many files at once.

These are processes, not threads.  Coding latents holds Python's lock for 10 to 45 % of the time
(docs/command-line.md), and a process can be ended at once.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from types import FrameType, TracebackType
from typing import Any, Generic, NoReturn, Self

from ..atomic import remove_unfinished
from ..cores import cores
from .reports import Item, Report, Work, run

# Lines are printed in the order of the files.  So the results of later files wait for an earlier
# file.  This is how many may wait, per process.  Chosen: with fewer, processes wait for a large
# picture; with more, results fill the memory.
AHEAD = 4

# A process has this many seconds to remove its temporary file, then it is killed. Chosen.
GRACE = 5


class _Worker(Generic[Item]):
    """A process, and the number of the item that it works on."""

    def __init__(self, work: Work[Item], threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process: SpawnProcess = context.Process(
            target=_work, args=(theirs, work, threads), daemon=True
        )
        self.number: int | None = None
        with _sigint_ignored():
            self.process.start()
        theirs.close()

    def stop(self) -> None:
        """End the process, which removes its unfinished file."""
        self.process.terminate()
        self.process.join(GRACE)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.connection.close()


class Workers(Generic[Item]):
    """A number of processes that work on items; a context manager that ends them."""

    def __init__(self, work: Work[Item], count: int) -> None:
        self._work = work
        self._threads = max(1, cores() // count)
        self._count = count
        self._workers: list[_Worker[Item]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for worker in self._workers:
            worker.process.terminate()  # all of them first, so that they end together
        for worker in self._workers:
            worker.stop()

    def map(self, items: Sequence[Item]) -> Iterator[Report]:
        """The report of each item, in order."""
        done: dict[int, Report] = {}
        given = told = 0
        while told < len(items):
            while given < min(len(items), told + AHEAD * self._count):
                worker = self._idle()
                if worker is None:
                    break
                worker.number = given
                with suppress(OSError):  # it has ended, and `_finished` reports it
                    worker.connection.send(items[given])
                given += 1
            for number, report in self._finished(items):
                done[number] = report
            while told in done:
                yield done.pop(told)
                told += 1

    def _idle(self) -> _Worker[Item] | None:
        """A process without work.  It is started now if fewer processes run than may run."""
        for worker in self._workers:
            if worker.number is None:
                return worker
        if len(self._workers) < self._count:
            self._workers.append(_Worker(self._work, self._threads))
            return self._workers[-1]
        return None

    def _finished(self, items: Sequence[Item]) -> Iterator[tuple[int, Report]]:
        """Wait for an item; return the numbers of the finished items, and their results."""
        busy = {w.connection: w for w in self._workers if w.number is not None}
        for ready in wait(list(busy)):
            worker = busy[ready]  # type: ignore[index]  # `wait` returns only what it was given
            assert worker.number is not None
            number, worker.number = worker.number, None
            try:
                yield number, worker.connection.recv()
            except (EOFError, OSError):
                self._workers.remove(worker)
                worker.stop()
                yield number, _lost(str(items[number]), worker.process.exitcode)


def _lost(name: str, code: int | None) -> Report:
    """The report of a file whose process ended by itself."""
    how = f"signal {-code}" if code is not None and code < 0 else f"status {code}"
    report = Report(name, failed=True)
    report.warn(f"the process that worked on it ended with {how}; was there enough memory?")
    return report


@contextmanager
def _sigint_ignored() -> Iterator[None]:
    """Start processes that Ctrl-C does not reach, from their first moment on.

    The terminal sends it to all processes; this one ends the others.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set signals
        return
    before: Callable[[int, FrameType | None], Any] | int | None
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _end(number: int, frame: FrameType | None) -> NoReturn:
    """End this process at once.

    An exception is not enough.  In a callback or at the end of the process, Python cannot pass it
    on: it prints a traceback and goes on.
    """
    remove_unfinished()
    os._exit(128 + number)


def _work(connection: Connection, work: Work[Item], threads: int) -> None:
    """What a process does: one item after another, until it is ended."""
    signal.signal(signal.SIGTERM, _end)
    # Libraries read this when they are imported, which happens later, and `cores.threads` reads it
    # for each picture. With more threads than cores, a network is many times slower.
    os.environ["OMP_NUM_THREADS"] = str(threads)
    # The loop ends when the process that gives the work is gone.
    with suppress(EOFError, OSError):
        while True:
            connection.send(run(work, connection.recv()))
