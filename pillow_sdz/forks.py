"""A lock that a forked process can take, whoever held it in the process before."""

from __future__ import annotations

import os
import threading
from types import TracebackType


class Lock:
    """A lock that one thread may take again, and that a forked child finds free.

    Only the thread that forks lives on in the child.  Another thread that held the lock in the
    parent does not exist there, and would never release it.  Made for module level: it is kept
    as long as the process lives.
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
