"""Which latents of a frame are those of the frame before: a map of what changes, coded.

A cell of the map stands for a hyperlatent and its 2x2 latents.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arrays import Floats, Ints
from .range_coder import MEAN_UNITS, Coder, DamagedPayload, Prediction, Tables

# A cell is coded where that takes more off its squared error, in squared steps, than so much for
# each of its bits.  Theory has 0.1155 for fine steps (see `quantize`), but what stays behind where
# all else moves is seen: of 0.02 to 0.8, this one takes the fewest bytes at equal SSIMULACRA2 over
# the moving scenes of benchmarks.frames, two of each, at qualities of 20 to 75.  Against 0.1, pans
# take up to 9 % less, a camera that stands still 2 % less to 3 % more, and pages up to 4 % more.
RATE_WEIGHT = 0.05

# A cell that changes is a symbol 1, of the table with this scale.  Its mean, in eighths, is then
# the logarithm of the odds: from 0, one cell in 13,000, by a factor of 11 at each eighth, to 4,
# every second one, and so on to 8.  Chosen: a coarser grid would span more than a map needs.
SCALE = 6
# The middles, geometric ones, between these odds: n cells to one that changes, up to an eighth.
MIDDLES = (4096, 384, 37, 4)
# Contexts are how many of the three cells above change.  What is supposed of each before it has
# been met: so many changed cells, of so many.  Chosen.
BEFORE_CHANGED, BEFORE_ALL = (1, 2, 2, 3), (16, 4, 4, 4)

# A reader that wants a frame decodes all changes that lead there, and so this is what a frame may
# cost: at most so many times its own integers.  Chosen: with the network, which runs once, a frame
# then takes at most about three times as long as a picture.
MOST_CHANGES = 4


def most_cells(height: int, width: int) -> int:
    """How many cells of a map (height, width) may change in a row of frames that are changes."""
    return MOST_CHANGES * height * width


def code(coder: Coder, height: int, width: int) -> NDArray[np.bool_]:
    """Code the map (height, width), "changed" to the coder, row by row; it comes back."""
    changed = np.zeros((height, width), bool)
    above = np.zeros(width + 2, np.int32)
    counts = np.array([BEFORE_CHANGED, BEFORE_ALL])
    for row in range(height):
        context = above[:-2] + above[1:-1] + above[2:]
        mean = np.array([_mean(*map(int, count)) for count in counts.T])[context]
        symbols = coder.code("changed", (row,), mean, np.full(width, SCALE, np.int32))
        if not np.isin(symbols, (0, 1)).all():
            msg = "a cell neither changes nor stays"
            raise DamagedPayload(msg)
        changed[row] = symbols == 1
        counts[0] += np.bincount(context[changed[row]], minlength=len(counts.T))
        counts[1] += np.bincount(context, minlength=len(counts.T))
        above[1:-1] = changed[row]
    return changed


def _mean(changed: int, cells: int) -> int:
    """The mean, in eighths, that suits a context of which so many cells have changed."""
    rare = min(changed, cells - changed)
    level = sum(middle * rare > cells for middle in MIDDLES)
    return level if changed == rare else MEAN_UNITS - level


class Counted:
    """A `range_coder.Coder` that has another one code, and notes the ``bits`` of every cell."""

    def __init__(self, coder: Coder, height: int, width: int) -> None:
        """Of a map (height, width)."""
        self._coder = coder
        self.bits = np.zeros((height, width))

    def code(self, volume: str, index: tuple[Any, ...], mean: Ints, scale: Ints) -> Ints:
        symbols = self._coder.code(volume, index, mean, scale)
        rows, columns = index[:2]
        bits = Tables.shipped().bits(symbols, Prediction.of(mean, scale))
        side = 2 if volume == "latents" else 1
        if len(rows):
            of_places = bits.reshape(len(rows), -1).sum(1)
            np.add.at(self.bits, (rows // side, columns // side), of_places)
        return symbols


def worth_their_bits(latents: NDArray[Any], before: Ints, bits: Floats) -> NDArray[np.bool_]:
    """The map of what to code of latents (h, w, C) in steps, whose integers were ``before``.

    ``bits`` are what each cell takes where it is coded.  What is not worth them, such as a
    camera's noise, stays as it was; since every frame is compared with what is shown of it, not
    with the frame before, errors do not add up.
    """
    gain = (latents - before) ** 2 - (latents - np.rint(latents)) ** 2
    (height, width), (rows, columns) = bits.shape, gain.shape[:2]
    of_places = np.zeros((2 * height, 2 * width))
    of_places[:rows, :columns] = gain.sum(2)
    of_cells = of_places.reshape(height, 2, width, 2).sum((1, 3))
    worth: NDArray[np.bool_] = of_cells > RATE_WEIGHT * bits
    return worth
