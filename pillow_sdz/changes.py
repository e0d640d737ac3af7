"""Which latents of a frame are those of the frame before: a map of what changes, coded.

A cell of the map stands for a hyperlatent and its 2x2 latents.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .entropy import MEAN_UNITS, Coder, DamagedPayload

# A cell that changes is a symbol 1, of the table with this scale.  Its mean, in eighths, is then
# the logarithm of the odds: from 0, one cell in 13,000, by a factor of 11 at each eighth, to 4,
# every second one, and so on to 8.  Chosen: a coarser grid would span more than a map needs.
SCALE = 6
# The middles, geometric ones, between these odds: n cells to one that changes, up to an eighth.
MIDDLES = (4096, 384, 37, 4)
# Contexts are how many of the three cells above change.  What is supposed of each before it has
# been met: so many changed cells, of so many.  Chosen.
BEFORE_CHANGED, BEFORE_ALL = (1, 2, 2, 3), (16, 4, 4, 4)


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
