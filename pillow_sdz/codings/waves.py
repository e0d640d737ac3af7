"""The waves in which priors go over the places of latents, and what they keep of each place.

The places of one anti-diagonal wave, in all channels and all frames, do not depend on each other.
docs/adaptive.md specifies the order and the border.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..arrays import Ints

Offsets = list[tuple[int, int]]

# (row, column).  In a wave's own channel, neighbours with column + 2 row < 0 are known.
OWN: Offsets = [
    *[(0, -1), (-1, 0), (-1, -1), (-1, 1), (0, -2), (-2, 0), (-1, -2), (-2, -1), (-2, -2)]
]
# A channel is three waves behind the channel before it.  There, values with column + 2 row < 3 are
# known.
CHANNEL_DELAY = 3
ABOVE, BELOW, BESIDE = 2, 1, 2  # the border of what is kept, as wide as neighbours reach


class Wave(NamedTuple):
    """Places that are coded at once: some rows of some channels, (A, R) each.

    Channels have different numbers of rows.  If a channel has fewer than others, its first row is
    repeated, and the copies are not ``valid``.
    """

    rows: Ints
    columns: Ints
    channels: slice
    valid: NDArray[np.bool_]

    @classmethod
    def of(cls, time: int, height: int, width: int, channels: int) -> Wave | None:
        """All places with column + 2 row + 3 channel = ``time``; None if there are none."""
        start = time - CHANNEL_DELAY * np.arange(channels)
        first = np.maximum(0, (start - width + 2) // 2)
        counts = np.minimum(height - 1, start // 2) + 1 - first
        (active,) = np.nonzero(counts > 0)
        if not len(active):
            return None
        these = slice(int(active[0]), int(active[-1]) + 1)
        first, counts, start = first[these, None], counts[these, None], start[these, None]
        number = np.arange(counts.max())
        valid = number < counts
        rows = first + number * valid
        return cls(rows, start - 2 * rows, these, valid)

    @property
    def places(self) -> tuple[Ints, Ints, Ints]:
        """The places that are valid: their rows, columns and channels, (n,) each."""
        channels = np.nonzero(self.valid)[0] + self.channels.start
        return self.rows[self.valid], self.columns[self.valid], channels


def waves(height: int, width: int, channels: int) -> int:
    """How many waves latents (height, width, channels) have."""
    return width + 2 * (height - 1) + CHANNEL_DELAY * (channels - 1)


class Layout(NamedTuple):
    """Where the places of latents (h, w, C) and of their border are in a flat array.

    ``row``, ``column`` and ``channel`` are how far apart neighbours are.  ``first`` is the place
    (0, 0, 0), and ``size`` the length of the array.
    """

    height: int
    width: int
    row: int
    column: int
    channel: int
    first: int
    size: int

    @classmethod
    def by_channel(cls, height: int, width: int, channels: int, before: int) -> Layout:
        """One channel after another, and so many more ``before`` the first one."""
        row = width + 2 * BESIDE
        channel = row * (height + ABOVE + BELOW)
        first = before * channel + ABOVE * row + BESIDE
        return cls(height, width, row, 1, channel, first, (before + channels) * channel)

    @classmethod
    def by_wave(cls, height: int, width: int, channels: int) -> Layout:
        """One value of column + 2 row after another.  Each has all channels, with all rows.

        So the rows of a channel that a wave has lie side by side.
        """
        channel = height + ABOVE + BELOW
        column = channels * channel
        row = 2 * column + 1
        first = ABOVE * row + BESIDE * column
        before, after = BESIDE + 2 * ABOVE, 1 + 2 * BELOW
        size = column * (before + width + 2 * (height - 1) + after)
        return cls(height, width, row, column, channel, first, size)

    def offset(self, rows: int, columns: int, channels: int = 0) -> int:
        """How far a place is from the one so many rows, columns and channels before it."""
        return rows * self.row + columns * self.column + channels * self.channel

    def places(self, wave: Wave) -> Ints:
        """The places of a wave (A, R)."""
        channels = np.arange(wave.channels.start, wave.channels.stop)[:, None] * self.channel
        return channels + wave.rows * self.row + wave.columns * self.column + self.first

    def keep(
        self, known: NDArray[Any], places: tuple[Ints, Ints, Ints], values: NDArray[Any]
    ) -> None:
        """Put values (n, ...) of ``places`` into ``known`` (size, ...), and into the border.

        ``places`` has their rows, columns and channels.
        """
        rows, columns, channels = places
        at = rows * self.row + columns * self.column + channels * self.channel + self.first
        known[at] = values
        borders = (
            (columns == 0, ((1, -1), (1, -2))),
            (columns == self.width - 1, ((0, 1),)),
            (rows == self.height - 1, ((1, 0),)),
            (rows == 0, ((-1, 2), (-2, 2))),
        )
        for border, offsets in borders:
            (these,) = np.nonzero(border)
            if len(these):
                copied = values[these]
                for offset in offsets:
                    known[at[these] + self.offset(*offset)] = copied
