"""Cutting a picture's latents into tiles that are encoded or decoded one after another."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

Area = tuple[slice, slice]  # rows and columns


class Tile(NamedTuple):
    """What is computed for a tile, which part of the result is kept, and where that belongs.

    ``needed`` and ``place`` are in the picture, ``kept`` is within ``needed``; in latents.
    """

    needed: Area
    kept: Area
    place: Area


def tiles(rows: int, columns: int, side: int, margin: int) -> Iterator[Tile]:
    """Tiles of at most ``side`` x ``side``, each computed with a margin around it.

    Where the margin is the networks' reach, there is no seam.
    """
    for rows_needed, rows_kept, rows_placed in _cuts(rows, side, margin):
        for columns_needed, columns_kept, columns_placed in _cuts(columns, side, margin):
            yield Tile(
                (rows_needed, columns_needed),
                (rows_kept, columns_kept),
                (rows_placed, columns_placed),
            )


def _cuts(length: int, side: int, margin: int) -> Iterator[tuple[slice, slice, slice]]:
    for start in range(0, length, side):
        stop = min(start + side, length)
        first, last = max(0, start - margin), min(length, stop + margin)
        yield slice(first, last), slice(start - first, stop - first), slice(start, stop)


def scaled(area: Area, factor: int) -> Area:
    """An area of latents in pixels."""
    rows, columns = area
    return (
        slice(rows.start * factor, rows.stop * factor),
        slice(columns.start * factor, columns.stop * factor),
    )
