"""Golden files in fixtures/: they must always be read, and written, in the same way.

They were made once and are never made again. If a test fails here, files in people's archives can
no longer be read.
"""

from __future__ import annotations

import hashlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageChops

from pillow_sdz import catalogue, chunks, container, models, open_latents, options
from pillow_sdz.arrays import Ints
from pillow_sdz.codings.hyperprior import Coded
from pillow_sdz.codings.range_coder import Prediction, SymbolDecoder, SymbolEncoder, Tables
from pillow_sdz.container import Chunk
from pillow_sdz.exact import Regions
from pillow_sdz.header import Header

FIXTURES = Path(__file__).parent.parent / "fixtures"
ALL = sorted(FIXTURES.glob("*.sdz"))

# container.sdz has every kind of chunk. Its model is in no registry, so its bytes test only the
# container, and the models may change.
CONTAINER = FIXTURES / "container.sdz"
HEADER = Header(
    mode="RGBA",
    size=(300, 200),
    model="golden-1",
    digest=bytes.fromhex("0123abcd"),
    channels=4,
    factor=8,
    quantisation=6050,
    coding=0,
)
CHUNKS = [
    Chunk(b"HEAD", HEADER.pack()),
    Chunk(b"iCCP", b"profile"),
    Chunk(b"eXIf", b"MM\0*\0\0\0\x08\0\0"),
    Chunk(b"xMPm", b"<x/>"),
    Chunk(b"teSt", b"safe to copy"),
    Chunk(b"LATN", bytes(range(200))),  # a length of two bytes
    Chunk(b"teST", b"tied to the pixels"),
    Chunk(b"ALPH", b"\0\x80"),
    Chunk(b"DONE", b""),
]


def test_there_are_files_of_record() -> None:
    assert CONTAINER in ALL


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_written_again_to_the_byte(path: Path) -> None:
    data = path.read_bytes()
    assert container.write(container.read(data)) == data


def test_container_is_read_as_it_was_written() -> None:
    data = CONTAINER.read_bytes()
    assert container.read(data) == CHUNKS
    assert container.Reader(BytesIO(data)).header == HEADER
    digest = "d0e9d500461d73785ad4e8d2511029bcee513d6bedd4ef7cbeb6e98bd5fabcbc"
    assert hashlib.sha256(data).hexdigest() == digest
    assert container.write(CHUNKS) == data


def test_container_opens() -> None:
    with Image.open(CONTAINER) as im:
        assert (im.mode, im.size) == ("RGBA", (300, 200))
        assert im.info == {
            "icc_profile": b"profile",
            "exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0",
            "xmp": b"<x/>",
            "sdz_chunks": [(b"teSt", b"safe to copy")],
            "sdz": {
                "model": "golden-1",
                "coding": "context",
                "latents": (4, 25, 38),
                "factor": 8,
                "step": 6050 / 1024,
                "bytes": {
                    "latents": 200,
                    "exact": 0,
                    "alpha": 2,
                    "metadata": 51,
                    "container": 117,
                },
                "exact": 0,
                "reconstructed": True,
            },
        }
        im.verify()
    assert sum((200, 2, 51, 117)) == CONTAINER.stat().st_size


# Files of `mini` and `mini-half`: name, header's quality, sha256 of the symbols as big-endian
# int32, some symbols.
MINI_FILES: dict[str, tuple[int, str, list[int]]] = {
    "mini-half": (
        3000,
        "7b931cba1667e4fbd57d543e74e2014827f5ac520bf8d12b4fb14ecb53fed2aa",
        [3, 0, -15, 0, 5, 0, 10, 0],
    ),
    "mini-perceptual": (
        1250,
        "984194137ceadb66bbcdcb55f8a4fa8ae0a4839a876d7204d47832fd3d38204b",
        [-11, 0, 0, 0, 0, 0, 0, 0],
    ),
    "mini-rgb": (
        7500,
        "5bb30f7090371f921f6b03cc595695a69aa24a54592618ea9931534ec8b44fce",
        [-72, 0, 0, 0, 0, 0, 0, 0],
    ),
    "mini-rgb-low": (
        1250,
        "ae5d746c29566a615e3f3040eabd01f9ef972af4571585abd153e182f9f58e47",
        [-11, 0, 0, 0, 0, 0, 0, 0],
    ),
    "mini-rgba": (
        10000,
        "a25ea635f2d430f97d0fccd59c3ff2ed99e518b144bb25642b05549f97d31e5e",
        [-592, 0, -129, 0, -85, 0, -160, 0],
    ),
    "mini-1x1": (
        5000,
        "63d9b72390233818f12f4091c503a177e4247f19c3442c1660edd856fda3417d",
        [-65, 0, 0, 0, 0, 0, 0, 0],
    ),
    "mini-map": (
        5000,
        "f980fc2d193515dea5eaacc874a1eaeb692b299ef2f223b8eba7ffe1f7d1b914",
        [-57, 0, 0, 0, 0, 0, 0, 0],
    ),
}


def symbols_of(chunk: bytes, header: Header) -> Ints:
    decoder = SymbolDecoder(Tables.shipped(), chunk)
    _, rows, columns = header.latents
    symbols = (
        models.load(models.spec(header.model))
        .prior.code(decoder, rows, columns, header.quantisation)
        .symbols
    )
    decoder.finish()
    return symbols


class Both:
    """A coder that decodes one payload and encodes the same symbols to another."""

    def __init__(self, payload: bytes) -> None:
        self._decoder = SymbolDecoder(Tables.shipped(), payload)
        self.encoder = SymbolEncoder(Tables.shipped())

    def code(self, volume: str, index: tuple[Any, ...], mean: Ints, scale: Ints) -> Ints:
        symbols = self._decoder.code(volume, index, mean, scale)
        self.encoder.encode(symbols, Prediction.of(mean, scale))
        return symbols


@pytest.mark.parametrize("name", MINI_FILES)
def test_integers_of_record(name: str) -> None:
    """Read the exact integers, and write the exact bytes from them."""
    quality, digest, some = MINI_FILES[name]
    data = (FIXTURES / f"{name}.sdz").read_bytes()
    parts = container.read(data)
    header = Header.parse(parts[0].data)
    payload = next(chunk.data for chunk in parts if chunk.type == chunks.LATENTS)
    assert header.quantisation == quality
    assert header.model == ("mini-half" if name == "mini-half" else "mini")

    symbols = symbols_of(payload, header)
    assert symbols.ravel()[:: len(symbols.ravel()) // 8][:8].tolist() == some
    assert hashlib.sha256(symbols.astype(">i4").tobytes()).hexdigest() == digest

    both = Both(payload)
    _, rows, columns = header.latents
    models.load(catalogue.MINI).prior.code(both, rows, columns, quality)
    written = [
        Chunk(c.type, both.encoder.bytes()) if c.type == chunks.LATENTS else c for c in parts
    ]
    assert container.write(written) == data


@pytest.mark.parametrize("name", MINI_FILES)
def test_pixels_of_record(name: str) -> None:
    """The network computes in floating point, so a difference of one grey level is allowed."""
    with (
        options.override(DTYPE="float32"),
        Image.open(FIXTURES / f"{name}.sdz") as im,
        Image.open(FIXTURES / f"{name}.png") as png,
    ):
        assert (im.mode, im.size) == (png.mode, png.size)
        difference = ImageChops.difference(im.convert("RGBA"), png.convert("RGBA"))
        assert max(high for _, high in difference.getextrema()) <= 1
        if "A" in im.mode:
            assert im.getchannel("A").tobytes() == png.getchannel("A").tobytes()


# mini-frames.sdz has five frames of two bands. Three show one picture and two another. A square
# moves in both. For each frame: the types and bytes of its chunks, and sha256 of its symbols as
# big-endian int32.
FRAMES = FIXTURES / "mini-frames.sdz"
CHUNKS_OF_FRAMES = [
    ("LATN", 151),
    ("LATN", 77),
    ("ALPH", 60),
    ("DIFF", 1),
    ("DIFF", 45),
    ("ALPH", 1),
    ("DIFF", 1),
    ("LATN", 83),
    ("ALPH", 2),
    ("LATN", 202),
    ("LATN", 136),
    ("ALPH", 60),
    ("DIFF", 1),
    ("LATN", 121),
    ("ALPH", 1),
]
FRAME_DIGESTS = [
    "f419e694be52c3c47ccf3176345154a7da954c7e4025ed8f7bb676b53d5d9b29",
    "8c2040aa9e37e030eb61a476aa354911aa0fe39bea0f9ad7cb679eafcd477a1c",
    "8c0e79687bd9d716bbcc15bd8581c9557b9670301917aeb45c7c21448ab4a3da",
    "ee5d009a004e53b2fa4ea6cb0fcbbd12d896a36e5fec9203c2ef312008be4fca",
    "58cbdfeeaaf9fb7b4138f42cf8e5d03c98b44b49e075b841f5424a4e79a5c75b",
]


def test_frames_of_record() -> None:
    """Exact integers of bands that are coded by themselves or as changes, and back."""
    data = FRAMES.read_bytes()
    parts = container.read(data)
    reader = container.Reader(BytesIO(data))
    assert len(list(reader)) == len(parts)
    found = [(c.type.decode(), len(c.data)) for c in parts if c.type in chunks.FRAME]
    assert found == CHUNKS_OF_FRAMES
    assert reader.bands == [slice(0, 4), slice(4, 6)]

    prior = models.load(catalogue.MINI).prior
    _, _, width = reader.header.latents
    before: list[Coded | None] = [None, None]
    coded = 0
    frames: list[list[Ints]] = [[] for _ in range(reader.header.frames)]
    for place, chunk in enumerate(parts):
        if chunk.type in chunks.CODED:
            frame, band = divmod(coded, len(reader.bands))
            rows = reader.bands[band].stop - reader.bands[band].start
            both = Both(chunk.data)
            told = before[band] if chunk.type == chunks.CHANGES else None
            now = prior.code(both, rows, width, reader.header.quantisation, told)
            before[band] = now
            frames[frame].append(now.symbols)
            parts[place] = chunk._replace(data=both.encoder.bytes())
            coded += 1
    digests = [
        hashlib.sha256(np.concatenate(bands).astype(">i4").tobytes()).hexdigest()
        for bands in frames
    ]
    assert digests == FRAME_DIGESTS
    assert container.write(parts) == data


def test_shown_as_of_record() -> None:
    """The PNG has all frames, one below the other. They are the same in any order."""
    with (
        options.override(DTYPE="float32"),
        Image.open(FRAMES) as im,
        Image.open(FRAMES.with_suffix(".png")) as png,
    ):
        assert (im.mode, im.n_frames, im.info["loop"]) == ("RGBA", 5, 3)
        for number in (4, 0, 3, 1, 2):
            im.seek(number)
            assert im.info["duration"] == 40 * (number + 1)
            assert im.info["timestamp"] == 20 * number * (number + 1)
            expected = png.crop((0, number * im.height, im.width, (number + 1) * im.height))
            difference = ImageChops.difference(im, expected)
            assert max(high for _, high in difference.getextrema()) <= 1
            assert im.getchannel("A").tobytes() == expected.getchannel("A").tobytes()


# Files of latents: shape, sha256 of the values as little-endian float32, some of the values.
LATENT_FILES: dict[str, tuple[tuple[int, ...], str, list[float]]] = {
    "latents-sd1": (
        (2, 4, 24, 33),
        "c670b5f6c4fc0884ce45167416ff0ead3f1d4ea9fb36510c737bb79736aaec73",
        [-0.5, 2.0, 0.0, 1.0, 0.0],
    ),
    "latents-flux": (
        (16, 24, 33),
        "7690b7f65f7f7f9c37cb32a34390eaa1d9a138b59cc80c46dc5b9814187f802f",
        [-0.5, 0.0, 1.0, 1.0, 0.5],
    ),
    "latents-flux2": (
        (32, 9, 12),
        "804839ec8e6754615c1b5a091cf6b5abed01b13c36c9f3b1b9382ce7ef5b59e7",
        [0.5, 0.0, -0.5, -0.5, -0.5],
    ),
    "latents-palette": (
        (4, 24, 33),
        "a1dd5e0e0eebab1112f1da56174e42baf237bea2f773efb01f93704acc52ea45",
        [-0.59765625, -0.33203125, 0.86328125, 0.33203125, 0.19921875],
    ),
    "latents-float16": (
        (4, 24, 33),
        "722c5daf4d52352f469425fc34af25080588ab37ee632b19834455f85a0d8fbb",
        [-0.484375, -0.34375, 0.859375, 0.234375, 0.234375],
    ),
    "latents-sd-mini": (
        (4, 24, 33),
        "b7f33f5378721b034a37c3e2498eafd8ed92a0a3914243a447f51888e183a5bd",
        [-0.46484375, -0.46484375, 0.9296875, 0.46484375, 0.0],
    ),
}


@pytest.mark.parametrize("name", LATENT_FILES)
def test_latents_of_record(name: str) -> None:
    """Read the exact values, for each coding and prior."""
    shape, digest, some = LATENT_FILES[name]
    values = open_latents(FIXTURES / f"{name}.sdz").latents.astype("<f4")
    assert values.shape == shape
    assert values.ravel()[:: values.size // 5][:5].tolist() == some
    assert hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest() == digest


def test_what_belongs_to_latents_is_read() -> None:
    found = open_latents(FIXTURES / "latents-sd1.sdz")
    assert (found.model, found.size, found.step) == ("sd1", (260, 190), 0.5)
    assert found.info.pop("alpha_mask").tolist() == np.ones((190, 260)).tolist()
    provenance = {"layout": "kohya", "format": ".npz"}
    assert found.info == {"prompt": "golden", "denoise": 0.05, "provenance": provenance}


def test_exact_regions_of_record() -> None:
    """Some blocks are exact and one of them open, then some change, then all are as before."""
    digests = [
        "9bf3dcc03bf445f19da791ada4f782cf28933ce7482e8bf814961eef1023e96b",
        "554960a4671710296461c1e9c6fe521716ca5fe5a2149467db6155ae35a4e65c",
        "554960a4671710296461c1e9c6fe521716ca5fe5a2149467db6155ae35a4e65c",
    ]
    file = container.read((FIXTURES / "exact.sdz").read_bytes())
    frames = [chunk.data for chunk in file if chunk.type == chunks.EXACT]
    assert [data[0] for data in frames] == [1, 2, 3]
    regions = None
    for data, digest in zip(frames, digests, strict=True):
        regions = Regions(data, (20, 12), regions)
        assert regions.share == pytest.approx(160 / 240)
        shown = Image.new("RGB", regions.size, (1, 2, 3))
        regions.paste(shown, (0, 0, *regions.size))
        assert shown.getpixel((17, 9)) == (1, 2, 3)
        assert hashlib.sha256(shown.tobytes()).hexdigest() == digest


def test_alpha_of_record() -> None:
    """A picture of mode RGBA that is exact as a whole, and its alpha channel with its pixels."""
    file = container.read((FIXTURES / "alpha.sdz").read_bytes())
    assert [(c.type, len(c.data)) for c in file[-3:-1]] == [(b"LATN", 0), (b"ALPH", 1)]
    (data,) = (chunk.data for chunk in file if chunk.type == chunks.EXACT)
    assert data[0] == 8
    regions = Regions(data, (20, 12))
    shown = Image.new("RGB", regions.size)
    regions.paste(shown, (0, 0, *regions.size))
    shown.putalpha(regions.alpha())
    assert shown.size == (20, 12)
    digest = "e0d6656ad91e7660950966038c81488ac020808907840beeca0b3cf57458d36d"
    assert hashlib.sha256(shown.tobytes()).hexdigest() == digest


def test_copies_of_record() -> None:
    """A shape that is kept once and copied six times, and a pixel that latents show through."""
    file = container.read((FIXTURES / "copies.sdz").read_bytes())
    (data,) = (chunk.data for chunk in file if chunk.type == chunks.EXACT)
    assert data[0] == 5
    shown = Image.new("RGB", (64, 32), (1, 2, 3))
    Regions(data, shown.size).paste(shown, (0, 0, *shown.size))
    expected = Image.new("RGB", (64, 32), (250, 250, 245))
    shape = Image.radial_gradient("L").resize((12, 11)).convert("RGB")
    for at in ((1, 2), (20, 2), (40, 3), (3, 17), (24, 18), (45, 17)):
        expected.paste(shape, at)
    expected.putpixel((63, 31), (1, 2, 3))
    assert shown.tobytes() == expected.tobytes()
