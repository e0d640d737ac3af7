"""What a prior knows of symbols that are already coded: the inputs for the next ones."""

from __future__ import annotations

from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from ..arrays import Ints, Singles
from .places import BESIDE, RING, Grid, Volume

# Magnitudes are clipped to this before they predict others, so that one does not spoil many.
LARGEST_MAGNITUDE = 60


class Known:
    """Keeps the ``symbols`` (h, w, C) that are known at first, and those that are coded later.

    ``near`` (h, w) has all places that a tap reaches.  ``largest`` (C,) limits symbols, and
    ``levels`` has the level of each magnitude.
    """

    def __init__(
        self, symbols: Ints, near: NDArray[np.bool_], largest: Singles, levels: NDArray[Any]
    ) -> None:
        height, width, channels = symbols.shape
        self._largest, self._levels = largest[:channels].astype(np.int32), levels
        self.grid = Grid(height, width)
        rows, columns = np.nonzero(near)
        self.clipped = Volume(self.grid, channels, np.int16)
        self.magnitudes = Volume(self.grid, channels, np.uint8)
        self.levels = Volume(self.grid, channels, levels.dtype)
        self.rings = Volume(self.grid, channels, np.int16)
        self._all = bool(near.all())
        if symbols.any():
            self.note(symbols[rows, columns], self.grid.at(rows, columns), slice(None))

    def note(self, symbols: Ints, places: Ints, channels: slice) -> None:
        """Keep symbols (n, channels) at places."""
        largest = self._largest[channels]
        # `clip` takes four times as long, because its limits would be arrays.
        values = np.minimum(symbols, largest)
        values = np.maximum(values, -largest, out=values).astype(np.int16)
        self.clipped.flat[places, channels] = values
        sizes = np.abs(values, out=values)
        self.levels.flat[places, channels] = self._levels.take(sizes, mode="clip")
        self.magnitudes.flat[places, channels] = np.minimum(sizes, LARGEST_MAGNITUDE)

    def sum_around(self, channels: slice, places: NDArray[np.bool_]) -> None:
        """Sum the magnitudes of channels around places (h, w), after all of them are known."""
        if self._all:
            self.rings.values[..., channels] = self.magnitudes.ring(channels)
            return
        wanted = self.grid.at(*np.nonzero(places))
        around = self.grid.around(wanted, RING)
        self.rings.flat[wanted, channels] = self.magnitudes.sums_at(around, channels)

    def beside(self, places: Ints, channels: slice) -> Singles:
        """The sums of magnitudes of the first pass beside places (n,): (n, channels)."""
        return self.magnitudes.sums_at(self.grid.around(places, BESIDE), channels)


class Pass(NamedTuple):
    """The places of a pass: their rows, columns and numbers, and the inputs that are given."""

    rows: Ints
    columns: Ints
    numbers: Ints
    given: Singles

    @classmethod
    def of(cls, grid: Grid, here: NDArray[np.bool_], given: Singles, second: int) -> Self:
        """The second or the first pass over the places ``here`` (h, w)."""
        parity = np.indices(here.shape).sum(0) % 2
        rows, columns = np.nonzero(here & (parity != second))
        return cls(rows, columns, grid.at(rows, columns), given[rows, columns])
