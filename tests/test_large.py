"""Large pictures: bands and tiles take little memory, and only needed ones are decoded."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import memory
from pillow_sdz import catalogue, chunks, container, cores, decoding, demo, models, options, spaces
from pillow_sdz.container import Chunk
from pillow_sdz.header import Header
from pillow_sdz.models import runtime
from pillow_sdz.models.mini import Mini
from pillow_sdz.models.mini import memory as tile_memory
from pillow_sdz.models.mini import shape as mini_shape
from sdz_files import CountingFile, decode, encode, framed

BANDS = 5
ROWS = 4  # of latents in a band, which are 64 rows of pixels


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    return demo.photo().crop((150, 50, 150 + 300, 50 + ROWS * 16 * BANDS))


@pytest.fixture(scope="module")
def banded(photo: Image.Image) -> bytes:
    """A file of several bands, like those of larger pictures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pillow_sdz.codings.banded.BAND_ROWS", ROWS)
        return encode(photo, quality=60)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of the bands that were decoded."""
    numbers: list[int] = []
    decode = decoding.Frames.decode

    def noted(self: decoding.Frames, number: int, band: int, **options: bool) -> decoding.Band:
        numbers.append(band)
        return decode(self, number, band, **options)

    monkeypatch.setattr(decoding.Frames, "decode", noted)
    return numbers


@pytest.fixture(params=["float32", "int8"])
def dtype(request: pytest.FixtureRequest) -> Iterator[str]:
    with options.override(DTYPE=request.param):
        yield request.param


def mini() -> Mini:
    network: Mini = models.load(catalogue.MINI)
    return network


def budget_for(side: int) -> int:
    """The smallest budget that gives the decoder's tiles at least this side."""
    return tile_memory.FIXED_MEMORY + tile_memory.DECODER_MEMORY * (side + 26) ** 2


# Bands


@pytest.mark.parametrize(
    ("height", "width", "rows"),
    [
        (64, 128, None),  # 1024x2048 pixels are still one band
        (65, 128, 34),  # bands of about equal height, and even
        (66, 129, 34),
        (511, 766, 10),  # 100 megapixels
        (2, 4096, None),
        (5, 4096, 2),
        (4096, 4096, 2),
        (4096, 1, 64),
    ],
)
def test_bands_are_bounded(height: int, width: int, rows: int | None) -> None:
    limit = spaces.HYPERPRIOR.band_latents
    assert limit is not None
    assert decoding.coder_of(catalogue.MINI, spaces.HYPERPRIOR).band_rows(height, width) == rows
    assert decoding.coder_of(catalogue.SD_MINI, spaces.CONTEXT).band_rows(height, width) is None
    found = rows or height
    assert found * width <= limit


def test_every_band_is_a_chunk_of_its_own(photo: Image.Image, banded: bytes) -> None:
    parts = container.read(banded)
    header = Header.parse(parts[0].data)
    assert [c.type for c in parts] == [b"HEAD", b"BAND", *[b"LATN"] * BANDS, b"DONE"]
    assert parts[1].data == bytes([0, ROWS])
    for number, chunk in enumerate(parts[2:-1]):
        alone = header._replace(size=(photo.width, ROWS * 16))
        file = container.write([Chunk(b"HEAD", alone.pack()), chunk, Chunk(b"DONE", b"")])
        # It shows the same place as the picture, except where the decoder looks beyond the cut.
        top = number * ROWS * 16
        expected = np.asarray(photo.crop((0, top, photo.width, top + ROWS * 16))).astype(int)
        difference = np.abs(np.asarray(decode(file)) - expected)[16:-16]
        assert difference.mean() < 8


def test_bands_cost_little(photo: Image.Image, banded: bytes) -> None:
    """Each cut costs 1.4 percent here, because these bands are small.

    Usual ones have up to 64 rows.
    """
    one = len(encode(photo, quality=60))
    assert one < len(banded) < one * (1 + 0.015 * (BANDS - 1))


def test_no_seam_between_bands(photo: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    """If latents are rounded, one band or many give the same latents, and the same pixels."""
    monkeypatch.setattr("pillow_sdz.codings.quantize.AXIS_WEIGHTS", (1e-12, 1e-12))
    whole = encode(photo, quality=60)
    monkeypatch.setattr("pillow_sdz.codings.banded.BAND_ROWS", ROWS)
    assert decode(encode(photo, quality=60)).tobytes() == decode(whole).tobytes()


def test_bands_hardly_change_what_is_chosen(photo: Image.Image, banded: bytes) -> None:
    """The second nearest integers depend on what the prior sees, and a band sees no other band."""
    one, many = (np.asarray(decode(data)) for data in (encode(photo, quality=60), banded))
    errors = [np.abs(shown - np.asarray(photo).astype(float)) for shown in (one, many)]
    rows = [error.mean((1, 2)) for error in errors]
    edges = np.arange(1, BANDS)[:, None] * ROWS * 16 + np.arange(-8, 8)
    assert abs(rows[1].mean() / rows[0].mean() - 1) < 0.01
    assert abs(rows[1][edges].mean() / rows[0][edges].mean() - 1) < 0.02


def test_bands_too_large_are_refused() -> None:
    """A file of 60 bytes must not decode to any number of latents."""
    header = Header("RGB", (4096, 4096), "mini", catalogue.MINI.digest, 384, 16, 5000)
    parts = [Chunk(b"HEAD", header.pack()), Chunk(b"LATN", b""), Chunk(b"DONE", b"")]
    with pytest.raises(OSError, match="bands of 256x256 latents, more than the limit"):
        decode(framed(parts))


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"\0\x04\0", "BAND has 3 bytes"),
        (b"\0\0", "bands of 0 rows in a picture of 20"),
        (b"\0\x05", "bands of 5 rows in a picture of 20"),
        (b"\0\x14", "bands of 20 rows in a picture of 20"),
    ],
)
def test_bands_that_are_none(banded: bytes, data: bytes, complaint: str) -> None:
    parts = container.read(banded)
    parts[1] = Chunk(b"BAND", data)
    with pytest.raises(OSError, match=complaint):
        decode(framed(parts))
    with pytest.raises(ValueError, match=complaint):
        container.write(parts)


# Tiles


def test_tiles_follow_the_memory_budget() -> None:
    with options.override(MEMORY_BUDGET=options.SMALLEST_BUDGET):
        side = tile_memory.tile_side(tile_memory.DECODER_MEMORY, 13, workers=4)
        assert side == tile_memory.SMALLEST_TILE
    with options.override(MEMORY_BUDGET=budget_for(80)):
        assert tile_memory.tile_side(tile_memory.DECODER_MEMORY, 13) == 80
        # A row of latents that takes as much as a row of a tile: n^2 + 106 n = 106^2.
        columns = 106 * tile_memory.DECODER_MEMORY // (4 * mini_shape.CHANNELS)
        assert tile_memory.tile_side(tile_memory.DECODER_MEMORY, 13, columns) == 65 - 26
    with options.override(MEMORY_BUDGET=1 << 40):
        assert tile_memory.tile_side(24_000, 13, 4096) == tile_memory.LARGEST_TILE


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1, 2, 4, 8])
@pytest.mark.usefixtures("dtype")
def test_tiled_pixels_are_those_of_one_piece(scale: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each stage is computed beyond the tile, as far as the next stages look."""
    monkeypatch.setattr("pillow_sdz.cores.threads", lambda: 1)
    pixels = np.asarray(demo.photo().resize((1296, 1008)))
    latents = mini().encode(pixels, 5000)
    pictures = []
    for side in (tile_memory.LARGEST_TILE, tile_memory.SMALLEST_TILE):
        picture = np.empty((1008 // scale, 1296 // scale, 3), int)
        monkeypatch.setattr(tile_memory, "LARGEST_TILE", side)
        with options.override(MEMORY_BUDGET=1 << 40):
            pieces = list(mini().decode(latents, 5000, scale=scale))
        for place, piece in pieces:
            picture[place] = piece
        pictures.append((len(pieces), picture))
    (one, whole), (many, tiled) = pictures
    assert one == 1 < many
    difference = np.abs(whole - tiled)
    if options.DTYPE == "float32":
        assert difference.max() <= 1
    else:
        # Sums in another order may change an integer of 8 bits, and with it a few latents around.
        assert difference.max() <= 2
        assert (difference > 0).mean() < 0.05


def test_tiles_in_several_threads_are_those_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four threads that decode a picture's tiles, and one thread that decodes the same tiles."""
    rng = np.random.default_rng(0)
    latents = rng.normal(0, 1, (50, 50, mini_shape.CHANNELS)).astype(np.float32)
    monkeypatch.setattr("pillow_sdz.cores.threads", lambda: 4)
    threads = set()
    run = runtime.Network.__call__

    def noted(self: runtime.Network, **inputs: np.ndarray) -> np.ndarray:
        threads.add(threading.get_ident())
        return run(self, **inputs)

    monkeypatch.setattr(runtime.Network, "__call__", noted)
    several = list(mini().decode(latents, 5000))
    assert len(several) == 4
    assert threading.get_ident() not in threads
    at_once = cores.at_once
    monkeypatch.setattr(cores, "at_once", lambda work, items, workers: at_once(work, items, 1))
    one = list(mini().decode(latents, 5000))
    assert [place for place, _ in one] == [place for place, _ in several]
    for (_, expected), (_, found) in zip(one, several, strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("scale", [1, 2, 4, 8])
def test_margins_are_not_too_narrow(scale: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A latent beyond the margin changes nothing."""
    monkeypatch.setattr("pillow_sdz.cores.threads", lambda: 1)  # one tile
    margin = mini_shape.MARGINS[scale]
    size = 2 * margin + 9
    latents = np.zeros((size, size, mini_shape.CHANNELS), np.float32)
    middle = size // 2
    side = 16 // scale
    seen = slice(middle * side, (middle + 1) * side)
    with options.override(DTYPE="float32"):
        ((_, before),) = mini().decode(latents, 5000, scale=scale)
        latents[middle + margin + 1, middle] = 1000
        latents[middle, middle - margin - 1] = 1000
        ((_, after),) = mini().decode(latents, 5000, scale=scale)
    assert (before != after).any()
    assert (before[seen, seen] == after[seen, seen]).all()


# Regions


def test_crop_decodes_the_bands_that_it_needs(
    banded: bytes, decoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """These are the bands of the box, and of 13 latents around it, at which the decoder looks."""
    file = CountingFile(banded)
    with Image.open(file) as im:
        opened = file.count
        im.crop((0, 0, 10, 10))
        assert decoded == [0, 1, 2, 3]
        assert file.count - opened < len(banded) - sum(
            len(c.data) for c in container.read(banded)[-2:]
        )
        decoded.clear()
        im.draft(None, (im.width // 8, im.height // 8))  # looks at one latent
        im.crop((0, 9, 5, 11))
        assert decoded == [0, 1]
        decoded.clear()
        im.load()
        assert decoded == [0, 1, 2, 3, 4]


def test_crop_computes_the_tiles_that_it_needs(
    banded: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """These have 13 more latents on each side than the box, and no more."""
    seen = []
    run = runtime.Network.__call__

    def noted(self: runtime.Network, **inputs: np.ndarray) -> np.ndarray:
        if {"rate", "latents"} <= inputs.keys():
            seen.append(inputs["latents"].shape[:2])
        return run(self, **inputs)

    monkeypatch.setattr(runtime.Network, "__call__", noted)
    wide = demo.photo().resize((1200, 960))
    with Image.open(BytesIO(encode(wide, effort=0))) as im:
        seen.clear()
        im.crop((600, 480, 608, 488))
        assert seen == [(27, 27)]


def test_of_other_models_a_crop_loads_the_picture(photo: Image.Image) -> None:
    """The networks of other models need all latents, so the whole picture is kept."""
    with Image.open(BytesIO(encode(photo, model="sd-mini"))) as im:
        part = im.crop((10, 20, 40, 60))
        assert im.tile == []
        assert part.tobytes() == im.crop((10, 20, 40, 60)).tobytes()


def test_of_a_damaged_file_the_other_parts(banded: bytes) -> None:
    """A part of the picture that does not need the damaged band can be cropped."""
    entries = [e for e in container.Reader(BytesIO(banded)) if e.type == chunks.LATENTS]
    damaged = bytearray(banded)
    damaged[entries[-1].start] ^= 1
    with Image.open(BytesIO(banded)) as im:
        expected = im.crop((0, 0, 300, 30))
    with Image.open(BytesIO(damaged)) as im:
        assert im.crop((0, 0, 300, 30)).tobytes() == expected.tobytes()
        with pytest.raises(OSError, match=f"LATN at byte {entries[-1].offset}: its CRC"):
            im.load()


@pytest.mark.usefixtures("load_truncated")
def test_damaged_bands_are_black(banded: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    # The tiles are others, and in 8 bits sums in another order may round to another level.
    monkeypatch.setattr(options, "DTYPE", "float32")
    entries = [e for e in container.Reader(BytesIO(banded)) if e.type == chunks.LATENTS]
    file = container.read(banded)
    place = [n for n, chunk in enumerate(file) if chunk.type == chunks.LATENTS][2]
    file[place] = file[place]._replace(data=b"\xff" * 40)  # what no encoder makes
    whole = np.asarray(decode(banded))
    with pytest.warns(UserWarning, match="words do not decode: the rows 128 to 192 are black"):
        found = np.asarray(decode(framed(file)))
    top, bottom = 2 * ROWS * 16, 3 * ROWS * 16
    assert not found[top:bottom].any()
    # The first and the last row are too far from the damaged band to change.
    assert np.array_equal(found[0], whole[0]) or np.abs(found[0].astype(int) - whole[0]).max() <= 1
    assert found[:top].any(axis=2).mean() > 0.9
    assert found[bottom:].any(axis=2).mean() > 0.9
    with pytest.warns(UserWarning, match="truncated SDZ file") as warned:
        cut = np.asarray(decode(banded[: entries[3].start]))
    assert [str(one.message).partition("the rows ")[2] for one in warned] == [
        "192 to 256 are guessed in part",  # only the framing of its chunk is there
        "256 to 320 are black",
    ]
    assert not cut[4 * ROWS * 16 :].any()
    assert cut[: 3 * ROWS * 16].any(axis=2).mean() > 0.9


@pytest.mark.usefixtures("load_truncated")
@pytest.mark.parametrize("scale", [1, 2])
def test_a_damaged_band_is_black_where_a_part_has_it(banded: bytes, scale: int) -> None:
    file = container.read(banded)
    place = [n for n, chunk in enumerate(file) if chunk.type == chunks.LATENTS][2]
    file[place] = file[place]._replace(data=b"\xff" * 40)
    with Image.open(BytesIO(framed(file))) as im:
        im.draft(None, (im.width // scale, im.height // scale))
        with pytest.warns(UserWarning, match="are black"):
            part = np.asarray(im.crop((10, 100 // scale, 150 // scale, 240 // scale)))
    black = ~part.any(axis=(1, 2))
    # Rows 128 to 192 of the picture.
    assert np.flatnonzero(black).tolist() == [*range(28 // scale, 92 // scale)]


# Memory


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from Linux's /proc")
@pytest.mark.slow
@pytest.mark.parametrize("way", ["load", "draft 1/2", "draft 1/8", "crop 512x512"])
def test_memory_is_bounded(way: str, tmp_path: Path, large_file: Path) -> None:
    """At most 300 MB more than before, besides twice the decoded image of 4 bytes a pixel.

    This includes the model itself.
    """
    found = memory.in_fresh_process(large_file, way)
    assert found["peak"] <= 300e6 + 2 * found["decoded"]


@pytest.fixture(scope="module")
def large_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture of 6 megapixels takes four tiles and two bands."""
    path = tmp_path_factory.mktemp("large") / "large.sdz"
    memory.picture(6).save(path, quality=30, effort=0)
    return path
