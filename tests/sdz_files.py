"""Making, reading and comparing `.sdz` files in memory."""

from __future__ import annotations

import zlib
from io import BytesIO
from typing import Any

from PIL import Image, ImageChops, ImageStat

from pillow_sdz import container
from pillow_sdz.container import Chunk


class CountingFile(BytesIO):
    """Counts the bytes that are read of it."""

    count = 0

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self.count += len(data)
        return data


def encode(im: Image.Image, **options: Any) -> bytes:
    buffer = BytesIO()
    im.save(buffer, "SDZ", **options)
    return buffer.getvalue()


def decode(data: bytes) -> Image.Image:
    """The picture, opened and loaded."""
    with Image.open(BytesIO(data)) as im:
        im.load()
        return im


def roundtrip(im: Image.Image, **options: Any) -> Image.Image:
    return decode(encode(im, **options))


def replaced(data: bytes, type: bytes, replacement: bytes) -> bytes:
    """The file with other data in one chunk, its CRC right, whatever the rules say of it."""
    return framed(
        [c._replace(data=replacement) if c.type == type else c for c in container.read(data)]
    )


def framed(chunks: list[Chunk]) -> bytes:
    """A file of these chunks, their CRCs right, without any of the rules that `write` enforces."""
    parts = [container.SIGNATURE]
    for chunk in chunks:
        length = bytearray()
        left = len(chunk.data)
        while left > 0x7F:
            length.append(left & 0x7F | 0x80)
            left >>= 7
        length.append(left)
        body = chunk.type + chunk.data
        parts += [bytes(length), body, zlib.crc32(body).to_bytes(4, "big")]
    return b"".join(parts)


def assert_similar(a: Image.Image, b: Image.Image, tolerance: float) -> None:
    """Both have the same mode and size, and differ by at most so many grey levels on average."""
    assert (a.mode, a.size) == (b.mode, b.size)
    difference = ImageStat.Stat(ImageChops.difference(a, b)).mean
    assert max(difference) <= tolerance, f"mean difference per band: {difference}"
