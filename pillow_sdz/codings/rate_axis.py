"""Where a quality lies on the axis of rates that a model with a hyperprior was trained on."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arrays import Ints, Quantisation

LAST = 10_000  # the place at the upper end of the axis
KNOTS = 11  # values that are learnt along the axis are linear between this many knots
APART = LAST // (KNOTS - 1)  # from one knot to the next
QUALITY = 100  # a quality of 1, in a header's hundredths


class RateAxis:
    """``table`` (101,) has the places of the qualities 0 to 100: integers in 0..`LAST`."""

    def __init__(self, table: NDArray[Any]) -> None:
        self._table = table.astype(np.int64)

    def places(self, quality: Quantisation) -> Ints:
        """The places of qualities in hundredths, in an array of the same shape."""
        whole, part = np.divmod(np.asarray(quality, np.int64), QUALITY)
        after = self._table[np.minimum(whole + 1, len(self._table) - 1)]
        total = self._table[whole] * (QUALITY - part) + after * part
        found: Ints = (total + QUALITY // 2) // QUALITY
        return found

    @staticmethod
    def knots(places: Ints) -> NDArray[np.float32]:
        """The weights of all knots, (..., `KNOTS`): integers that sum to `APART`."""
        distance = np.abs(places[..., None] - APART * np.arange(KNOTS))
        weights: NDArray[np.float32] = np.maximum(0, APART - distance).astype(np.float32)
        return weights
