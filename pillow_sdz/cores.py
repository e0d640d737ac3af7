"""How many processor cores this program may use, and work on several of them."""

from __future__ import annotations

import contextvars
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Self, TypeVar

# So many items for each thread wait to be worked on, so that no thread is idle while the next item
# is made.  Measured: decoding 4 megapixels takes 0.93 of the time on two cores, and with more than
# this, no less (a script that is not in this repository).
AHEAD = 2

# Whether this thread works for `at_once`, so that the cores have work already.
_sharing = contextvars.ContextVar("_sharing", default=False)

Item = TypeVar("Item")
Result = TypeVar("Result")


def cores() -> int:
    """How many processor cores this process may use: all, or those of its container."""
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count() or 1
    for quota in _quotas(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")):
        count = min(count, max(1, round(quota)))
    return count


def threads() -> int:
    """How many threads of this process may work on a picture: one for each core, or its share.

    ``OMP_NUM_THREADS`` limits them, as it limits those of torch and BLAS.  Without it, a process
    that multiprocessing has started has one thread, because it hardly ever works alone: workers of
    a torch DataLoader or of a Pool share the cores.  A thread of `at_once` works alone, too.
    """
    if _sharing.get():
        return 1
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    if first.isdecimal() and int(first):
        return min(cores(), int(first))
    # If this process is such a child, the module is imported.
    processes = sys.modules.get("multiprocessing.process")
    return 1 if processes is not None and processes.parent_process() is not None else cores()


def _quotas(groups: Path, root: Path) -> Iterator[float]:
    """The processor time that Linux's control groups (version 2) give this process, in cores."""
    try:
        own = groups.read_text().strip().rpartition("0::/")[2]
    except (OSError, ValueError):
        return
    folder = root / own
    for place in (folder, *folder.parents):
        if not place.is_relative_to(root):
            break
        try:
            allowed, period = (place / "cpu.max").read_text().split()
            if allowed != "max":
                yield int(allowed) / int(period)
        except (OSError, ValueError, ZeroDivisionError):
            continue


def at_once(
    work: Callable[[Item], Result], items: Iterable[Item], workers: int
) -> Iterator[Result]:
    """``work`` of each item in order, done by ``workers`` threads.  This thread takes the items."""
    if workers <= 1:
        yield from map(work, items)
        return
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for item in items:
                # The work sees the caller's settings, because they belong to this context.
                context = contextvars.copy_context()
                context.run(_sharing.set, True)
                waiting.append(pool.submit(context.run, work, item))
                most = (1 + AHEAD) * workers
                while waiting and (waiting[0].done() or len(waiting) > most):
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


class Share:
    """Shares the work on many short lists of items between this thread and others."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._others = ThreadPoolExecutor(workers - 1) if workers > 1 else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._others is not None:
            self._others.shutdown()

    def __call__(self, work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
        """``work`` of each item, in order."""
        if self._others is None or len(items) < 2:
            return [*map(work, items)]
        # This thread does the first item, while others do the next ones.
        others = [self._others.submit(work, item) for item in items[1:]]
        return [work(items[0]), *(future.result() for future in others)]
