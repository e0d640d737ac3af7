"""Threads that others start: numpy's BLAS on one while a prior is at work, torch after a fork.

After a product OpenBLAS's threads go on spinning for some time, on the cores that the
network needs next (or has just used, with threads that spin as well).  The priors' products
are too small to gain what that costs: on two cores, a 768x512 photo was decoded in 157 ms
instead of 229 (`OPENBLAS_NUM_THREADS=1`, otherwise the same, in one run).
"""

from __future__ import annotations

import functools
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from threadpoolctl import ThreadpoolController


@functools.cache
def _openblas() -> Any:
    return ThreadpoolController().select(internal_api="openblas")


@functools.cache
def _is_of_each_thread() -> bool:
    """Whether the number is not the process's: where OpenBLAS is built on OpenMP."""
    return any(library.get("threading_layer") == "openmp" for library in _openblas().info())


@contextmanager
def _in_control() -> Iterator[None]:
    """Whoever sets a number with threadpoolctl 3.8 is for life the only thread that can.

    So nobody is before, nor after.
    """
    libraries = [x for x in _openblas().lib_controllers if hasattr(x, "clear_controlling_thread")]
    for library in libraries:
        library.clear_controlling_thread(force=True)
    try:
        yield
    finally:
        for library in libraries:
            library.clear_controlling_thread(force=True)


class _Limit:
    """How many threads are limited now, and the limiter that knows what was before the first."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.users = 0
        self.before: Any = None


_limit = _Limit()


def _in_forked_child() -> None:
    """No thread lives on in a forked child but the one that forked.

    Not those that would have taken the limit back; and not those of GNU's OpenMP, for which a
    parallel loop of torch's would wait forever, if this thread has run one before.  So torch has
    one thread here, as it has in a DataLoader's workers.
    """
    global _limit
    if _limit.users:
        with _in_control():
            _limit.before.restore_original_limits()
    _limit = _Limit()
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_forked_child)


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Limit the calling thread, and with most builds of OpenBLAS the others too.

    Nothing stays limited, in whatever order threads come and go.
    """
    limit = _limit
    with limit.lock:
        if not limit.users or _is_of_each_thread():
            with _in_control():
                limiter = _openblas().limit(limits=1)
            if not limit.users:
                limit.before = limiter
        limit.users += 1
    try:
        yield
    finally:
        with limit.lock:
            limit.users -= 1
            # Where the number is the process's, not before the last thread leaves: a picture took
            # up to three times as long in each of 16 threads (python -m benchmarks.many).
            if not limit.users or _is_of_each_thread():
                with _in_control():
                    limit.before.restore_original_limits()
