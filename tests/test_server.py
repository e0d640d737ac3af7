"""examples/server.py: what it takes, what it refuses and how it says so, what it serves to whom."""

from __future__ import annotations

import importlib
import io
import threading
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import ExifTags, Image, PngImagePlugin

import pillow_sdz  # noqa: F401  # registers the format SDZ
from sdz_files import assert_similar

for needed in ("starlette", "uvicorn", "httpx2"):
    pytest.importorskip(needed, reason=f"needs {needed}")
testclient = pytest.importorskip("starlette.testclient")

EXAMPLES = Path(__file__).parent.parent / "examples"
# What today's browsers ask for in an <img>, as their makers document it.
CHROME = "image/avif,image/webp,image/apng,image/svg+xml,image/*,*/*;q=0.8"
OLD_SAFARI = "image/png,image/svg+xml,image/*;q=0.8,video/*;q=0.8,*/*;q=0.5"


@pytest.fixture(scope="module")
def server() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)
        return importlib.import_module("server")


@pytest.fixture
def client(server: ModuleType, tmp_path: Path) -> Iterator[testclient.TestClient]:
    limits = server.Limits(upload=100_000, pixels=20_000, working=2, waiting=1)
    with testclient.TestClient(server.create_app(tmp_path / "pictures", limits)) as client:
        yield client


def file_of(picture: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, format, **options)
    return file.getvalue()


def opened(data: bytes) -> Image.Image:
    picture = Image.open(io.BytesIO(data))
    picture.load()
    return picture


def uploaded(client: testclient.TestClient, data: bytes) -> str:
    response = client.post("/", content=data)
    assert response.status_code == 201, response.text
    return str(response.headers["location"])


# uploads


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "AVIF"])
def test_an_upload_becomes_a_file_named_by_its_content(
    client: testclient.TestClient, photo: Image.Image, format: str, tmp_path: Path
) -> None:
    response = client.post("/", content=file_of(photo, format))
    name = response.json()["name"]
    (path,) = (tmp_path / "pictures").iterdir()
    assert path.name == f"{name}.sdz"
    assert response.headers["location"] == f"/{name}"
    assert response.json() == {
        "name": name,
        "width": 61,
        "height": 43,
        "bytes": path.stat().st_size,
    }
    assert opened(path.read_bytes()).format == "SDZ"


def test_the_same_upload_is_kept_once(
    client: testclient.TestClient, photo: Image.Image, tmp_path: Path
) -> None:
    data = file_of(photo)
    assert uploaded(client, data) == uploaded(client, data)
    assert len(list((tmp_path / "pictures").iterdir())) == 1


def test_private_metadata_is_dropped_and_the_picture_turned(
    client: testclient.TestClient, photo: Image.Image
) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    exif[ExifTags.Base.Artist] = "Vivian"
    place = uploaded(client, file_of(photo, "JPEG", exif=exif, icc_profile=b"colours", xmp=b"<x/>"))
    kept = opened(client.get(place, headers={"Accept": "image/x-sdz"}).content)
    assert kept.size == (43, 61)
    assert not kept.getexif()
    assert "xmp" not in kept.info
    assert kept.info["icc_profile"] == b"colours"


def png_of_size(width: int, height: int) -> bytes:
    """A PNG file of a few bytes that says that it has so many pixels."""
    data = bytearray(file_of(Image.new("1", (8, 8))))
    data[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


def text_bomb() -> bytes:
    """A PNG file with two megabytes of text in two thousand bytes."""
    text = PngImagePlugin.PngInfo()
    text.add_text("bomb", "0" * 2_000_000, zip=True)
    return file_of(Image.new("L", (8, 8)), pnginfo=text)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        pytest.param(b"", 415, id="nothing"),
        pytest.param(b"no picture", 415, id="no picture"),
        pytest.param(file_of(Image.new("L", (8, 8)), "BMP"), 415, id="a format not taken"),
        pytest.param(bytes(100_001), 413, id="too many bytes"),
        pytest.param(file_of(Image.new("L", (201, 100))), 413, id="too many pixels"),
        pytest.param(png_of_size(20_000, 1), 413, id="too long a side"),
        pytest.param(png_of_size(14_000, 14_000), 413, id="a decompression bomb"),
        pytest.param(png_of_size(2**31 - 1, 2**31 - 1), 413, id="a larger one"),
        pytest.param(text_bomb(), 422, id="a bomb of text"),
        pytest.param(png_of_size(9, 9), 422, id="too few pixels"),
        pytest.param(file_of(Image.radial_gradient("L"), "JPEG")[:900], 413, id="cut, too large"),
        pytest.param(
            file_of(Image.radial_gradient("L").resize((90, 90)), "JPEG")[:900], 422, id="cut"
        ),
        pytest.param(file_of(Image.new("I;16", (8, 8))), 422, id="more than 8 bits"),
    ],
)
def test_what_is_refused_leaves_nothing(
    client: testclient.TestClient, data: bytes, status: int, tmp_path: Path
) -> None:
    assert client.post("/", content=data).status_code == status
    assert list((tmp_path / "pictures").iterdir()) == []


def test_an_upload_of_unknown_length_is_cut_off(client: testclient.TestClient) -> None:
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        while sent < 50_000_000:
            sent += 10_000
            yield bytes(10_000)

    assert client.post("/", content=endless()).status_code == 413


# serving


@pytest.fixture
def place(client: testclient.TestClient, photo: Image.Image) -> str:
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
def test_each_client_gets_what_it_likes_best(
    client: testclient.TestClient, accept: str, served: str
) -> None:
    place = uploaded(client, file_of(Image.new("RGB", (16, 16), "teal")))
    response = client.get(place, headers={"Accept": accept})
    assert response.status_code == 200
    assert response.headers["content-type"] == f"image/{served}"
    assert response.headers["vary"] == "Accept"
    assert opened(response.content).get_format_mimetype() == f"image/{served}"


@pytest.mark.parametrize("accept", ["text/html", "image/png;q=0", "*/*;q=0", "image/avif"])
def test_a_client_that_likes_none_of_them_is_told(
    client: testclient.TestClient, place: str, accept: str
) -> None:
    response = client.get(place, headers={"Accept": accept})
    assert (response.status_code, response.headers["vary"]) == (406, "Accept")


def test_what_is_served_is_the_picture(
    client: testclient.TestClient, place: str, tmp_path: Path
) -> None:
    (path,) = (tmp_path / "pictures").iterdir()
    kept = opened(path.read_bytes())
    assert client.get(place, headers={"Accept": "image/x-sdz"}).content == path.read_bytes()
    png = opened(client.get(place, headers={"Accept": "image/png"}).content)
    assert png.tobytes() == kept.tobytes()
    assert_similar(opened(client.get(place, headers={"Accept": "image/webp"}).content), kept, 2)


def test_caches(client: testclient.TestClient, place: str) -> None:
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
def test_unknown(client: testclient.TestClient, path: str, tmp_path: Path) -> None:
    (tmp_path / "secret.sdz").write_bytes(b"secret")
    assert client.get(path).status_code in (404, 405)


# too much at once


def test_too_many_at_once_are_sent_away(
    server: ModuleType,
    client: testclient.TestClient,
    photo: Image.Image,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two pictures are worked on and one waits; of ten that come meanwhile none is taken."""
    release = threading.Event()
    converted = server.converted

    def held(*arguments: Any) -> Any:
        assert release.wait(60)
        return converted(*arguments)

    monkeypatch.setattr(server, "converted", held)
    data = file_of(photo)
    with ThreadPoolExecutor(13) as pool:
        asked = [pool.submit(client.post, "/", content=data) for _ in range(13)]
        refused = [one.result() for one in islice(as_completed(asked), 10)]
        # The event loop is free meanwhile.
        assert client.get("/" + "0" * 64).status_code == 404
        release.set()
    assert {one.status_code for one in refused} == {503}
    assert {one.headers["retry-after"] for one in refused} == {"1"}
    assert sorted(one.result().status_code for one in asked) == [201] * 3 + [503] * 10
    assert client.post("/", content=data).status_code == 201


def test_what_takes_too_long(
    server: ModuleType, photo: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = server.Limits(seconds=2)
    with testclient.TestClient(server.create_app(tmp_path, limits)) as client:
        place = uploaded(client, file_of(photo))
        release = threading.Event()
        monkeypatch.setattr(server, "rendered", lambda *_: release.wait(60))
        assert client.get(place).status_code == 503
        release.set()
        monkeypatch.undo()
        assert client.get(place).status_code == 200
