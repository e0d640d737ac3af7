"""A lock that is free in a forked child, even if a thread of the parent held it."""

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
