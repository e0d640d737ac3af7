"""Where the exact pixels of a picture are stored: one bitstream for each part of it."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from . import block_maps
from .block_maps import Blocks

# The smallest picture that is decoded has 1/8 of the size.  A block is one of its pixels.
BLOCK = 8
# A part has at most this many pixels, so that it is decoded in little memory.  Chosen: most
# screenshots are one part, and 4 megapixels take 16 MB.
PART_PIXELS = 1 << 22
# The sides of a part.  They are whole blocks, and at most `vp8l.MAX_SIDE`.
PART_WIDTH, PART_HEIGHT = 8192, 16376

PixelBox = tuple[int, int, int, int]

_LENGTH = struct.Struct(">I")


def shape_of(size: tuple[int, int]) -> tuple[int, int]:
    """The rows and columns of blocks of a picture (width, height)."""
    return -(-size[1] // BLOCK), -(-size[0] // BLOCK)


def parts(size: tuple[int, int]) -> Iterator[tuple[slice, slice]]:
    """The parts of a picture (width, height), as rows and columns of blocks."""
    rows, columns = shape_of(size)
    across = min(columns, PART_WIDTH // BLOCK)
    down = min(PART_PIXELS // (across * BLOCK) // BLOCK, PART_HEIGHT // BLOCK)
    for top in range(0, rows, down):
        for left in range(0, columns, across):
            yield (
                slice(top, min(top + down, rows)),
                slice(left, min(left + across, columns)),
            )


def box_of(part: tuple[slice, slice], size: tuple[int, int]) -> PixelBox:
    """The box of pixels of a part of a picture (width, height)."""
    rows, columns = part
    return (
        columns.start * BLOCK,
        rows.start * BLOCK,
        min(columns.stop * BLOCK, size[0]),
        min(rows.stop * BLOCK, size[1]),
    )


def boxes(coded: Blocks, size: tuple[int, int]) -> Iterator[PixelBox]:
    """For each part with coded blocks, the smallest box of pixels around them."""
    for rows, columns in parts(size):
        box = block_maps.bounds(coded[rows, columns])
        if box is not None:
            left, top, right, bottom = box
            part = (
                slice(rows.start + top, rows.start + bottom),
                slice(columns.start + left, columns.start + right),
            )
            yield box_of(part, size)


def pack(data: bytes) -> bytes:
    """Data behind its length, as `first` reads it."""
    return _LENGTH.pack(len(data)) + data


def first(data: bytes, name: str) -> tuple[bytes, bytes]:
    """The bytes behind a length, and those after them; ValueError if they end too early."""
    start = _LENGTH.size
    length = _LENGTH.unpack_from(data)[0] if len(data) >= start else -1
    if not 0 <= length <= len(data) - start:
        msg = f"it ends within {name}"
        raise ValueError(msg)
    return data[start : start + length], data[start + length :]
