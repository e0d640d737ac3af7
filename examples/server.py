"""Keep uploaded pictures as `.sdz`, and serve them to browsers as WebP or PNG.

pip install starlette uvicorn
python examples/server.py pictures

curl -i --data-binary @photo.jpg http://127.0.0.1:8000/
curl http://127.0.0.1:8000/NAME -o photo.png
curl -H "Accept: image/x-sdz" http://127.0.0.1:8000/NAME -o photo.sdz

The server limits what strangers send: bytes, pixels, time and number. Worker processes convert the
pictures, and the server ends them if they take too long. There is no authentication, and there is
no time limit for headers. On the open internet, use a proxy that does both and that caches.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import io
import multiprocessing
import os
import re
import secrets
import signal
import tempfile
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, TypeVar

import torch
import uvicorn
from PIL import Image, ImageOps, UnidentifiedImageError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

import pillow_sdz  # noqa: F401  # registers the format SDZ

UPLOADS = ("JPEG", "PNG", "WEBP", "AVIF")
# The formats to serve, smallest first. If a client likes several equally, the first one counts.
SERVED = {"image/x-sdz": "SDZ", "image/webp": "WEBP", "image/png": "PNG"}
WEBP_QUALITY = 95  # the picture is already a reconstruction, so do not damage it again
LONGEST_SIDE = 16383  # of a WebP picture, in pixels
# The limit of a JPEG file. A scan may take 32 bytes and visits all pixels. Encoders write ten.
MOST_SCANS = 100
SCAN = b"\xff\xda"  # how a scan begins; these bytes cannot occur in coded data
NAME = re.compile(r"[0-9a-f]{64}")
FOREVER = {"Cache-Control": "public, max-age=31536000, immutable"}  # a name's bytes never change

T = TypeVar("T")


@dataclass(frozen=True)
class Limits:
    """What a request may cost. All values are chosen."""

    upload: int = 16 << 20  # bytes
    pixels: int = 12_000_000  # 5 seconds of a core to encode
    working: int = os.cpu_count() or 1  # pictures at a time, one per process
    waiting: int = 32  # pictures that may wait
    work: float = 10  # seconds for a picture: twice the time for the largest
    seconds: float = 20  # to wait and convert; and the same to receive an upload
    receiving: int = 64  # uploads at a time; together a gigabyte on the disk


class Ended(Exception):
    """A worker ended before its work was done."""


class Worker:
    """A process that does one thing after another and can be ended at any time.

    It is spawned because threads and locks do not survive a fork.
    """

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()  # so that it closes when the process ends

    def call(self, function: Callable[..., T], *arguments: object) -> T:
        """Call a function there and return its result. Ended if the process ends first."""
        try:
            self._connection.send((function, arguments))
            result, error = self._connection.recv()
        except (EOFError, OSError) as e:
            raise Ended from e
        if error is not None:
            raise error
        return result  # type: ignore[no-any-return]

    def end(self) -> None:
        """End the process, whatever it does. A thread that waits in `call` gets Ended."""
        self._process.kill()
        self._process.join()


def serve(connection: Connection) -> None:
    """A worker's process: do what is asked until the server is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server, which ends its workers
    # A picture keeps one thread busy. More threads of torch would only slow the other workers.
    torch.set_num_threads(1)
    with contextlib.suppress(EOFError, OSError):
        while True:
            function, arguments = connection.recv()
            try:
                connection.send((function(*arguments), None))
            except Exception as error:
                connection.send((None, error))


class Workers:
    """Several processes that have loaded the model. If one ends, another replaces it."""

    def __init__(self, count: int) -> None:
        self._all: set[Worker] = set()
        self._idle: asyncio.Queue[Worker] = asyncio.Queue()
        self._starting: set[asyncio.Task[None]] = set()
        self._threads = ThreadPoolExecutor(count)  # each thread waits for one process
        for _ in range(count):
            self._add()

    def _add(self) -> None:
        worker = Worker()
        self._all.add(worker)
        task = asyncio.create_task(self._loaded(worker))
        self._starting.add(task)
        task.add_done_callback(self._starting.discard)

    async def _loaded(self, worker: Worker) -> None:
        await self._calling(worker, to_sdz, Image.new("RGB", (16, 16)))
        self._idle.put_nowait(worker)

    async def ready(self) -> None:
        """Wait until all processes have loaded the model."""
        await asyncio.gather(*self._starting)

    async def call(self, seconds: float, function: Callable[..., T], *arguments: object) -> T:
        """Call a function in the first free process, without blocking the event loop.

        TimeoutError if it works longer than this many seconds. Ended if the process ends.
        """
        worker = await self._idle.get()
        whole = False
        calling = self._calling(worker, function, *arguments)
        try:
            async with asyncio.timeout(seconds):
                await asyncio.wait({calling})
            whole = not isinstance(calling.exception(), Ended)
            return calling.result()
        finally:
            if whole:
                self._idle.put_nowait(worker)
            else:
                await asyncio.shield(self._replace(worker, calling))

    def _calling(
        self, worker: Worker, function: Callable[..., T], *arguments: object
    ) -> asyncio.Future[T]:
        loop = asyncio.get_running_loop()
        return loop.run_in_executor(self._threads, worker.call, function, *arguments)

    async def _replace(self, worker: Worker, calling: asyncio.Future[T]) -> None:
        worker.end()
        self._all.remove(worker)
        await asyncio.wait({calling})
        calling.exception()  # mark the exception as read
        self._add()

    def end(self) -> None:
        """End all processes."""
        for worker in self._all:
            worker.end()
        self._threads.shutdown()


class Upload:
    """An upload that is being received. It can be ended."""

    # Each upload starts as if it had already sent this many bytes in this many seconds. So a new
    # upload is not slow at once, but it is slower than an ordinary upload that has sent more.
    # Chosen.
    AHEAD, BEFORE = 8192, 1

    def __init__(self, timeout: asyncio.Timeout) -> None:
        self.received = 0
        self._timeout = timeout
        self._loop = asyncio.get_running_loop()
        self._begun = self._loop.time()

    def rate(self) -> float:
        """Bytes per second."""
        return (self.AHEAD + self.received) / (self.BEFORE + self._loop.time() - self._begun)

    def send_away(self) -> None:
        """End it, as if its time were over."""
        self._timeout.reschedule(self._loop.time())


class Server:
    """Pictures in a folder, as NAME.sdz. NAME is the sha256 of the file."""

    workers: Workers

    def __init__(self, folder: Path, limits: Limits) -> None:
        self.folder = folder
        self.limits = limits
        self.pictures = 0  # pictures that are being converted or wait for it
        self.uploads: set[Upload] = set()

    def app(self) -> Starlette:
        """The ASGI application."""
        routes = [Route("/", self.upload, methods=["POST"]), Route("/{name}", self.picture)]
        return Starlette(routes=routes, lifespan=self.lifespan)

    @contextlib.asynccontextmanager
    async def lifespan(self, _: Starlette) -> AsyncIterator[None]:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.workers = Workers(self.limits.working)
        try:
            await self.workers.ready()
            yield
        finally:
            self.workers.end()

    async def convert(self, function: Callable[..., T], *arguments: object) -> T:
        """Call a function in a worker if there is a free place, or refuse at once.

        A request holds a place while a worker has it or while it waits for a worker. It holds none
        while its client sends or receives, so a slow client blocks nobody.
        """
        if self.pictures >= self.limits.working + self.limits.waiting:
            raise HTTPException(503, "busy", {"Retry-After": "1"})
        self.pictures += 1
        try:
            async with asyncio.timeout(self.limits.seconds):
                return await self.workers.call(self.limits.work, function, *arguments)
        except (TimeoutError, Ended):
            raise HTTPException(503, "this takes too long", {"Retry-After": "10"}) from None
        finally:
            self.pictures -= 1

    async def upload(self, request: Request) -> Response:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "upload")
            with path.open("wb") as file:
                await self.receive(request, file)
            size, encoded = await self.convert(converted, path, self.limits.pixels)
        name = await asyncio.to_thread(self.store, encoded)
        about = {"name": name, "width": size[0], "height": size[1], "bytes": len(encoded)}
        return JSONResponse(about, 201, {"Location": f"/{name}"})

    async def receive(self, request: Request, file: IO[bytes]) -> None:
        too_large = HTTPException(413, f"more than {self.limits.upload:,} bytes")
        if int(request.headers.get("content-length", 0)) > self.limits.upload:
            raise too_large
        try:
            async with self.receiving() as upload:
                async for chunk in request.stream():
                    upload.received += len(chunk)
                    if upload.received > self.limits.upload:
                        raise too_large
                    file.write(chunk)
        except TimeoutError:
            raise HTTPException(408, "the upload is too slow") from None
        except ClientDisconnect:
            raise HTTPException(400, "the upload was broken off") from None

    @contextlib.asynccontextmanager
    async def receiving(self) -> AsyncIterator[Upload]:
        """Receive an upload in time. If there are too many, the slowest one is ended."""
        if len(self.uploads) >= self.limits.receiving:
            slowest = min(self.uploads, key=Upload.rate)
            self.uploads.remove(slowest)
            slowest.send_away()
        async with asyncio.timeout(self.limits.seconds) as timeout:
            upload = Upload(timeout)
            self.uploads.add(upload)
            try:
                yield upload
            finally:
                self.uploads.discard(upload)

    def store(self, data: bytes) -> str:
        name = hashlib.sha256(data).hexdigest()
        path = self.folder / f"{name}.sdz"
        if not path.exists():
            temporary = self.folder / f".{name}.{secrets.token_hex(4)}.tmp"
            try:
                temporary.write_bytes(data)
                temporary.replace(path)  # in one step, so that nobody gets half a file
            finally:
                temporary.unlink(missing_ok=True)
        return name

    async def picture(self, request: Request) -> Response:
        name = request.path_params["name"]
        path = self.folder / f"{name}.sdz"
        if not NAME.fullmatch(name) or not path.exists():
            raise HTTPException(404, "no such picture")
        media_type = negotiated(", ".join(request.headers.getlist("accept")) or "*/*")
        if media_type is None:
            raise HTTPException(406, f"served as {', '.join(SERVED)}", {"Vary": "Accept"})
        format = SERVED[media_type]
        # Weak: another version of the decoder may differ by a grey level.
        headers = {**FOREVER, "Vary": "Accept", "ETag": f'W/"{name}.{format.lower()}"'}
        headers["X-Content-Type-Options"] = "nosniff"
        if headers["ETag"] in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        if format == "SDZ":
            return FileResponse(path, headers=headers, media_type=media_type)
        data = await self.convert(rendered, path, format)
        return Response(data, headers=headers, media_type=media_type)


def negotiated(accept: str) -> str | None:
    """The media type that a client likes best (RFC 9110, section 12.5.1), or None."""
    weights: dict[str, float] = {}
    for item in accept.lower().split(","):
        media_range, *parameters = (part.strip() for part in item.split(";"))
        given = [p.removeprefix("q=") for p in parameters if p.startswith("q=")]
        valid = re.fullmatch(r"0(\.\d{0,3})?|1(\.0{0,3})?", given[0] if given else "1")
        weights[media_range] = float(valid[0]) if valid else 0

    def weight(media_type: str) -> float:
        # A browser that takes image/* means the formats that it knows, and PNG is one of them. The
        # other formats must be named.
        ranges = ("image/png", "image/*", "*/*") if media_type == "image/png" else (media_type,)
        return next((weights[r] for r in ranges if r in weights), 0)

    best = max(SERVED, key=weight)
    return best if weight(best) else None


def converted(path: Path, most_pixels: int) -> tuple[tuple[int, int], bytes]:
    """An upload upright: its size, its .sdz file. HTTPException if it is no accepted picture."""
    data = path.read_bytes()
    if data.startswith(b"\xff\xd8") and data.count(SCAN) > MOST_SCANS:
        raise HTTPException(422, f"a JPEG file of more than {MOST_SCANS} scans")
    try:
        with Image.open(io.BytesIO(data), formats=UPLOADS) as image:
            width, height = image.size
            fits = width * height <= most_pixels and max(width, height) <= LONGEST_SIDE
            if fits:  # if not, nothing of that size is allocated
                upright = ImageOps.exif_transpose(image)
                return upright.size, to_sdz(upright)
    except UnidentifiedImageError:
        raise HTTPException(415, f"none of {', '.join(UPLOADS)}") from None
    except Image.DecompressionBombError:
        pass
    except Exception as e:  # a decoder may raise anything for a damaged file
        raise HTTPException(422, f"cannot be converted: {e}") from None
    raise HTTPException(413, f"more than {most_pixels:,} pixels, or {LONGEST_SIDE:,} a side")


def to_sdz(image: Image.Image) -> bytes:
    """Keep a picture and its colour profile only. EXIF may say where it was taken."""
    file = io.BytesIO()
    image.save(file, "SDZ", exif=None, xmp=None)
    return file.getvalue()


def rendered(path: Path, format: str) -> bytes:
    """Convert a kept picture to a format that browsers know."""
    file = io.BytesIO()
    with Image.open(path, formats=["SDZ"]) as image:
        image.save(file, format, quality=WEBP_QUALITY)  # PNG ignores it
    return file.getvalue()


def create_app(folder: Path, limits: Limits | None = None) -> Starlette:
    """The ASGI application."""
    return Server(folder, limits or Limits()).app()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Keep pictures as .sdz and serve them.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args()
    uvicorn.run(create_app(options.folder), host=options.host, port=options.port)
