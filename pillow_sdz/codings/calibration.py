"""Learns which scale is best for an expected error, from the symbols of a frame.

The adaptive prior expects a magnitude for each error.  The best scale for an expected magnitude
depends on the latents and on the step, most of all if most symbols are zero.  So residuals are
counted for each expected magnitude.  The scale that would have coded these residuals in the fewest
bits codes the next ones.  docs/adaptive.md specifies it.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np

from ..arrays import Floats, Ints
from .integers import LOG_UNITS
from .range_coder import (
    FREQUENCY_BITS,
    LOGISTIC_TABLES,
    MEAN_UNITS,
    PHASED_SCALES,
    PHASES,
    Tables,
)

# Constants without another origin are measured and rounded: docs/measurements.md#adaptive.
OCTAVES = PHASED_SCALES // 8  # they are calibrated: up to where tables have no phases any more
REACH = 7  # larger residuals are counted as this one
RESIDUALS = 2 * REACH + 1
CELLS = PHASES * RESIDUALS
# With this scale, one in 58 residuals is not zero.  With smaller scales, a few bytes would decode
# to more values than `coding.WORK_PER_BYTE` allows.
LEAST_SCALE = 14
STRENGTH = 32  # the first counts weigh as much as this many residuals
# A normal distribution has the deviation of a logistic one if its scale is smaller by this: then
# its deviation is 1.7 of the logistic scale.  Chosen: a logistic distribution has 1.8.
NARROWER = 2
# Scales are chosen again when there are this many new residuals for each old one.  Chosen: this
# happens about 30 times in a file.
GROWTH = 4
# How many of a mean's eighths belong to each phase.
_EIGHTHS_OF_PHASES = np.array([1, 2, 2, 2, 1])


class Bins(NamedTuple):
    """Bins of expected magnitudes, so many in an octave; bin 0 has 2 ** -5 steps.

    Those of `OCTAVES` are calibrated.  Their distributions are logistic or ``normal``.
    """

    octave: int
    number: int
    normal: bool

    @property
    def calibrated(self) -> int:
        return OCTAVES * self.octave

    @property
    def usual(self) -> Ints:
        """The scales of logistic distributions."""
        return 8 // self.octave * np.arange(self.number)


# The largest magnitude is `adaptive.VALUE_LIMIT`, in bin 66.
QUARTERS = Bins(4, 67, normal=False)


@functools.cache
def _costs(kind: Bins) -> tuple[Floats, Floats]:
    """The cost of each cell with each scale, and the cost of the first counts.

    They are (cells, scales) and (bins, scales), in 1/256 bits.  The first scale is `LEAST_SCALE`.
    """
    tables = Tables.shipped()
    start = LOGISTIC_TABLES if kind.normal else 0
    counts = np.ones((PHASED_SCALES, PHASES, RESIDUALS), np.int64)
    for number in range(PHASED_SCALES * PHASES):
        table = start + number
        reach, frequencies = int(tables.reach[table]), tables.frequencies(table)
        row = counts[divmod(number, PHASES)]
        for residual, frequency in enumerate(frequencies[:-1].tolist(), -reach):
            if abs(residual) < REACH:
                row[residual + REACH] = frequency
            else:
                row[0 if residual < 0 else -1] += frequency
        row[[0, -1]] += int(frequencies[-1])  # residuals that are escaped
    # All machines round these logarithms alike: none lies close to the middle of two integers.
    costs = np.rint((FREQUENCY_BITS - np.log2(counts)) * LOG_UNITS).reshape(PHASED_SCALES, CELLS)
    costs = costs[LEAST_SCALE:]
    usual = np.maximum(kind.usual[: kind.calibrated] - NARROWER * kind.normal, LEAST_SCALE)
    likely = (counts * _EIGHTHS_OF_PHASES[:, None]).reshape(PHASED_SCALES, CELLS)[usual]
    unit = 1 << FREQUENCY_BITS + MEAN_UNITS.bit_length() - 1
    return costs.T.copy(), STRENGTH * (likely @ costs.T) // unit


class Calibration:
    """The scales of expected magnitudes, for each frame."""

    def __init__(self, frames: int, kind: Bins) -> None:
        self._costs, first = _costs(kind)
        self._bins = kind.calibrated
        self._spent = np.tile(first, (frames, 1, 1))
        self._scales = np.tile(kind.usual, (frames, 1))
        self._frames = kind.number * np.arange(frames)[:, None]
        self._choose()
        self._new: list[tuple[Ints, Ints, Ints]] = []
        self._counts = [0, 0]  # the residuals before, and since the last choice

    def scales(self, bins: Ints) -> Ints:
        """The scales for magnitudes (F, n), in quarters of an octave above 2 ** -5 steps."""
        return self._scales.take(bins + self._frames)

    def learn(self, bins: Ints, eighths: Ints, symbols: Ints) -> None:
        """Learn from symbols (F, n) with their magnitudes and means."""
        self._new.append((bins, eighths, symbols))
        self._counts[1] += bins.shape[1]
        if GROWTH * self._counts[1] >= self._counts[0]:
            self._count()
            self._choose()

    def _count(self) -> None:
        bins, eighths, symbols = map(np.hstack, zip(*self._new, strict=True))
        centre = (eighths + MEAN_UNITS // 2) >> 3
        fraction = eighths - MEAN_UNITS * centre
        residual = (symbols - centre) * np.where(fraction < 0, -1, 1)
        residual = np.clip(residual, -REACH, REACH) + REACH
        # The last bin has the magnitudes that are not calibrated.
        place = np.arange(len(bins))[:, None] * (self._bins + 1) + np.clip(bins, 0, self._bins)
        cells = (place * PHASES + np.abs(fraction)) * RESIDUALS + residual
        counts = np.bincount(cells.ravel(), minlength=len(bins) * (self._bins + 1) * CELLS)
        found = counts.reshape(len(bins), self._bins + 1, CELLS)[:, : self._bins]
        self._spent += found.astype(np.float64) @ self._costs
        self._new = []
        self._counts = [sum(self._counts), 0]

    def _choose(self) -> None:
        self._scales[:, : self._bins] = LEAST_SCALE + self._spent.argmin(2)
