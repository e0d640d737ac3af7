"""Pixels <-> VP8L bitstreams (RFC 9649, 3), which Pillow's lossless WebP writes and reads."""

from __future__ import annotations

import struct
from io import BytesIO

from PIL import Image, features

# The longest side of a picture.  WebP allows 16383 pixels (RFC 9649, 4).
MAX_SIDE = 16383

_RIFF = struct.Struct("<4sI4s4sI")
_START = struct.Struct("<BI")  # the signature; 14 bits of width and of height, alpha, version
_SIGNATURE = 0x2F


def is_available() -> bool:
    """Whether this Pillow has WebP."""
    return bool(features.check("webp"))


def encode(pixels: Image.Image, *, keeps_hidden: bool = False, fast: bool = False) -> bytes:
    """The bitstream of a picture of mode RGB or RGBA.

    The colours of transparent pixels are only kept if it ``keeps_hidden`` pixels.  If it has to be
    ``fast``, it takes a fiftieth of the time, and a tenth more bytes for photos.
    """
    file = BytesIO()
    # Method 6 takes about ten times as long.  For most graphics it saves 0 to 2 % of the bytes, but
    # for some drawings 20 to 40 %.  Measured (docs/measurements.md#graphics-exact-and-regions).
    pixels.info = {}  # WebP would write a profile
    how = {"quality": 0, "method": 0} if fast else {"quality": 100, "method": 4}
    pixels.save(file, "WEBP", lossless=True, exact=keeps_hidden, **how)
    data = file.getvalue()
    *_, type, length = _RIFF.unpack_from(data)
    assert type == b"VP8L"
    return data[_RIFF.size : _RIFF.size + length]


def has_alpha(bitstream: bytes) -> bool:
    """Whether a bitstream says that it has alpha."""
    return len(bitstream) >= _START.size and bool(_START.unpack_from(bitstream)[1] >> 28 & 1)


def check(bitstream: bytes, size: tuple[int, int], *, has_alpha: bool) -> None:
    """ValueError if a bitstream has another size, or has alpha and should not, or vice versa.

    This decodes nothing.
    """
    if len(bitstream) < _START.size:
        msg = "a part without pixels"
        raise ValueError(msg)
    signature, bits = _START.unpack_from(bitstream)
    said = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if signature != _SIGNATURE or bits >> 28 != int(has_alpha) or said != size:
        alpha = " with alpha" if has_alpha else ""
        msg = f"the pixels of a part are not a VP8L bitstream of {size[0]}x{size[1]} pixels{alpha}"
        raise ValueError(msg)


def decode(bitstream: bytes, size: tuple[int, int], *, has_alpha: bool) -> Image.Image:
    """The picture, of mode RGB or RGBA, of a bitstream that `check` accepts.

    ValueError if it is damaged.
    """
    odd = len(bitstream) % 2
    start = _RIFF.pack(b"RIFF", 12 + len(bitstream) + odd, b"WEBP", b"VP8L", len(bitstream))
    mode = "RGBA" if has_alpha else "RGB"
    try:
        with Image.open(BytesIO(start + bitstream + bytes(odd)), formats=["WEBP"]) as picture:
            if (picture.mode, picture.size) != (mode, size):  # as Pillow has read it
                msg = f"it has the mode {picture.mode} and the size {picture.size}"
                raise ValueError(msg)
            picture.load()
    except Exception as e:  # Pillow's WebP reader may raise anything for hostile bytes
        raise ValueError(str(e)) from e
    return picture
