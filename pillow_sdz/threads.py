"""Limits the threads of other libraries: numpy's BLAS while a prior works, torch after a fork.

OpenBLAS's threads keep spinning for some time after a product, on the cores that the network needs.
The priors' products are too small to gain from threads.  Measured: docs/measurements.md#threads.
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
    """Whether each thread has its own limit.  This is so if OpenBLAS is built with OpenMP."""
    return any(library.get("threading_layer") == "openmp" for library in _openblas().info())


@contextmanager
def _in_control() -> Iterator[None]:
    """Let this thread set OpenBLAS's number of threads.

    With threadpoolctl 3.8, the first thread that sets the number becomes the only one that can.
    So this is undone before and after.
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
    """How many threads have a limit now, and the limiter that can restore the old number."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.users = 0
        self.before: Any = None


_limit = _Limit()


def _in_forked_child() -> None:
    """Restore the limit, and give torch one thread.

    In a forked child, only the thread that forked lives on.  The threads that would have restored
    the limit are gone.  The threads of GNU's OpenMP are gone too: if this thread has run one of
    torch's parallel loops before, the next one waits for them forever.  A DataLoader's workers have
    one thread as well.
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
    """Limit BLAS to one thread, for this thread or, with most builds of OpenBLAS, for the process.

    The limit ends with the last thread that needs it, in whatever order threads come and go.
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
            # A limit of the process ends when the last thread is done:
            # docs/measurements.md#threads.
            if not limit.users or _is_of_each_thread():
                with _in_control():
                    limit.before.restore_original_limits()
