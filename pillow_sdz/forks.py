"""Locks that a forked child never finds held by a thread that it does not have."""

from __future__ import annotations

import os
import threading
from types import TracebackType


class Lock:
    """A lock that its thread may take again, and that is free in a forked child.

    Only the thread that forks lives on in the child.  Another thread that held the lock does not
    exist there, and would never release it.  Make such locks at module level only: Python keeps
    them as long as the process lives.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._renew)

    def _renew(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(
        self,
        type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._lock.release()


class Gate:
    """Work of foreign code, in any number of threads, that a fork waits for.

    The code may hold locks of its own, which the child could never take again.  While a thread
    forks, no other one starts such work.  Make gates at module level only, as `Lock`.
    """

    def __init__(self) -> None:
        self._renew()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(
                before=self._close, after_in_parent=self._open, after_in_child=self._renew
            )

    def _renew(self) -> None:
        self._changed = threading.Condition()
        self._inside = self._forks = 0

    def _close(self) -> None:
        self._changed.acquire()  # `_open` releases it
        self._forks += 1
        while self._inside:
            self._changed.wait()

    def _open(self) -> None:
        self._forks -= 1
        self._changed.notify_all()
        self._changed.release()

    def __enter__(self) -> None:
        with self._changed:
            while self._forks:
                self._changed.wait()
            self._inside += 1

    def __exit__(
        self,
        type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._changed:
            self._inside -= 1
            self._changed.notify_all()
