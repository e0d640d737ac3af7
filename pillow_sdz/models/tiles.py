"""Cuts a picture's latents into tiles, and encodes or decodes them, several at once."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from .. import cores, progress
from ..arrays import Area, Latents, Pixels, Samples

# If a picture is cut only to give each core a tile, the longer side of a tile has at least this
# many latents.  In smaller tiles, the margins take more time than the second core saves.  Chosen,
# after one measurement: with 48x32 latents, two tiles take a fifth more CPU time than one
# (docs/speed.md#arithmetic).  At 1/2, two tiles take 0.8 of the time of one
# (docs/speed.md#large-pictures).  At 1/4 and 1/8 there is less work, and margins
# are nearly as wide, so a tile has ``scale`` times as many latents.
WORTH_A_CORE = 24

Item = TypeVar("Item")
Found = TypeVar("Found")


class Sides(NamedTuple):
    """The sides on which the picture goes on beyond a tile.  A tile has margins only there."""

    top: bool
    bottom: bool
    left: bool
    right: bool


class Tile(NamedTuple):
    """The area that a tile is computed from (with its margin), and its own area, in latents."""

    needed: Area
    place: Area
    sides: Sides

    @property
    def trimmed(self) -> NDArray[np.int64]:
        """`sides` as the networks' input: (4,), 1 where they trim the margin."""
        return np.array(self.sides, np.int64)


def encode(
    pixels: Samples,
    encoder: Callable[[Pixels, Tile], Latents],
    *,
    channels: int,
    factor: int,
    side: Callable[[int], int],
    margin: int,
) -> Latents:
    """Pixels (H, W, 3) to latents (ceil(H/factor), ceil(W/factor), channels), tile by tile.

    ``encoder`` turns levels (factor h, factor w, 3) in 0..255 into the latents of a tile, and trims
    its margins.  ``side`` gets how many tiles are computed at once, and returns how many latents
    along a side a tile may have.
    """
    rows, columns = (-(-n // factor) for n in pixels.shape[:2])
    latents = np.empty((rows, columns, channels), np.float32)
    cut, workers = _cut(everything(rows, columns), rows, columns, side, margin)

    def inputs() -> Iterator[tuple[Tile, Pixels]]:
        for tile in cut:
            yield tile, whole(pixels, scaled(tile.needed, factor))

    def work(item: tuple[Tile, Pixels]) -> Latents:
        tile, part = item
        return encoder(part, tile)

    results = cores.at_once(work, inputs(), workers)
    for tile, result in zip(progress.told("encoding", cut), results, strict=True):
        latents[tile.place] = result
    return latents


def decode(
    size: tuple[int, ...],
    inputs: Callable[[Tile], Item],
    decoder: Callable[[Item], Found],
    *,
    factor: int,
    side: Callable[[int], int],
    margin: int,
    area: Area | None = None,
    scale: int = 1,
) -> Iterator[tuple[Area, Found]]:
    """Latents to pixels (factor h, factor w, 3), tile by tile: each tile's place and pixels.

    ``size`` is the size of the latents (h, w, C).  ``area`` is the part of them that is needed;
    tiles may reach beyond it.  ``inputs`` returns what a tile is decoded from; it runs in this
    thread.  ``decoder`` turns that into levels without the tile's margins.  ``side`` is as in
    `encode`.  The picture is at 1/``scale`` of its size.  ``decoder`` may find something else, too.
    """
    rows, columns, _ = size
    cut, workers = _cut(area or everything(rows, columns), rows, columns, side, margin, scale)
    # Latents are computed when they are sliced.  This happens here, while other threads decode the
    # tiles before.
    results = cores.at_once(decoder, map(inputs, cut), workers)
    for tile, found in zip(progress.told("decoding", cut), results, strict=True):
        yield scaled(tile.place, factor), found


def whole(pixels: Samples, area: Area) -> Pixels:
    """An area of pixels.  Beyond the right and the bottom edge, the last pixels are repeated."""
    part = pixels[area]
    missing = [n.stop - n.start - length for n, length in zip(area, part.shape, strict=False)]
    padded: Pixels = np.pad(part, ((0, missing[0]), (0, missing[1]), (0, 0)), mode="edge")
    return padded


def levels(values: NDArray[np.float32]) -> Pixels:
    """Rounded and clipped to 0..255."""
    return np.rint(values).clip(0, 255).astype(np.uint8)


def _cut(
    area: Area, rows: int, columns: int, side: Callable[[int], int], margin: int, scale: int = 1
) -> tuple[list[Tile], int]:
    """The tiles of an area, and how many of them are to be computed at once."""
    workers = cores.threads()
    lengths = shape(area)
    sides, least = [side(1)] * 2, 2 * WORTH_A_CORE * (1 if scale == 2 else scale)
    if workers > 1 and max(lengths) >= least:
        sides = [min(length, side(workers)) for length in lengths]
        while _count(lengths, sides) < workers and max(sides) >= least:
            longer = sides.index(max(sides))
            sides[longer] = -(-sides[longer] // 2)
    cut = list(tiles(area, rows, columns, (sides[0], sides[1]), margin))
    return cut, min(workers, len(cut))


def _count(lengths: tuple[int, int], sides: list[int]) -> int:
    rows, columns = (-(-length // side) for length, side in zip(lengths, sides, strict=True))
    return rows * columns


def everything(rows: int, columns: int) -> Area:
    """The area of a whole picture."""
    return slice(0, rows), slice(0, columns)


def tiles(
    area: Area, rows: int, columns: int, side: int | tuple[int, int], margin: int
) -> Iterator[Tile]:
    """Tiles with margins on the sides where the picture goes on.

    ``side`` is their largest size, or that of their rows and columns.

    Together they cover the area.  If the rest of the picture beyond the area is narrower than a
    margin, they cover the rest, too.  If the margin is as wide as the network can see, there are no
    seams.  A tile's sides are at least as long as the margin.
    """
    height, width = (side, side) if isinstance(side, int) else side
    for top, bottom in _cuts(_widened(area[0], rows, margin), height):
        for left, right in _cuts(_widened(area[1], columns, margin), width):
            sides = Sides(top > 0, bottom < rows, left > 0, right < columns)
            needed = (
                slice(top - margin * sides.top, bottom + margin * sides.bottom),
                slice(left - margin * sides.left, right + margin * sides.right),
            )
            yield Tile(needed, (slice(top, bottom), slice(left, right)), sides)


def _widened(part: slice, length: int, margin: int) -> tuple[int, int]:
    start, stop = part.start, part.stop
    return (0 if start < margin else start), (length if stop > length - margin else stop)


def _cuts(whole: tuple[int, int], side: int) -> Iterator[tuple[int, int]]:
    """As few parts as possible, of about equal length.  None is shorter than half of ``side``."""
    start, stop = whole
    length = stop - start
    parts = -(-length // side)
    yield from itertools.pairwise(start + length * n // parts for n in range(parts + 1))


def shape(area: Area) -> tuple[int, int]:
    """The size of an area."""
    rows, columns = area
    return rows.stop - rows.start, columns.stop - columns.start


def scaled(area: Area, factor: int) -> Area:
    """An area of latents in pixels."""
    rows, columns = area
    return (
        slice(rows.start * factor, rows.stop * factor),
        slice(columns.start * factor, columns.stop * factor),
    )
