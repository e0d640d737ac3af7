"""Tells a listener how far the work on a large picture has come."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

Listener = Callable[[str, int, int], None]
Item = TypeVar("Item")

_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Call ``listener(stage, done, total)`` in this thread whenever a part is done.

    Stages follow one another, and a stage may come again.  The parts of a stage take about equally
    long.
    """
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def told(stage: str, parts: Sequence[Item]) -> Iterator[Item]:
    """Yield the parts of a stage, and tell the listener when each is done."""
    listener = _listener.get()
    for done, part in enumerate(parts, 1):
        yield part
        if listener is not None:
            listener(stage, done, len(parts))
