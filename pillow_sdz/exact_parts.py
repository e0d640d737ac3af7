"""Where the exact pixels of a picture are stored: one bitstream for each part of it."""

from __future__ import annotations

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


def boxes(coded: Blocks, size: tuple[int, int]) -> Iterator[PixelBox]:
    """For each part with coded blocks, the smallest box of pixels around them."""
    for rows, columns in parts(size):
        box = block_maps.bounds(coded[rows, columns])
        if box is not None:
            left, top, right, bottom = box
            yield (
                (columns.start + left) * BLOCK,
                (rows.start + top) * BLOCK,
                min((columns.start + right) * BLOCK, size[0]),
                min((rows.start + bottom) * BLOCK, size[1]),
            )
