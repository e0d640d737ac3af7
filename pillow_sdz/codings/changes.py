"""Codes a map of which latents change from the frame before.

A cell of the map stands for a hyperlatent and its 2x2 latents.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arrays import Floats, Ints
from .range_coder import MEAN_UNITS, Coder, DamagedPayload, Prediction, Tables

# A cell is coded if its squared error, in squared steps, falls by more than this for each bit.
# Measured: docs/measurements.md#changes.
RATE_WEIGHT = 0.05

# A cell that changes is a symbol 1 of the table with this scale, any other cell a symbol 0.  With
# this scale, the mean in eighths is a logarithm of the odds.  A mean of 0 means that one cell in
# 13,000 changes.  Each eighth multiplies the odds by 11.  With a mean of 4, every second cell
# changes, and so on to 8.  Chosen: with a coarser scale, the means would span more than a map
# needs.
SCALE = 6
# The geometric means of neighbouring odds: one in this many cells changes.
MIDDLES = (4096, 384, 37, 4)
# The context of a cell is how many of the three cells above it change, 0 to 3.  At the start, each
# context counts this many cells as changed, and this many as coded.  Chosen.
BEFORE_CHANGED, BEFORE_ALL = (1, 2, 2, 3), (16, 4, 4, 4)

# To show a frame, a reader decodes all DIFF that lead to it.  These limit their work, in cells.
# A DIFF that changes something takes about as long as this many cells, besides those that change
# (measured: docs/measurements.md#changes).
WORK_OF_ONE = 40
# Chosen: all that lead to a frame may take about as long as four pictures, and a second more.
WORK_PER_CELL, FREE_WORK = 4, 2048


def work(changed: NDArray[np.bool_]) -> int:
    """How long a DIFF with this map takes, in cells."""
    cells = int(changed.sum())
    return WORK_OF_ONE + cells if cells else 0


def most_work(height: int, width: int) -> int:
    """How much work all DIFF in a row with maps (height, width) may take together."""
    return WORK_PER_CELL * height * width + FREE_WORK


def code(coder: Coder, height: int, width: int) -> NDArray[np.bool_]:
    """Code the map (height, width) row by row, and return it.  The coder knows it as "changed".

    A map that is higher than wide is coded column by column, so that it has few stages.  A stage
    takes as long as half a cell that changes, and a reader may have to decode 255 maps for a frame.
    """
    is_turned = height > width
    if is_turned:
        height, width = width, height
    changed = np.zeros((height, width), bool)
    above = np.zeros(width + 2, np.int32)
    counts = np.array([BEFORE_CHANGED, BEFORE_ALL])
    for row in range(height):
        context = above[:-2] + above[1:-1] + above[2:]
        mean = np.array([_mean(*map(int, count)) for count in counts.T])[context]
        index = (slice(None), row) if is_turned else (row,)
        symbols = coder.code("changed", index, mean, np.full(width, SCALE, np.int32))
        if (symbols & ~1).any():
            msg = "a cell of the map of changes is neither 0 nor 1"
            raise DamagedPayload(msg)
        changed[row] = symbols == 1
        counts[0] += np.bincount(context[changed[row]], minlength=len(counts.T))
        counts[1] += np.bincount(context, minlength=len(counts.T))
        above[1:-1] = changed[row]
    return changed.T if is_turned else changed


def _mean(changed: int, cells: int) -> int:
    """The mean, in eighths, for a context in which ``changed`` of ``cells`` have changed."""
    rare = min(changed, cells - changed)
    level = sum(middle * rare > cells for middle in MIDDLES)
    return level if changed == rare else MEAN_UNITS - level


OF_PLACES = {"latents", "hyper"}  # the volumes whose bits are those of cells


class Counted:
    """A `range_coder.Coder` that lets another one code, and counts the ``bits`` of every cell."""

    def __init__(self, coder: Coder, height: int, width: int) -> None:
        """``height`` and ``width`` are those of the map."""
        self._coder = coder
        self.bits = np.zeros((height, width))

    def code(self, volume: str, index: tuple[Any, ...], mean: Ints, scale: Ints) -> Ints:
        symbols = self._coder.code(volume, index, mean, scale)
        if volume not in OF_PLACES:
            return symbols
        rows, columns = index[:2]
        bits = Tables.shipped().bits(symbols, Prediction.of(mean, scale))
        side = 2 if volume == "latents" else 1
        if len(rows):
            of_places = bits.reshape(len(rows), -1).sum(1)
            np.add.at(self.bits, (rows // side, columns // side), of_places)
        return symbols


def worth_their_bits(
    latents: NDArray[Any], before: Ints, now: Ints, bits: Floats
) -> NDArray[np.bool_]:
    """The map of the cells to code.

    ``latents`` (h, w, C) are in steps.  ``before`` has their integers in the frame before, and
    ``now`` those that they get if they are coded.  ``bits`` is the cost of each cell then.  Changes
    that are not worth their bits, such as a camera's noise, are left out.  Errors do not add up,
    because a frame's latents are compared with the integers that a reader has.
    """
    gain = (latents - before) ** 2 - (latents - now) ** 2
    (height, width), (rows, columns) = bits.shape, gain.shape[:2]
    of_places = np.zeros((2 * height, 2 * width))
    of_places[:rows, :columns] = gain.sum(2)
    of_cells = of_places.reshape(height, 2, width, 2).sum((1, 3))
    worth: NDArray[np.bool_] = of_cells > RATE_WEIGHT * bits
    return worth
