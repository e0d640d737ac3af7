"""examples/server.py: what it accepts, what it refuses with which message, and what it serves."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib
import io
import multiprocessing
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import ExifTags, Image, PngImagePlugin

import pillow_sdz  # noqa: F401  # registers the format SDZ
import server_work
from sdz_files import assert_similar

pytest.importorskip("starlette", reason="needs starlette")
uvicorn = pytest.importorskip("uvicorn", reason="needs uvicorn")
httpx2 = pytest.importorskip("httpx2", reason="needs httpx2")

EXAMPLES = Path(__file__).parent.parent / "examples"
# The formats that today's browsers ask for in an <img>, by their documentation.
CHROME = "image/avif,image/webp,image/apng,image/svg+xml,image/*,*/*;q=0.8"
OLD_SAFARI = "image/png,image/svg+xml,image/*;q=0.8,video/*;q=0.8,*/*;q=0.5"


UPLOAD = 300_000  # bytes
STARTS = 60  # seconds within which a server does, on any machine


@pytest.fixture(scope="module")
def server() -> Iterator[ModuleType]:
    """The example, which its worker processes import as well."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)
        yield importlib.import_module("server")


@pytest.fixture(scope="module")
def started(server: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A server as `uvicorn` runs it, in a thread, and where it listens."""
    limits = server.Limits(upload=UPLOAD, pixels=20_000, working=2, waiting=1, receiving=4)
    running = server.Server(tmp_path_factory.mktemp("pictures"), limits)
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(running.app(), log_level="warning")
    loop = uvicorn.Server(config)
    thread = threading.Thread(target=loop.run, args=([listener],))
    thread.start()
    deadline = time.monotonic() + STARTS
    while not loop.started and thread.is_alive() and time.monotonic() < deadline:
        time.sleep(0.01)
    running.address = listener.getsockname()
    yield running
    loop.should_exit = True
    thread.join()
    listener.close()


@pytest.fixture
def running(started: Any) -> Iterator[Any]:
    """The server, without pictures."""
    yield started
    for path in started.folder.iterdir():
        path.unlink()


@pytest.fixture
def client(running: Any) -> Iterator[Any]:
    host, port = running.address
    with httpx2.Client(base_url=f"http://{host}:{port}", timeout=60) as client:
        yield client


def file_of(picture: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, format, **options)
    return file.getvalue()


def opened(data: bytes) -> Image.Image:
    picture = Image.open(io.BytesIO(data))
    picture.load()
    return picture


def uploaded(client: Any, data: bytes) -> str:
    response = client.post("/", content=data)
    assert response.status_code == 201, response.text
    return str(response.headers["location"])


# uploads


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "AVIF"])
def test_an_upload_becomes_a_file_named_by_its_content(
    client: Any, photo: Image.Image, format: str, running: Any
) -> None:
    response = client.post("/", content=file_of(photo, format))
    name = response.json()["name"]
    (path,) = running.folder.iterdir()
    assert path.name == f"{name}.sdz"
    assert response.headers["location"] == f"/{name}"
    assert response.json() == {
        "name": name,
        "width": 61,
        "height": 43,
        "bytes": path.stat().st_size,
    }
    assert opened(path.read_bytes()).format == "SDZ"


def test_the_same_upload_is_kept_once(client: Any, photo: Image.Image, running: Any) -> None:
    data = file_of(photo)
    assert uploaded(client, data) == uploaded(client, data)
    assert len(list(running.folder.iterdir())) == 1


def test_private_metadata_is_dropped_and_the_picture_turned(
    client: Any, photo: Image.Image
) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    exif[ExifTags.Base.Artist] = "Vivian"
    data = file_of(photo, "JPEG", exif=exif, icc_profile=b"colours", xmp=b"<x/>")
    response = client.post("/", content=data)
    assert (response.json()["width"], response.json()["height"]) == (43, 61)
    place = response.headers["location"]
    kept = opened(client.get(place, headers={"Accept": "image/x-sdz"}).content)
    assert kept.size == (43, 61)
    assert not kept.getexif()
    assert "xmp" not in kept.info
    assert kept.info["icc_profile"] == b"colours"


def png_of_size(width: int, height: int) -> bytes:
    """A PNG file of a few bytes that says that it has this many pixels."""
    data = bytearray(file_of(Image.new("1", (8, 8))))
    data[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


def text_bomb() -> bytes:
    """A PNG file with two megabytes of text in two thousand bytes."""
    text = PngImagePlugin.PngInfo()
    text.add_text("bomb", "0" * 2_000_000, zip=True)
    return file_of(Image.new("L", (8, 8)), pnginfo=text)


def jpeg_of_scans(count: int) -> bytes:
    """A progressive JPEG file, whose last scan is repeated until there are this many."""
    data = file_of(Image.new("L", (128, 128), 90), "JPEG", progressive=True)
    assert data.endswith(b"\xff\xd9")
    scans = data.count(b"\xff\xda")
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + (count - scans) * last + data[-2:]


def test_a_jpeg_of_as_many_scans_as_may_be(client: Any) -> None:
    assert client.post("/", content=jpeg_of_scans(100)).status_code == 201


@pytest.mark.parametrize(
    ("data", "status"),
    [
        pytest.param(b"", 415, id="nothing"),
        pytest.param(b"no picture", 415, id="no picture"),
        pytest.param(file_of(Image.new("L", (8, 8)), "BMP"), 415, id="a format not taken"),
        pytest.param(bytes(UPLOAD + 1), 413, id="too many bytes"),
        pytest.param(file_of(Image.new("L", (201, 100))), 413, id="too many pixels"),
        pytest.param(png_of_size(20_000, 1), 413, id="too long a side"),
        pytest.param(png_of_size(14_000, 14_000), 413, id="a decompression bomb"),
        pytest.param(png_of_size(2**31 - 1, 2**31 - 1), 413, id="a larger one"),
        pytest.param(text_bomb(), 422, id="a bomb of text"),
        pytest.param(png_of_size(9, 9), 422, id="too few pixels"),
        pytest.param(jpeg_of_scans(101), 422, id="scans"),
        pytest.param(jpeg_of_scans(8_000), 422, id="scans that would take minutes"),
        pytest.param(file_of(Image.radial_gradient("L"), "JPEG")[:900], 413, id="cut, too large"),
        pytest.param(
            file_of(Image.radial_gradient("L").resize((90, 90)), "JPEG")[:900], 422, id="cut"
        ),
        pytest.param(file_of(Image.new("I;16", (8, 8))), 422, id="more than 8 bits"),
    ],
)
def test_what_is_refused_leaves_nothing(
    client: Any, data: bytes, status: int, running: Any
) -> None:
    assert client.post("/", content=data).status_code == status
    assert list(running.folder.iterdir()) == []


def test_an_upload_of_unknown_length_is_cut_off(client: Any) -> None:
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        while sent < 50_000_000:
            sent += 10_000
            yield bytes(10_000)

    assert client.post("/", content=endless()).status_code == 413


# serving


@pytest.fixture
def place(client: Any, photo: Image.Image) -> str:
    return uploaded(client, file_of(photo))


@pytest.mark.parametrize(
    ("accept", "served"),
    [
        (CHROME, "webp"),
        (OLD_SAFARI, "png"),
        ("*/*", "png"),  # curl
        ("", "png"),
        ("image/*", "png"),
        ("image/x-sdz", "x-sdz"),
        ("image/x-sdz, image/webp, image/png", "x-sdz"),  # the smallest
        ("image/x-sdz;q=0.5, image/webp;q=0.7, image/png;q=0.6", "webp"),
        ("image/webp;q=0.1, */*", "png"),
        ("image/webp;q=0.1, image/png;q=0, */*", "webp"),
        ("IMAGE/WebP ; Q=0.9, image/png;q=0.8", "webp"),
        ("image/webp;q=nonsense, image/png;q=0.001", "png"),
    ],
)
def test_each_client_gets_what_it_likes_best(client: Any, accept: str, served: str) -> None:
    place = uploaded(client, file_of(Image.new("RGB", (16, 16), "teal")))
    response = client.get(place, headers={"Accept": accept})
    assert response.status_code == 200
    assert response.headers["content-type"] == f"image/{served}"
    assert response.headers["vary"] == "Accept"
    assert opened(response.content).get_format_mimetype() == f"image/{served}"


@pytest.mark.parametrize("accept", ["text/html", "image/png;q=0", "*/*;q=0", "image/avif"])
def test_a_client_that_likes_none_of_them_is_told(client: Any, place: str, accept: str) -> None:
    response = client.get(place, headers={"Accept": accept})
    assert (response.status_code, response.headers["vary"]) == (406, "Accept")


def test_what_is_served_is_the_picture(client: Any, place: str, running: Any) -> None:
    (path,) = running.folder.iterdir()
    kept = opened(path.read_bytes())
    assert client.get(place, headers={"Accept": "image/x-sdz"}).content == path.read_bytes()
    png = opened(client.get(place, headers={"Accept": "image/png"}).content)
    assert png.tobytes() == kept.tobytes()
    webp = opened(client.get(place, headers={"Accept": "image/webp"}).content)
    assert_similar(webp, kept, 2.5)  # measured: 2.02, which is WebP's own loss


def test_caches(client: Any, place: str) -> None:
    tags = set()
    for accept in ("image/png", "image/webp", "image/x-sdz"):
        first = client.get(place, headers={"Accept": accept})
        assert "immutable" in first.headers["cache-control"]
        tags.add(first.headers["etag"])
        again = client.get(
            place, headers={"Accept": accept, "If-None-Match": first.headers["etag"]}
        )
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == first.headers["etag"]
    assert len(tags) == 3


@pytest.mark.parametrize(
    "path", ["/" + "0" * 64, "/photo", "/..%2Fsecret", "/%2e%2e/secret", "/" + "F" * 64, "/"]
)
def test_unknown(client: Any, path: str, running: Any) -> None:
    (running.folder.parent / "secret.sdz").write_bytes(b"secret")
    # The root takes uploads alone.
    assert client.get(path).status_code == (405 if path == "/" else 404)


# too much at once


def until(condition: Callable[[], bool]) -> None:
    """Wait for something that happens on any machine, however busy."""
    deadline = time.monotonic() + STARTS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("way", ["upload", "serve"])
def test_too_many_at_once_are_sent_away(
    server: ModuleType,
    client: Any,
    place: str,
    photo: Image.Image,
    way: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Two pictures are worked on, and one waits. Ten more come in this time, and none is taken."""
    release = tmp_path / "release"
    for name in ("converted", "rendered"):
        monkeypatch.setattr(server, name, functools.partial(server_work.held, release, name))
    data = file_of(photo)
    ask, due = {
        "upload": (functools.partial(client.post, "/", content=data), 201),
        "serve": (functools.partial(client.get, place), 200),
    }[way]
    with ThreadPoolExecutor(13) as pool, contextlib.ExitStack() as stack:
        stack.callback(release.touch)
        asked = [pool.submit(ask) for _ in range(13)]
        refused = [one.result() for one in islice(as_completed(asked, STARTS), 10)]
        # The event loop is free meanwhile, and a file as it is needs no work.
        assert client.get("/" + "0" * 64).status_code == 404
        assert client.get(place, headers={"Accept": "image/x-sdz"}).status_code == 200
    assert {one.status_code for one in refused} == {503}
    assert {one.headers["retry-after"] for one in refused} == {"1"}
    assert sorted(one.result().status_code for one in asked) == [due] * 3 + [503] * 10
    assert ask().status_code == due


@pytest.mark.slow
def test_work_without_end_is_ended(
    server: ModuleType,
    running: Any,
    client: Any,
    photo: Image.Image,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its process is ended too, and another replaces it. Requests that wait are served."""
    monkeypatch.setattr(running, "limits", replace(running.limits, work=1, seconds=STARTS))
    before = {process.pid for process in multiprocessing.active_children()}
    assert len(before) == 2
    with ThreadPoolExecutor(2) as pool:
        with monkeypatch.context() as patch:
            patch.setattr(server, "converted", server_work.endless)
            asked = [pool.submit(client.post, "/", content=file_of(photo)) for _ in range(2)]
            until(lambda: running.pictures == 2)
        monkeypatch.setattr(running, "limits", replace(running.limits, work=STARTS))
        assert client.post("/", content=file_of(photo)).status_code == 201
        ended = [one.result() for one in asked]
    assert {one.status_code for one in ended} == {503}
    assert {one.headers["retry-after"] for one in ended} == {"10"}
    assert before.isdisjoint(process.pid for process in multiprocessing.active_children())


def test_waiting_too_long(
    server: ModuleType,
    running: Any,
    client: Any,
    photo: Image.Image,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """A request that waits in vain ends no process, and gives its place back."""
    release = tmp_path / "release"
    held = functools.partial(server_work.held, release, "converted")
    data = file_of(photo)
    before = {process.pid for process in multiprocessing.active_children()}
    with ThreadPoolExecutor(2) as pool:
        with monkeypatch.context() as patch:
            patch.setattr(server, "converted", held)
            asked = [pool.submit(client.post, "/", content=data) for _ in range(2)]
            until(lambda: running.pictures == 2)
        with monkeypatch.context() as patch:
            patch.setattr(running, "limits", replace(running.limits, seconds=0.1))
            assert client.post("/", content=data).status_code == 503
        assert running.pictures == 2
        release.touch()
        assert [one.result().status_code for one in asked] == [201, 201]
    assert before == {process.pid for process in multiprocessing.active_children()}


@contextlib.contextmanager
def begun(running: Any, data: bytes, length: int) -> Iterator[socket.socket]:
    """An upload of which only the first bytes have come."""
    count = len(running.uploads)
    with socket.create_connection(running.address, timeout=60) as connection:
        connection.sendall(head_of(length) + data)
        until(lambda: len(running.uploads) > count)
        yield connection


def head_of(length: int) -> bytes:
    """The first lines of an upload."""
    return f"POST / HTTP/1.1\r\nHost: here\r\nContent-Length: {length}\r\n\r\n".encode()


def status(connection: socket.socket) -> int:
    """The status of the answer."""
    return int(connection.recv(4096).split()[1])


def test_slow_uploads_hold_no_place(running: Any, client: Any, photo: Image.Image) -> None:
    """There are more slow uploads than places. If there are too many, the slowest is ended."""
    data = file_of(photo)
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(begun(running, data[: 9 * n + 1], len(data))) for n in range(4)]
        assert client.post("/", content=data).status_code == 201
        assert len(running.uploads) == 3
        assert status(slow[0]) == 408
        for n in (1, 2, 3):
            slow[n].sendall(data[9 * n + 1 :])
            assert status(slow[n]) == 201
    until(lambda: not running.uploads)


def test_a_flood_of_empty_uploads_ends_no_ordinary_one(
    running: Any, client: Any, photo: Image.Image
) -> None:
    """There are ten times as many as places, while an ordinary upload sends 20 kB a second."""
    data = file_of(photo.resize((140, 140)).effect_spread(9))
    with contextlib.ExitStack() as stack:
        connection = stack.enter_context(begun(running, data[:20_000], len(data)))
        for part in range(20_000, len(data), 2_000):
            time.sleep(0.1)
            connection.sendall(data[part : part + 2_000])
            for _ in range(10):
                empty = stack.enter_context(socket.create_connection(running.address))
                empty.sendall(head_of(99))
        assert status(connection) == 201
    until(lambda: not running.uploads)


def test_an_upload_that_has_just_begun_is_not_the_slowest(server: ModuleType) -> None:
    async def rates() -> list[float]:
        uploads = [server.Upload(None) for _ in range(3)]
        loop = asyncio.get_running_loop()
        for upload, (seconds, received) in zip(
            uploads, [(0, 0), (20, 100), (5, 200_000)], strict=True
        ):
            upload._begun, upload.received = loop.time() - seconds, received
        return [upload.rate() for upload in uploads]

    begun, slow, ordinary = asyncio.run(rates())
    assert slow < begun < ordinary


def test_an_upload_that_takes_too_long(running: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "limits", replace(running.limits, seconds=0.5))
    with begun(running, b"x", 99) as connection:
        assert status(connection) == 408
    assert not running.uploads


def test_an_upload_that_is_broken_off(running: Any) -> None:
    with begun(running, b"x", 99):
        pass
    until(lambda: not running.uploads)
