"""Maps of a picture's blocks <-> the zlib stream in an EXCT chunk; docs/format.md specifies it."""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray

Blocks = NDArray[np.bool_]  # (ceil(H / 8), ceil(W / 8))


def bounds(blocks: Blocks) -> tuple[int, int, int, int] | None:
    """The smallest box (left, top, right, bottom) around the True blocks; None if there is none."""
    if not blocks.any():
        return None
    rows, columns = (np.flatnonzero(blocks.any(axis)) for axis in (1, 0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def of_pixels(pixels: NDArray[np.bool_], side: int) -> Blocks:
    """Whether a block of this side has a pixel that is True."""
    height, width = pixels.shape
    even = np.pad(pixels, ((0, -height % side), (0, -width % side)))
    parts = even.reshape(even.shape[0] // side, side, even.shape[1] // side, side)
    return np.asarray(parts.any((1, 3)), np.bool_)


def packed(*maps: Blocks) -> bytes:
    """Maps of blocks as a zlib stream: one bit a block, each row xor the row above it."""
    parts = []
    for blocks in maps:
        changes = blocks.copy()
        changes[1:] ^= blocks[:-1]
        parts.append(np.packbits(changes).tobytes())
    return zlib.compress(b"".join(parts), 9)


def unpacked(data: bytes, shape: tuple[int, int], count: int) -> tuple[list[Blocks], bytes]:
    """``count`` maps of blocks, and the data after them; ValueError if they are damaged."""
    each = -(-shape[0] * shape[1] // 8)
    inflater = zlib.decompressobj()
    try:
        bits = inflater.decompress(data, count * each + 1)
    except zlib.error as e:
        raise ValueError(str(e)) from e
    if len(bits) != count * each or not inflater.eof:
        msg = "its map has not one bit for each block"
        raise ValueError(msg)
    maps = []
    for at in range(0, count * each, each):
        found = np.unpackbits(np.frombuffer(bits, np.uint8, each, at))
        if found[shape[0] * shape[1] :].any():
            msg = "its map says something of blocks outside of the picture"
            raise ValueError(msg)
        changes = found[: shape[0] * shape[1]].reshape(shape)
        maps.append(np.logical_xor.accumulate(changes.astype(np.bool_), axis=0))
    return maps, inflater.unused_data
