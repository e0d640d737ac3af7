"""Make, read and compare `.sdz` files in memory."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageStat

from pillow_sdz import codec, container
from pillow_sdz.catalogue import ModelSpec
from pillow_sdz.codec import EncodedLatents
from pillow_sdz.container import Chunk

if TYPE_CHECKING:
    from pillow_sdz.models.network import Network, Qualities


class CountingFile(BytesIO):
    """Counts the bytes that are read."""

    count = 0

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self.count += len(data)
        return data


class CountingReads(CountingFile):
    """Also counts the calls."""

    calls = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self.calls += 1
        return super().read(size)


def encode(im: Image.Image, **options: Any) -> bytes:
    buffer = BytesIO()
    im.save(buffer, "SDZ", **options)
    return buffer.getvalue()


def decode(data: bytes) -> Image.Image:
    """Open the picture and load it."""
    with Image.open(BytesIO(data)) as im:
        im.load()
        return im


def roundtrip(im: Image.Image, **options: Any) -> Image.Image:
    return decode(encode(im, **options))


def replaced(data: bytes, type: bytes, replacement: bytes) -> bytes:
    """The file with other data in one chunk and a right CRC, even if that breaks the rules."""
    return framed(
        [c._replace(data=replacement) if c.type == type else c for c in container.read(data)]
    )


def framed(chunks: list[Chunk]) -> bytes:
    """A file of these chunks with right CRCs, without the rules that `write` checks."""
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
    """Same mode and size, and on average at most ``tolerance`` grey levels of difference."""
    assert (a.mode, a.size) == (b.mode, b.size)
    difference = ImageStat.Stat(ImageChops.difference(a, b)).mean
    assert max(difference) <= tolerance, f"mean difference per band: {difference}"


def encoded(
    images: Sequence[Image.Image],
    model: ModelSpec,
    *,
    quality: float = 75,
    effort: int = 4,
    max_size: int | None = None,
) -> EncodedLatents:
    """The chunks of images of mode RGB, with the model's first coding."""
    encoder = codec.Encoder(model, model.space.codings[0], quality=quality, effort=effort)
    if max_size is not None:
        return encoder.fit(images, max_size)
    return EncodedLatents([*map(encoder.encode, images)], encoder.quantisation)


def shown(
    network: Network, latents: NDArray[Any], quantisation: Qualities = 0
) -> NDArray[np.uint8]:
    """Decode latents (h, w, C) to the whole picture (H, W, 3)."""
    pieces = list(network.decode(latents, quantisation))
    rows, columns = (max(place[axis].stop for place, _ in pieces) for axis in (0, 1))
    pixels = np.empty((rows, columns, 3), np.uint8)
    for place, piece in pieces:
        pixels[place] = piece
    return pixels
