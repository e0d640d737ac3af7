"""Gives cells a higher quality if they look worse than the rest of the picture, else a lower one.

An encoder decodes what it is about to write, and compares it with the original.  A cell gets a
higher quality if it has more than its share of the errors, for the bits that it takes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..arrays import CELL, Area, Ints, Latents, Pixels
from ..fidelity import FloatArray, ssim_maps
from . import quality_map

# All constants without another origin: docs/measurements.md#allocation.

# Errors in structure are measured at 1/2, 1/4, 1/8 and 1/16 of the size.  Each size has two
# weights: for the mean of the errors, and for the fourth root of the mean of their fourth powers.
# They are SSIMULACRA2's weights for the luma, rounded.
WEIGHTS = ((0, 7), (225, 19), (176, 24), (0, 35))
MARGIN = 5  # samples that the window of SSIM reaches
BAND = 8  # rows of cells that are compared at once.  Chosen, for little memory.

# A bit in a cell is worth the cell's part of the errors to the power of this.  Measured.
EXPONENT = 0.6
# This share of the mean part is added to all parts.  Chosen: cells without errors stay near the
# others.
LEAST_PART = 0.05
# If a bit is worth e times the mean, the logarithm of the gain changes by this.  Measured: with
# more, SSIMULACRA2 gains a little more, and PSNR loses several times as much.
STRENGTH = 0.1
# The bits of a cell's symbols, for each bit of log2(1 + their magnitudes).  Measured.
BITS = 2.6
# If the logarithm of the gain grows by 1, the bits of a cell grow by this part.  Measured.
GROWTH = 0.85
MOST = 8  # the largest magnitude of the map.  Chosen: 16 points of quality.

_STEPS = np.arange(-MOST, MOST + 1)


Plane = NDArray[np.uint8]


def offsets(
    original: Plane, shown: Plane, magnitudes: NDArray[np.floating], step: float, side: int
) -> Ints:
    """The map of `quality_map` for latents (h, w): (ceil(h/2), ceil(w/2)), in its steps.

    ``original`` is the luma of the picture at half its size, rounded up.  ``shown`` is that of the
    picture that is decoded without this map.  ``magnitudes`` (h, w) are the sums of log2(1 + the
    magnitude) of each latent's symbols.  One step of the map changes the logarithm of the gain by
    ``step``.  A cell has ``side`` samples along a side, in both planes.
    """
    height, width = (n % CELL for n in magnitudes.shape)
    bits = BITS * _sums(np.pad(magnitudes, ((0, height), (0, width))), CELL)
    if len(bits) * bits.shape[1] < 2 or not bits.any():
        return np.zeros(bits.shape, np.int32)
    part = _errors(original, shown, bits.shape, side)
    more = bits * GROWTH * step  # the additional bits of a step
    value = EXPONENT * np.log(part / max(float(part.mean()), 1e-12) + LEAST_PART)
    value -= np.average(value, weights=more)
    # The sum of the worth of all additional bits.  The worth of a bit falls as the quality grows.
    worth = value[..., None] * _STEPS - step / (2 * STRENGTH) * _STEPS**2
    return _best(more[..., None] * worth)


def luma(levels: Pixels, times: int) -> Plane:
    """The luma of pixels, at 1/``times`` of their size, rounded up."""
    return np.asarray(Image.fromarray(levels).convert("L").reduce(times))


def _errors(original: Plane, shown: Plane, cells: tuple[int, ...], side: int) -> FloatArray:
    """Each cell's part of the errors that a viewer sees, as SSIMULACRA2 pools them."""
    missing = [(0, side * n - length) for n, length in zip(cells, original.shape, strict=True)]
    planes = [np.pad(plane, missing, "edge") for plane in (original, shown)]
    bands = []
    for top in range(0, len(planes[0]), BAND * side):
        # float32 is precise enough for a map, and takes half the time.
        strips: list[FloatArray]
        strips = [plane[top : top + BAND * side].astype(np.float32) for plane in planes]
        found = []
        for scale in range(len(WEIGHTS)):
            if scale:
                strips = [_sums(strip, 2) / 4 for strip in strips]
            x, y = (np.pad(strip, MARGIN, "symmetric") for strip in strips)
            similarity, _ = ssim_maps(x, y)
            error = np.maximum(0, 1 - similarity)
            square = error * error
            found.append([_sums(each, side >> scale) for each in (error, square * square)])
        bands.append(found)
    total: FloatArray = np.zeros(cells)
    for scale, weights in enumerate(WEIGHTS):
        sums = (np.concatenate([band[scale][power] for band in bands]) for power in (0, 1))
        mean, fourth = (values / (side >> scale) ** 2 for values in sums)
        # The derivatives of both norms.
        total += weights[0] * mean + weights[1] * fourth * (fourth.mean() + 1e-20) ** -0.75
    return total


def _sums(plane: FloatArray, side: int) -> FloatArray:
    """The sums of squares of ``side`` x ``side`` samples."""
    height, width = plane.shape
    # First along columns, because that is much faster, and leaves little to sum along rows.
    rows = plane.reshape(height // side, side, width).sum(1)
    found: FloatArray = rows.reshape(height // side, width // side, side).sum(2)
    return found


def _best(worth: FloatArray) -> Ints:
    """The map that is worth most, after the bits that it takes itself.

    ``worth`` (h, w, steps) is the worth of each value of a cell, in bits.  Values of different
    columns do not depend on each other.  So for each scale, the best path down each column is
    found.
    """
    # Columns come last, because numpy is fast along the last axis: (h, steps, w).
    worth = worth.transpose(0, 2, 1)
    height, count, width = worth.shape
    jumps = np.abs(_STEPS[:, None] - _STEPS)
    every = [quality_map.bits(np.arange(count), scale) for scale in quality_map.SCALES]
    first = np.stack([costs[np.abs(_STEPS)] for costs in every])
    costs = np.stack([costs[jumps] for costs in every])
    best = worth[0] - first[..., None]  # (scales, steps, w)
    before = [best]
    for row in range(1, height):
        best = (best[:, :, None] - costs[..., None]).max(1) + worth[row]
        before.append(best)
    totals = best.max(1).sum(1)
    scale = int(totals.argmax())
    if totals[scale] <= quality_map.BITS_BESIDES:
        return np.zeros((height, width), np.int32)
    chosen = [before.pop()[scale].argmax(0)]
    while before:
        # The best way to the values that are chosen in the row below.
        reached = before.pop()[scale] - costs[scale][:, chosen[-1]]
        chosen.append(reached.argmax(0))
    found: Ints = _STEPS[np.stack(chosen[::-1])].astype(np.int32)
    return found


class Rounded:
    """Latents (h, w, C) as they are when rounded.  Slicing computes an area of them.

    A few of those that a reader will have are the second nearest integers.
    """

    def __init__(self, latents: Latents, gain: NDArray[np.float32]) -> None:
        self._latents, self._gain = latents, np.broadcast_to(gain, latents.shape)
        self.shape = latents.shape

    def __getitem__(self, area: Area) -> Latents:
        gain = self._gain[area]
        found: Latents = np.rint(self._latents[area] * gain) / gain
        return found

    def magnitudes(self) -> NDArray[np.float32]:
        """The bits of the symbols' magnitudes (h, w), computed row by row to save memory."""
        rows = zip(self._latents, self._gain, strict=True)
        found = [np.log2(1 + np.abs(np.rint(row * gain))).sum(1) for row, gain in rows]
        return np.stack(found)
