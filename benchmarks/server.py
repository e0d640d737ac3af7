"""Load on examples/server.py over the loopback: requests per second, waiting times and refusals.

    python -m benchmarks.server

Starts the server as users do, in its own process, and sends requests from this process. The two
share the cores. Each client sends its next request when it has the answer to the last one. Any
answer that is not the expected one counts as an error.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import itertools
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
from PIL import Image

from pillow_sdz import demo

SERVER = Path(__file__).parent.parent / "examples" / "server.py"
STARTS = 60  # chosen: seconds in which the server must start to answer
SIZE = (512, 384)  # chosen: a picture that a page may show
TOO_LARGE = 20_000_000  # bytes; the server's limit is 16 MiB


@dataclass(frozen=True)
class Row:
    """Results of clients that did the same thing at the same time."""

    what: str
    clients: int
    rate: float  # requests a second
    times: list[float]  # milliseconds of each request
    errors: int
    peak: int | None  # bytes of the server and its workers; None if it is not known

    def __str__(self) -> str:
        cuts = statistics.quantiles(self.times, n=100, method="inclusive")
        late = " | ".join(f"{cuts[percent - 1]:,.0f} ms" for percent in (50, 95, 99))
        peak = "" if self.peak is None else f"{self.peak / 1e6:,.0f} MB"
        cells = (self.what, self.clients, f"{self.rate:.1f}", late, self.errors, peak)
        return f"| {' | '.join(map(str, cells))} |"


HEAD = """| | clients | requests/s | p50 | p95 | p99 | errors | peak memory |
|---|--:|--:|--:|--:|--:|--:|--:|"""

Client = httpx2.AsyncClient
Request = Callable[[Client], Awaitable[bool]]  # whether the answer was the expected one


@contextlib.contextmanager
def running(folder: Path) -> Iterator[tuple[str, int]]:
    """The address and the process id of the server."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(SERVER), str(folder), "--port", str(port)]
    root = str(SERVER.parent.parent)
    environment = {**os.environ, "PYTHONPATH": root}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    try:
        deadline = time.monotonic() + STARTS
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit((folder / "log").read_text())
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}", process.pid
    finally:
        process.terminate()
        process.wait()


def uploads() -> list[bytes]:
    """Pictures like those of a camera or a phone, all different."""
    photo = demo.photo()
    places = itertools.product(range(0, 80, 10), range(0, 16, 4))
    boxes = [(x, y, x + SIZE[0], y + SIZE[1]) for x, y in places]
    return [jpeg(photo.crop(box)) for box in boxes]


def jpeg(picture: Image.Image) -> bytes:
    """The picture as a JPEG file."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=90)
    return file.getvalue()


def sound(pictures: Sequence[bytes]) -> Request:
    """Upload the next picture."""
    order = itertools.cycle(pictures)

    async def request(client: Client) -> bool:
        return (await client.post("/", content=next(order))).status_code == 201

    return request


def served(paths: Sequence[str], accept: str) -> Request:
    """Ask for the next picture."""
    order = itertools.cycle(paths)

    async def request(client: Client) -> bool:
        response = await client.get(next(order), headers={"Accept": accept})
        return response.status_code == 200 and response.headers["content-type"] == accept

    return request


def refused(picture: bytes) -> Request:
    """Upload pictures that must be refused, each for its own reason."""
    bomb = jpeg(Image.new("L", (16_000, 16_000)))
    due = [(bytes(TOO_LARGE), 413), (picture[:9_000], 422), (b"no picture", 415), (bomb, 413)]
    order = itertools.cycle(due)

    async def request(client: Client) -> bool:
        data, status = next(order)
        return (await client.post("/", content=data)).status_code == status

    return request


async def load(
    address: str, process: int, what: str, requests: Sequence[Request], seconds: float
) -> list[Row]:
    """Run one client for each request, for this many seconds. One row for each kind of request."""
    times: dict[Request, list[float]] = {request: [] for request in requests}
    errors = dict.fromkeys(requests, 0)
    start = time.monotonic()

    async def work(client: Client, request: Request) -> None:
        while (begun := time.monotonic()) < start + seconds:
            try:
                right = await request(client)
            except httpx2.HTTPError as e:
                print(f"{what}: {e!r}", file=sys.stderr)
                right = False
            times[request].append(1000 * (time.monotonic() - begun))
            errors[request] += not right

    async with Client(base_url=address, timeout=60) as client:
        await asyncio.gather(*(work(client, request) for request in requests))
    passed = time.monotonic() - start
    kinds = zip(what.split(" / "), times, strict=True)
    peak = peak_memory(process)
    return [
        Row(kind, requests.count(r), len(times[r]) / passed, times[r], errors[r], peak)
        for kind, r in kinds
    ]


def peak_memory(process: int) -> int | None:
    """The largest resident sets so far of a process and its children, in bytes, added up.

    None if there is no /proc. Shared pages, such as those of libraries, count in each process.
    """
    folder = Path(f"/proc/{process}")
    if not folder.exists():
        return None
    children = (folder / "task" / str(process) / "children").read_text().split()
    total = 0
    for one in (process, *children):
        kilobytes: Any = re.search(r"VmHWM:\s*(\d+) kB", Path(f"/proc/{one}/status").read_text())
        total += 1024 * int(kilobytes[1])
    return total


async def measure(address: str, process: int, clients: Sequence[int], seconds: float) -> list[Row]:
    """Measure all rows. Print each one when it is done."""
    pictures = uploads()
    async with Client(base_url=address, timeout=60) as client:
        paths = [(await client.post("/", content=data)).headers["location"] for data in pictures]
    upload = sound(pictures)
    rows: list[Row] = []
    for count in clients:
        for what, request in (
            ("upload, JPEG to .sdz", upload),
            ("serve as WebP", served(paths, "image/webp")),
            ("serve as PNG", served(paths, "image/png")),
            ("serve as .sdz", served(paths, "image/x-sdz")),
        ):
            rows += await load(address, process, what, [request] * count, seconds)
            print(rows[-1], flush=True)
    half = max(clients) // 2 or 1
    what = "upload, beside those refused / refused, 4xx"
    both = await load(
        address, process, what, [upload] * half + [refused(pictures[0])] * half, seconds
    )
    print(*both, sep="\n", flush=True)
    return rows + both


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status, which is 1 if there was an error."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.server",
        description="Load on examples/server.py over the loopback.",
    )
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 16])
    parser.add_argument(
        "--seconds", type=float, default=10, help="seconds a row; default: %(default)s"
    )
    options = parser.parse_args(arguments)
    if min(options.clients) < 1 or options.seconds <= 0:
        parser.error("--clients and --seconds must be positive")
    print(f"pictures of {SIZE[0]}x{SIZE[1]}, {os.cpu_count()} cores\n\n{HEAD}")
    with tempfile.TemporaryDirectory() as folder, running(Path(folder)) as (address, process):
        rows = asyncio.run(measure(address, process, options.clients, options.seconds))
    return int(any(row.errors for row in rows))


if __name__ == "__main__":
    sys.exit(main())
