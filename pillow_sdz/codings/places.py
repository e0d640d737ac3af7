"""Places of latents, and what is around them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ..arrays import Ints, Singles

Taps = list[tuple[int, int]]

SQUARE: Taps = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
RING: Taps = [(dy, dx) for dy, dx in SQUARE if dy or dx]
BESIDE: Taps = [(dy, dx) for dy, dx in SQUARE if (dy + dx) % 2]
# The places of a 5x5 square that the first pass of the checkerboard has coded.
CHECKERBOARD: Taps = [(dy, dx) for dy in range(-2, 3) for dx in range(-2, 3) if (dy + dx) % 2]
REACH = 2  # the farthest of all taps

# The four latents of a cell, which one hyperlatent stands for.
CELL = 2
PARITIES: Taps = [(0, 0), (0, 1), (1, 0), (1, 1)]


def quadrant(down: int, right: int) -> Taps:
    """The 2x2 hyperlatents nearest to one of the four latents, in a 3x3 square of them."""
    return [(dy, dx) for dy in (down - 1, down) for dx in (right - 1, right)]


class Grid:
    """Numbers all places (height, width), and the places around them that a tap can reach."""

    def __init__(self, height: int, width: int) -> None:
        self.shape = height + 2 * REACH, width + 2 * REACH
        self.inside = slice(REACH, REACH + height), slice(REACH, REACH + width)

    def at(self, rows: Ints, columns: Ints) -> Ints:
        """The numbers of places."""
        return (rows + REACH) * self.shape[1] + columns + REACH

    def offsets(self, taps: Taps) -> Ints:
        """What to add to the number of a place for that at each tap: (taps,)."""
        return np.array([dy * self.shape[1] + dx for dy, dx in taps])

    def around(self, places: Ints, taps: Taps) -> Ints:
        """The numbers of the places at all taps around places: (n, taps)."""
        found: Ints = places[:, None] + self.offsets(taps)
        return found

    def found(self, places: Ints, taps: Taps, known: Ints) -> Ints:
        """Which of the ``known`` places lie at the taps: (n, taps), and len(known) for others."""
        index = np.full(self.shape[0] * self.shape[1], len(known))
        index[known] = np.arange(len(known))
        found: Ints = index[self.around(places, taps)]
        return found

    def compact(self, places: Ints) -> tuple[Ints, Ints]:
        """All different places, and which of them each of the ``places`` (n, taps) is."""
        index = np.zeros(self.shape[0] * self.shape[1], np.int64)
        index[places] = 1
        different = np.flatnonzero(index)
        index[different] = np.arange(len(different))
        return different, index[places]


class Volume:
    """Integers (h, w, C) that are 0 outside: ``flat`` has them by the numbers of a grid."""

    def __init__(self, grid: Grid, channels: int, dtype: DTypeLike) -> None:
        self._padded = np.zeros((*grid.shape, channels), dtype)
        self.values = self._padded[grid.inside]
        self.flat = self._padded.reshape(-1, channels)

    def at(self, places: Ints, channels: slice) -> Singles:
        """The values at places: (n, channels)."""
        found: Singles = self.flat[places, channels].astype(np.float32)
        return found

    def sums_at(self, around: Ints, channels: slice) -> Singles:
        """The sums over some taps (n, taps) of each place: (n, channels)."""
        total: Singles = self.flat[around[:, 0], channels].astype(np.float32)
        for places in around.T[1:]:
            total += self.flat[places, channels]
        return total

    def ring(self, channels: slice) -> NDArray[np.int16]:
        """The sums over `RING` around all places: (h, w, channels)."""
        part = self._padded[1:-1, 1:-1, channels].astype(np.int16)
        across = part[:, :-2] + part[:, 1:-1] + part[:, 2:]
        total: NDArray[np.int16] = across[:-2] + across[1:-1] + across[2:]
        total -= part[1:-1, 1:-1]
        return total


def dilated(cells: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The chosen cells (h, w), and those beside them."""
    height, width = cells.shape
    padded = np.pad(cells, 1)
    near = np.zeros_like(cells)
    for down, right in SQUARE:
        near |= padded[1 + down : 1 + down + height, 1 + right : 1 + right + width]
    return near


def doubled(values: NDArray[Any], height: int, width: int) -> NDArray[Any]:
    """Each of the values for a cell of places (height, width), which has 2x2 of them or fewer."""
    return values.repeat(CELL, 0).repeat(CELL, 1)[:height, :width]


def pooled(values: NDArray[Any], side: int, add: np.ufunc = np.add) -> NDArray[Any]:
    """The sums of values (h, w, ...) in squares of side x side places; the last may be smaller."""
    for axis in (0, 1):
        values = add.reduceat(values, np.arange(0, values.shape[axis], side), axis)
    return values


def blocks(count: int, size: int) -> Iterator[slice]:
    """``count`` places, in blocks of at most ``size``."""
    for start in range(0, count, size):
        yield slice(start, start + size)
