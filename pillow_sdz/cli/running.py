"""Many files, one after another: a failure does not stop the rest, and a bar shows the progress."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from .. import progress
from .messages import complain, reason

# Seconds that a stage of a picture takes before its bar appears. Chosen: most pictures take less.
PATIENCE = 1

Item = TypeVar("Item")


def each(items: Sequence[Item], work: Callable[[Item], None], path: Callable[[Item], Path]) -> bool:
    """Work on every item, also after failures; return whether all succeeded."""
    complete = True
    for item in _with_bar(items):
        try:
            with _bar_of_stages():
                work(item)
        except BrokenPipeError:
            raise
        except Exception as error:  # plugins of Pillow's raise anything
            complain(path(item), reason(error, path(item)))
            complete = False
    return complete


def _with_bar(items: Sequence[Item]) -> Iterable[Item]:
    """The items; while they are taken, a bar counts them if there are several."""
    if len(items) < 2 or not sys.stderr.isatty():
        return items
    from tqdm import tqdm

    return tqdm(items, unit="file", file=sys.stderr)


@contextlib.contextmanager
def _bar_of_stages() -> Iterator[None]:
    """Show how far a large picture is, in a bar under that of the files."""
    if not sys.stderr.isatty():
        yield
        return
    from tqdm import tqdm

    bar: tqdm[Any] | None = None
    of_stage = ""

    def listener(stage: str, done: int, total: int) -> None:
        nonlocal bar, of_stage
        if bar is None or stage != of_stage:
            of_stage = stage
            if bar is not None:
                bar.close()
            bar = tqdm(
                desc=f"  {stage}",
                total=total,
                unit="part",
                file=sys.stderr,
                position=1,
                leave=False,
                delay=PATIENCE,
                mininterval=0,  # there are few parts: show each
            )
        bar.update(done - bar.n)

    try:
        with progress.listening(listener):
            yield
    finally:
        if bar is not None:
            bar.close()
