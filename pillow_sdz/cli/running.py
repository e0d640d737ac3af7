"""Many files: a failure does not stop the rest, a bar shows the progress, a line sums up."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Generator, Iterator, Sequence
from typing import Any

from .. import progress
from ..cores import cores
from .files import Found
from .messages import note, printable, say
from .reports import Item, Report, Summary, Work, run

# A bar appears if a stage of a picture takes more seconds than this. Chosen: most take less.
PATIENCE = 1

# More processes are started if the first files take more seconds than this. Chosen: a process
# needs 1 to 2 seconds until it works (see docs/command-line.md), and most runs end before.
ALONE = 2


def each(
    work: Work[Item], items: Sequence[Item], *, jobs: int | None = 1, stdout_is_data: bool = False
) -> Summary:
    """Work on all items, ``jobs`` at once, and print their messages in order.

    ``jobs`` is None for as many as there are cores. With several, pickle must be able to hand
    ``work`` and the items to another process.
    """
    summary = Summary()
    said: set[str] = set()
    reports = _reports(work, items, cores() if jobs is None else jobs)
    with contextlib.closing(reports), contextlib.closing(_bar(len(items))) as bar:
        for report in reports:
            for is_error, line in report.lines:
                if is_error or stdout_is_data:
                    if line not in said:
                        note(line)
                    said.add(line)
                else:
                    say(line)
            summary.add(report)
            bar.update()
    return summary


def close(summary: Summary, found: Found, *, several: bool) -> int:
    """Print the closing line, if there may be more than one file; return the exit status."""
    if several or found.folders:
        say(summary.line(found.left_out))
    return int(summary.failed > 0 or not found.complete)


def _reports(work: Work[Item], items: Sequence[Item], jobs: int) -> Generator[Report]:
    """The report of each item, in order."""
    begin = time.monotonic()
    for number, item in enumerate(items):
        if jobs > 1 and number and number < len(items) - 1 and time.monotonic() - begin > ALONE:
            from .workers import Workers  # imports multiprocessing, which short runs do not need

            left = items[number:]
            with Workers(work, min(jobs, len(left))) as workers:
                yield from workers.map(left)
            return
        with _bar_of_stages():
            report = run(work, item)
        yield report


class _NoBar:
    def update(self) -> None: ...
    def close(self) -> None: ...


def _bar(count: int) -> Any:
    """A bar that counts files, if there are several and somebody looks."""
    if count < 2 or not sys.stderr.isatty():
        return _NoBar()
    from tqdm import tqdm

    return tqdm(total=count, unit="file", file=sys.stderr)


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
                desc=f"  {printable(stage)}",
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
