"""Keep uploaded pictures as `.sdz`, and serve them to browsers as WebP or PNG.

pip install starlette uvicorn
python examples/server.py pictures

curl -i --data-binary @photo.jpg http://127.0.0.1:8000/
curl http://127.0.0.1:8000/NAME -o photo.png
curl -H "Accept: image/x-sdz" http://127.0.0.1:8000/NAME -o photo.sdz

What strangers send is limited in bytes, pixels, time and number. There is no authentication, and
slow headers are not timed: on the open internet, put a proxy in front that does both and caches.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import io
import os
import re
import secrets
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

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
# What is served, the smallest first: the first counts where a client likes several equally.
SERVED = {"image/x-sdz": "SDZ", "image/webp": "WEBP", "image/png": "PNG"}
WEBP_QUALITY = 95  # the picture is a reconstruction already, do not damage it a second time
LONGEST_SIDE = 16383  # of a WebP picture
NAME = re.compile(r"[0-9a-f]{64}")
FOREVER = {"Cache-Control": "public, max-age=31536000, immutable"}  # a name's bytes never change

T = TypeVar("T")


@dataclass(frozen=True)
class Limits:
    """What a request may cost, all of them chosen."""

    upload: int = 16 << 20  # bytes
    pixels: int = 12_000_000  # 5 seconds of a core to encode
    seconds: float = 20  # to receive an upload, and again to convert a picture
    working: int = os.cpu_count() or 1  # pictures at a time, each on a core of its own
    waiting: int = 32  # requests besides, each with its upload in memory


class Server:
    """Pictures in a folder, as NAME.sdz, where NAME is the sha256 of the file."""

    def __init__(self, folder: Path, limits: Limits) -> None:
        self.folder = folder
        self.limits = limits
        # A picture keeps one thread busy: more of torch's would only be in the others' way.
        self.pool = ThreadPoolExecutor(
            limits.working, initializer=torch.set_num_threads, initargs=(1,)
        )
        self.places = asyncio.Semaphore(limits.working + limits.waiting)

    @contextlib.asynccontextmanager
    async def lifespan(self, _: Starlette) -> AsyncIterator[None]:
        self.folder.mkdir(parents=True, exist_ok=True)
        await self.convert(to_sdz, Image.new("RGB", (16, 16)))  # loads the model
        with self.pool:
            yield

    @contextlib.asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Admission: rather no answer now than a late one, and no memory without bound."""
        if self.places.locked():
            raise HTTPException(503, "busy", {"Retry-After": "1"})
        async with self.places:
            yield

    async def convert(self, function: Callable[..., T], *arguments: object) -> T:
        """Call a function in the pool, so that the event loop stays free."""
        running = asyncio.get_running_loop().run_in_executor(self.pool, function, *arguments)
        try:
            async with asyncio.timeout(self.limits.seconds):
                return await running
        except TimeoutError:  # what has begun goes on, for as long as so many pixels take
            raise HTTPException(503, "this takes too long", {"Retry-After": "10"}) from None

    async def upload(self, request: Request) -> Response:
        async with self.place():
            data = await self.received(request)
            size, encoded = await self.convert(converted, data, self.limits.pixels)
            name = await asyncio.to_thread(self.store, encoded)
        about = {"name": name, "width": size[0], "height": size[1], "bytes": len(encoded)}
        return JSONResponse(about, 201, {"Location": f"/{name}"})

    async def received(self, request: Request) -> bytes:
        too_large = HTTPException(413, f"more than {self.limits.upload:,} bytes")
        if int(request.headers.get("content-length", 0)) > self.limits.upload:
            raise too_large
        data = bytearray()
        try:
            async with asyncio.timeout(self.limits.seconds):
                async for chunk in request.stream():
                    data += chunk
                    if len(data) > self.limits.upload:
                        raise too_large
        except TimeoutError:
            raise HTTPException(408, "the upload is too slow") from None
        except ClientDisconnect:
            raise HTTPException(400, "the upload was broken off") from None
        return bytes(data)

    def store(self, data: bytes) -> str:
        name = hashlib.sha256(data).hexdigest()
        path = self.folder / f"{name}.sdz"
        if not path.exists():
            temporary = self.folder / f".{name}.{secrets.token_hex(4)}.tmp"
            try:
                temporary.write_bytes(data)
                temporary.replace(path)  # at once, so that nobody is served half a file
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
        # Weak: another version of the decoder may be a grey level off.
        headers = {**FOREVER, "Vary": "Accept", "ETag": f'W/"{name}.{format.lower()}"'}
        headers["X-Content-Type-Options"] = "nosniff"
        if headers["ETag"] in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        if format == "SDZ":
            return FileResponse(path, headers=headers, media_type=media_type)
        async with self.place():
            data = await self.convert(rendered, path, format)
        return Response(data, headers=headers, media_type=media_type)


def negotiated(accept: str) -> str | None:
    """The media type that a client likes best (RFC 9110, section 12.5.1), None for none of them."""
    weights: dict[str, float] = {}
    for item in accept.lower().split(","):
        media_range, *parameters = (part.strip() for part in item.split(";"))
        given = [p.removeprefix("q=") for p in parameters if p.startswith("q=")]
        valid = re.fullmatch(r"0(\.\d{0,3})?|1(\.0{0,3})?", given[0] if given else "1")
        weights[media_range] = float(valid[0]) if valid else 0

    def weight(media_type: str) -> float:
        # A browser that takes image/* means the formats that it knows, of which PNG surely is one.
        # Others have to be named.
        ranges = ("image/png", "image/*", "*/*") if media_type == "image/png" else (media_type,)
        return next((weights[r] for r in ranges if r in weights), 0)

    best = max(SERVED, key=weight)
    return best if weight(best) else None


def converted(data: bytes, most_pixels: int) -> tuple[tuple[int, int], bytes]:
    """An upload's size and its .sdz file; HTTPException where it is no picture that is taken."""
    try:
        with Image.open(io.BytesIO(data), formats=UPLOADS) as image:
            width, height = image.size
            fits = width * height <= most_pixels and max(width, height) <= LONGEST_SIDE
            if fits:  # otherwise nothing of that size is allocated
                return image.size, to_sdz(image)
    except UnidentifiedImageError:
        raise HTTPException(415, f"none of {', '.join(UPLOADS)}") from None
    except Image.DecompressionBombError:
        pass
    except Exception as e:  # whatever a decoder makes of a damaged file
        raise HTTPException(422, f"cannot be converted: {e}") from None
    raise HTTPException(413, f"more than {most_pixels:,} pixels, or {LONGEST_SIDE:,} a side")


def to_sdz(image: Image.Image) -> bytes:
    """The right way up, and without metadata but its colours': where it was taken is private."""
    file = io.BytesIO()
    ImageOps.exif_transpose(image).save(file, "SDZ", exif=None, xmp=None)
    return file.getvalue()


def rendered(path: Path, format: str) -> bytes:
    """A kept picture as browsers know it."""
    file = io.BytesIO()
    with Image.open(path, formats=["SDZ"]) as image:
        image.save(file, format, quality=WEBP_QUALITY)  # which PNG ignores
    return file.getvalue()


def create_app(folder: Path, limits: Limits | None = None) -> Starlette:
    """The ASGI application."""
    server = Server(folder, limits or Limits())
    routes = [
        Route("/", server.upload, methods=["POST"]),
        Route("/{name}", server.picture),
    ]
    return Starlette(routes=routes, lifespan=server.lifespan)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Keep pictures as .sdz and serve them.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args()
    uvicorn.run(create_app(options.folder), host=options.host, port=options.port)
