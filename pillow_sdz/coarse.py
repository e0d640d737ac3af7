"""Gives pixels coarser levels of brightness and colour, so that noise takes few bytes."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from . import fidelity
from .arrays import Pixels
from .exact_parts import BLOCK

Plane = NDArray[np.int32]

# A block is flat if its values are no further apart than levels are.  A value is a level if it is
# the usual one of so many flat blocks.  Chosen: so many blocks of an icon of 40x40 pixels have one
# colour, wherever it lies.
FEWEST_FLAT = 16
# A value that is this near to a more frequent level is none.  Chosen: flat colours are at most two
# levels off.
NEAR = 2
# A level is at least so many times as frequent as the usual value around it.  Chosen: where a
# scanner's light falls off, all values are as frequent.
PEAK = 2
_LOWEST, _HIGHEST = -255, 255  # of all planes
_ROWS = 1024  # rows of pixels that are changed together, to save memory with large pictures


class Apart(NamedTuple):
    """How far apart levels are."""

    brightness: int
    colour: int


# From each quality on, levels are so far apart.  Measured on 38 JPEGs and scans of tables, charts,
# slides, windows and pages: docs/measurements.md#graphics-exact-and-regions.
APART = {
    95: Apart(2, 8),
    75: Apart(2, 12),
    70: Apart(3, 12),
    60: Apart(4, 16),
    45: Apart(8, 24),
    0: Apart(12, 24),
}

# With levels of brightness that are so far apart, a picture may lose so much of its shapes: 1 - its
# contrast-structure (MS-SSIM), at half of its size.  Coarser levels make bands of gradients and of
# blurred photos.  Measured on 15 scans and JPEGs of pages, which may have them, and on 10 pictures
# with text on gradients or blurred photos: docs/measurements.md#graphics-exact-and-regions.
MOST_LOST = {2: 0.0006, 3: 0.0015, 4: 0.0035, 8: 0.007, 12: 0.011}
# Smaller pictures are not judged.  Specified: half of it is as large as the window of SSIM.
SMALLEST = 2 * fidelity.WINDOW


def apart_at(quality: float) -> Apart:
    """How far apart levels are at a quality."""
    return next(apart for least, apart in APART.items() if quality >= least)


def coarser(image: Image.Image, apart: Apart) -> Image.Image:
    """A picture of mode RGB with levels that are so far ``apart``.

    Flat areas keep their colours, up to `NEAR` levels.
    """
    steps = apart.colour, apart.brightness, apart.colour
    tables = [
        _nearest(_usual(_Flats(image, number, step), step), step)
        for number, step in enumerate(steps)
    ]
    found = Image.new("RGB", image.size)
    for top, strip in _strips(image):
        red, green, blue = (_plane(strip, number) for number in range(3))
        of_red, of_blue = tables[0][red - _LOWEST], tables[2][blue - _LOWEST]
        # Green gets the brightness that red and blue lose (Rec. ITU-R BT.601: 0.299 and 0.114).
        lost = (299 * (red - of_red) + 114 * (blue - of_blue) + 500) // 1000
        level = tables[1][np.clip(green + lost, 0, 255) - _LOWEST]
        shown = np.clip(np.stack([level + of_red, level, level + of_blue], -1), 0, 255)
        found.paste(Image.fromarray(shown.astype(np.uint8)), (0, top))
    return found


def has_bands(image: Image.Image, levels: Image.Image, apart: Apart) -> bool:
    """Whether coarser ``levels`` of a picture, which are so far ``apart``, show bands."""
    if min(image.size) < SMALLEST:
        return False
    lost, places = 0.0, 0
    for (_, original), (_, shown) in zip(_strips(image), _strips(levels), strict=True):
        if len(original) < SMALLEST:
            break  # the last rows
        _, kept = fidelity.ssim_maps(_half(original), _half(shown))
        lost += float((1 - kept).sum())
        places += kept.size
    return lost > MOST_LOST[apart.brightness] * places


def _half(pixels: Pixels) -> fidelity.FloatArray:
    """The luma of pixels (H, W, 3) at half of their size."""
    height, width = (side // 2 for side in pixels.shape[:2])
    luma = fidelity.luma(pixels[: 2 * height, : 2 * width]).astype(np.float32)
    half: fidelity.FloatArray = luma.reshape(height, 2, width, 2).mean((1, 3))
    return half


def _strips(image: Image.Image) -> Iterator[tuple[int, Pixels]]:
    """The pixels of a picture, strip by strip, and the first row of each."""
    for top in range(0, image.height, _ROWS):
        bottom = min(top + _ROWS, image.height)
        yield top, np.asarray(image.crop((0, top, image.width, bottom)))


def _plane(pixels: Pixels, number: int) -> Plane:
    """A plane of pixels: red, less green; green; or blue, less green."""
    plane = pixels[..., number].astype(np.int32)
    return plane if number == 1 else plane - pixels[..., 1]


class _Flats:
    """How many blocks of a picture have each value as their usual one.

    ``every`` counts all blocks, and ``flat`` the flat ones.
    """

    def __init__(self, image: Image.Image, number: int, step: int) -> None:
        self.every, self.flat = np.zeros((2, _HIGHEST - _LOWEST + 1), np.int64)
        for _, strip in _strips(image):
            plane = _plane(strip, number)
            height, width = plane.shape
            even = np.pad(plane, ((0, -height % BLOCK), (0, -width % BLOCK)), mode="edge")
            rows, columns = even.shape[0] // BLOCK, even.shape[1] // BLOCK
            parts = even.reshape(rows, BLOCK, columns, BLOCK).swapaxes(1, 2)
            ordered = np.sort(parts.reshape(-1, BLOCK**2), 1)
            usual = ordered[:, BLOCK**2 // 2] - _LOWEST
            is_flat = ordered[:, -1] - ordered[:, 0] <= step
            self.every += np.bincount(usual, minlength=len(self.every))
            self.flat += np.bincount(usual[is_flat], minlength=len(self.flat))


def _usual(flats: _Flats, step: int) -> list[int]:
    """The values that must be levels: the most frequent one, and those of flat areas."""
    flat = flats.flat
    around = np.median(_around(np.convolve(flat, np.ones(3, np.int64), "same"), step), -1)
    is_level = (flat >= FEWEST_FLAT) & (flat == _around(flat, NEAR).max(-1))
    is_level &= np.convolve(flat, np.ones(3, np.int64), "same") >= PEAK * around
    is_level[flats.every.argmax()] = True
    return [int(value) + _LOWEST for value in np.flatnonzero(is_level)]


def _around(counts: NDArray[np.int64], reach: int) -> NDArray[np.int64]:
    """For each value, the counts of those within ``reach`` of it."""
    return np.lib.stride_tricks.sliding_window_view(np.pad(counts, reach), 2 * reach + 1)


def _nearest(usual: list[int], step: int) -> Plane:
    """The nearest level of each value.  Levels are at most a ``step`` apart."""
    levels = [
        *range(usual[0], _LOWEST - step, -step),
        *range(usual[-1], _HIGHEST + step, step),
    ]
    for low, high in pairwise(usual):
        levels += np.linspace(low, high, -(-(high - low) // step) + 1).round().astype(int).tolist()
    ordered = np.unique(np.array(levels, np.int32))
    values = np.arange(_LOWEST, _HIGHEST + 1)
    nearest: Plane = ordered[np.abs(values[:, None] - ordered).argmin(1)]
    return nearest
