"""Files of record in fixtures/: what they hold may never be read differently, nor written so.

They were made once and are never made anew: a test that fails here means that files in people's
archives have become unreadable.
"""

from __future__ import annotations

import hashlib
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from pillow_sdz import container
from pillow_sdz.container import Chunk, Header

FIXTURES = Path(__file__).parent.parent / "fixtures"
ALL = sorted(FIXTURES.glob("*.sdz"))

# container.sdz has every kind of chunk, of a model that is in no registry: its bytes pin the
# container alone, whatever becomes of the models.
CONTAINER = FIXTURES / "container.sdz"
HEADER = Header(
    mode="RGBA",
    size=(300, 200),
    model="golden-1",
    digest=bytes.fromhex("0123abcd"),
    channels=4,
    factor=8,
    quality=6050,
    coding="context",
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
                "quality": 60.5,
                "bytes": {"latents": 200, "alpha": 2, "metadata": 51, "container": 117},
                "reconstructed": True,
            },
        }
        im.verify()
    assert sum((200, 2, 51, 117)) == CONTAINER.stat().st_size
