"""Scans: pages of letters on paper, with noise, which are kept in their own way.

Paper is bright or dark.  Screenshots that were JPEGs are such pages, too.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from . import graphics
from .block_maps import Blocks
from .exact_parts import BLOCK

# A scan is a page of letters on paper, with noise.  In a block of paper, the darkest and brightest
# pixel are at most this many levels apart, and in a block with letters at least this many.  Chosen:
# noise is below the first, and letters of 10 pixels are above the second.
PAPER_CONTRAST, INK_CONTRAST = 40, 72
# At least this part of a scan's blocks is paper, without bars of another colour.  Chosen: half of
# what a page full of letters has.
FEWEST_PAPER = 0.25
# A pixel is paper if it is this near to the usual level of paper.  Chosen: a scanner's light falls
# off by a tenth.
PAPER_RANGE = 32
# At least the first part of a block with letters is paper, in the second part of these blocks.  Of
# their other pixels, at most the third part is within 80 levels of paper: letters have two levels,
# and photos have shades.  Measured (docs/measurements.md#graphics-exact-and-regions): 18 scans and
# JPEGs of pages have 0.25 in 96 to 100 % of the blocks, and 22 to 57 % of shades.  Of 16 photos
# and drawings with much bright or dark ground, two photos and three drawings are like that, too.
PAPER_IN_LETTERS, LETTERS_ON_PAPER, FEW_SHADES, SHADES = 0.25, 0.95, 0.6, 80
# At least this part of a scan's blocks has letters.
FEWEST_LETTERS = graphics.LETTERS_OF_A_PAGE

# The quality of a scanned page is higher by this part of the quality that was asked for.  Chosen:
# readers look at letters closely.  With it, the default quality becomes the highest.
HIGHER = 1 / 3
# From this quality on, pixels of a scan take at most so many times the bytes of latents of the
# higher quality, or else it is no scan.  Measured at quality 75: 0.9 to 1.6 for scans with noise of
# 1 to 4 levels, and more for photos that resemble them.
PIXELS_FROM, TIMES_OF_LATENTS = 70, 1.65
# From quality 60 on, a page of pixels is exact if it takes at most so many times the bytes that it
# takes with coarser levels.  Measured at quality 75: pages with coarser levels that have
# less than 90 points take 1.4 to 1.45 times as many bytes exactly
# (docs/measurements.md#graphics-exact-and-regions).
TIMES_FOR_EXACT = 1.5
# At each quality, it is worth so many bytes more if a block with letters is not latents.  Measured
# on the same JPEGs and scans, and on photos: docs/measurements.md#graphics-exact-and-regions.
WORTH = {30: 17, 50: 21, 60: 43, 75: 95, 90: 65}
# A page may be pixels if more than this part of its blocks with contrast have two levels.
# Measured: 0.54 and more in JPEGs of pages and in scans, at most 0.41 in Kodak's photos, and 0.45
# in two of 177 other photos that would be pixels otherwise.
TWO_LEVELS = 0.5


def worth(quality: float) -> float:
    """How many bytes more it is worth that a block with letters is not latents."""
    return float(np.interp(quality, [*WORTH], [*WORTH.values()]))


def has_letters(picture: graphics.Picture, rest: Blocks) -> bool:
    """Whether most of what has contrast in these blocks of a picture are letters or lines."""
    letters = (graphics.two_levels(picture.image) & rest).sum()
    return bool(letters > TWO_LEVELS * graphics.contrasts(picture, rest))


def is_scan(image: Image.Image, exact: Blocks | None = None) -> bool:
    """Whether a picture of mode RGB is a page of letters on paper, and with noise.

    If some of its blocks are ``exact``, most of its letters must lie in the others.
    """
    lowest, highest = graphics.extremes(image)
    contrast = highest - lowest
    paper, ink = contrast <= PAPER_CONTRAST, contrast >= INK_CONTRAST
    if exact is not None:
        before = ink.sum()
        ink &= ~exact
        if 2 * ink.sum() < before:
            return False
    if not paper.any() or not ink.any():
        return False
    middle = lowest + contrast // 2
    usual = int(np.median(middle[paper]))
    bars = paper & (np.abs(middle.astype(np.int16) - usual) > PAPER_RANGE)  # of another colour
    if (paper & ~bars).sum() < FEWEST_PAPER * (~bars).sum():
        return False
    levels = image.convert("L")
    of_paper, near = (_parts(levels, usual, reach)[ink] for reach in (PAPER_RANGE, SHADES))
    shades = (near - of_paper).sum()
    are_letters = (
        of_paper >= PAPER_IN_LETTERS
    ).mean() >= LETTERS_ON_PAPER and shades <= FEW_SHADES * (1 - of_paper).sum()
    return bool(are_letters and ink.mean() >= FEWEST_LETTERS)


def _parts(levels: Image.Image, usual: int, reach: int) -> NDArray[np.float64]:
    """The part of each block's pixels, 0 to 1, whose level is within ``reach`` of the usual one."""
    near = levels.point([255 if abs(level - usual) <= reach else 0 for level in range(256)])
    parts: NDArray[np.float64] = np.asarray(near.reduce(BLOCK)) / 255
    return parts
