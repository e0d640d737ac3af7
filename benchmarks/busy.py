"""Encoding and decoding on a busy machine: elapsed and CPU time beside eight other processes.

    python -m benchmarks.busy [--others 8] [--repeats 5] [--checkout DIR]

Each row is a process of its own.  Other processes, which only count, begin before it and end after
it.  With ``--checkout``, the package of that folder is measured in the same run, by default and
with OMP_NUM_THREADS=1.  The folder may be a `git worktree` of an older commit.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

SIZES = ((200, 150), (768, 512), (2048, 2048))
WORK = """
import io, statistics, sys, time
import pillow_sdz
from pillow_sdz import demo
from PIL import Image
width, height, repeats = map(int, sys.argv[1:])
picture = demo.photo().resize((width, height))
def save():
    global data
    data = io.BytesIO()
    picture.save(data, "SDZ")
def load():
    Image.open(data).load()
for call in (save, load):
    call()
    found = []
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        call()
        found.append((time.perf_counter() - wall, time.process_time() - cpu))
    print(*(f"{1000 * statistics.median(column):.0f}" for column in zip(*found)))
"""


@contextmanager
def busy(count: int) -> Iterator[None]:
    """Run ``count`` other processes that only count."""
    others = [
        subprocess.Popen([sys.executable, "-c", "while True: sum(range(100_000))"])
        for _ in range(count)
    ]
    try:
        yield
    finally:
        for process in others:
            process.kill()
            process.wait()


def row(what: str, size: tuple[int, int], repeats: int, checkout: Path, threads: str | None) -> str:
    """The times of a fresh process, as a row of the table."""
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    environment.pop("OMP_NUM_THREADS", None)
    if threads is not None:
        environment["OMP_NUM_THREADS"] = threads
    command = [sys.executable, "-c", WORK, *map(str, (*size, repeats))]
    done = subprocess.run(
        command, env=environment, cwd=checkout, check=True, stdout=subprocess.PIPE, text=True
    )
    (encode, encode_cpu), (decode, decode_cpu) = (line.split() for line in done.stdout.splitlines())
    cells = f"{encode} ms | {encode_cpu} ms | {decode} ms | {decode_cpu} ms"
    return f"| {size[0]}x{size[1]} | {what} | {cells} |"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.busy", description=__doc__)
    parser.add_argument("--others", type=int, default=8, help="default: %(default)s")
    parser.add_argument("--repeats", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--checkout", type=Path, help="another version to compare with")
    given = parser.parse_args(arguments)
    here = Path(__file__).parent.parent
    cases: list[tuple[str, Path, str | None]] = [
        ("now", here, None),
        ("now, OMP_NUM_THREADS=1", here, "1"),
    ]
    if given.checkout:
        cases += [
            ("before", given.checkout.resolve(), None),
            ("before, OMP_NUM_THREADS=1", given.checkout.resolve(), "1"),
        ]
    print("| picture | | encode | of CPU | decode | of CPU |\n|---|---|--:|--:|--:|--:|")
    with busy(given.others):
        for size in SIZES:
            for what, checkout, threads in cases:
                print(row(what, size, given.repeats, checkout, threads), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
