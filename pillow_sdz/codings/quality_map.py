"""Codes the differences between each cell's quality and the picture's.  A cell has 32x32 pixels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..arrays import Ints
from ..spaces import HIGHEST_QUALITY, LOWEST_QUALITY
from .range_coder import MEAN_UNITS, Coder, DamagedPayload, Prediction, Tables

UNIT = 200  # hundredths of quality in a step of the map.  Chosen: less than anybody can see.
LIMIT = 50  # the map's largest magnitude: the whole range of qualities

# A symbol of this scale says if there is a map: 1 if yes, 0 if no.  A 0 takes nearly no bits.
FLAG_SCALE = 6
# One of these scales is used for all rows.  Chosen: each is an octave above the one before.
SCALES = (8, 16, 24, 32, 40, 48)
SCALE_OF_SCALES = 56
BITS_BESIDES = 18  # what a map takes in addition to its values.  Measured.


def code(coder: Coder, height: int, width: int) -> Ints | None:
    """Code the map (height, width) row by row, and return it; None if there is none.

    The coder knows the values as "map".  "mapped" says whether there is a map.  "map scale" is the
    number of the scale in `SCALES`.
    """
    zero = np.zeros(1, np.int32)
    # Any other symbol, such as that of a payload without bytes, means that there is none.
    if int(coder.code("mapped", (0,), zero, zero + FLAG_SCALE)[0]) != 1:
        return None
    scale = SCALES[_below(coder.code("map scale", (0,), zero, zero + SCALE_OF_SCALES), len(SCALES))]
    found = np.zeros((height, width), np.int32)
    above = np.zeros(width, np.int32)
    for row in range(height):
        scales = np.full(width, scale, np.int32)
        found[row] = coder.code("map", (row,), MEAN_UNITS * above, scales)
        above = np.clip(found[row], -LIMIT, LIMIT)
    if np.abs(found).max() > LIMIT:
        msg = f"a quality that differs by more than {LIMIT} steps"
        raise DamagedPayload(msg)
    return found


def _below(symbols: Ints, count: int) -> int:
    symbol = int(symbols[0])
    if not 0 <= symbol < count:
        msg = f"a symbol of {symbol} before the map of qualities"
        raise DamagedPayload(msg)
    return symbol


def volumes(offsets: NDArray[np.integer] | None) -> dict[str, NDArray[np.float32]]:
    """What an encoder codes for a map (h, w), or for none."""
    if offsets is None or not offsets.any():
        return {"mapped": np.zeros(1, np.float32)}
    return {
        "mapped": np.ones(1, np.float32),
        "map scale": np.array([np.argmin(_totals(offsets))], np.float32),
        "map": offsets.astype(np.float32),
    }


def total_bits(offsets: NDArray[np.integer] | None) -> float:
    """The bits of a map (h, w), or of none."""
    return 0 if offsets is None or not offsets.any() else BITS_BESIDES + min(_totals(offsets))


def _totals(offsets: NDArray[np.integer]) -> list[float]:
    """The bits of the values of a map (h, w) with each of `SCALES`."""
    jumps = np.abs(np.diff(offsets.astype(np.int32), axis=0, prepend=0))
    return [float(bits(jumps.ravel(), scale).sum()) for scale in SCALES]


def bits(jumps: NDArray[np.integer], scale: int) -> NDArray[np.floating]:
    """The bits of values that differ by ``jumps`` from those above, with one of `SCALES`."""
    zeros = np.zeros(len(jumps), np.int32)
    found: NDArray[np.floating] = Tables.shipped().bits(
        jumps.astype(np.int32), Prediction.of(zeros, zeros + scale)
    )
    return found


def halved(offsets: Ints | None) -> Ints | None:
    """A map of half the differences, rounded towards 0; None if all are 0."""
    if offsets is None:
        return None
    half: Ints = np.trunc(offsets / 2).astype(np.int32)
    return half if half.any() else None


def qualities(quality: int, offsets: Ints | None) -> int | NDArray[np.int32]:
    """The qualities of all cells in hundredths, or the picture's if there is no map."""
    if offsets is None:
        return quality
    found: NDArray[np.int32] = np.clip(
        quality + UNIT * offsets, LOWEST_QUALITY, HIGHEST_QUALITY
    ).astype(np.int32)
    return found
