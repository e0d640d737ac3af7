"""Codes which patches have symbols of a group of channels that are not 0.

In the other patches, the group takes no time: nothing is predicted and nothing is read.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..arrays import Ints
from .integers import logarithm_of_singles
from .places import CELL, doubled, pooled
from .range_coder import MEAN_UNITS, Coder

# The constants are measured or chosen: docs/measurements.md#occupancy.

PATCH = 2 * CELL  # a patch has 2x2 cells
FIRST = 4  # the groups from this one on have a map

# A patch is a symbol 1 of the table with this scale if it has symbols, and a symbol 0 if not.  With
# this scale, each eighth of the mean multiplies the odds of a 1 by 4.  With a mean of 4, every
# second patch has symbols.
SCALE = 12
# The mean is the logarithm to base 2 of what the group before has in the patch, and a bias of the
# group, both in 1/256.
BIASES = (328, 824, 632, 696, 232)


def patches(used: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Which patches have a symbol that is not 0, for latents (h, w, groups) that have one."""
    return pooled(used, PATCH, np.logical_or).astype(np.float32)


def code(coder: Coder, group: int, cells: NDArray[np.bool_], magnitudes: Ints) -> NDArray[np.bool_]:
    """Code which patches have symbols of a group, and return the ``cells`` (hz, wz) in them.

    Only patches with ``cells`` are coded.  ``magnitudes`` (h, w) has the sums of the magnitudes of
    the group before.  The coder knows the map as "occupied".
    """
    occupied = pooled(cells, PATCH // CELL, np.logical_or)
    rows, columns = np.nonzero(occupied)
    sums = pooled(magnitudes, PATCH)[rows, columns]
    logarithm = logarithm_of_singles((sums + 1).astype(np.float32), 1).astype(np.int32)
    mean = np.minimum((logarithm + BIASES[group - FIRST]) >> 8, MEAN_UNITS)
    symbols = coder.code("occupied", (rows, columns, group), mean, np.full_like(mean, SCALE))
    occupied[rows, columns] = symbols == 1
    found: NDArray[np.bool_] = cells & doubled(occupied, *cells.shape)
    return found
