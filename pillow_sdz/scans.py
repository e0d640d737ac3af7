"""Scans: pages of letters on paper, with noise, which are kept in their own way.

Paper is bright or dark.  Screenshots that were JPEGs are such pages, too.
"""

from __future__ import annotations

from typing import NamedTuple

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
# A block with letters on a ground has two levels: at most this part of its pixels is in the middle
# half of its contrast.  Chosen; see `TWO_LEVELS` for what it tells apart.
BETWEEN = 0.25
# A block with strokes has so many places at which one of two neighbours is dark, and the other one
# bright.  A straight edge has at most 15, and a straight line 16.
CHANGES = 16
# At each quality, it is worth so many bytes more if a block with strokes is not latents.  Measured
# on the same JPEGs and scans, and on photos: docs/measurements.md#graphics-exact-and-regions.
WORTH = {30: 40, 50: 50, 60: 100, 75: 280, 90: 150}
# A page may be pixels if more than this part of its blocks with contrast have two levels.
# Measured: 0.54 and more in JPEGs of pages and in scans, at most 0.41 in Kodak's photos, and 0.45
# in two of 177 other photos that would be pixels otherwise.
TWO_LEVELS = 0.5
# From quality 60 on, the pixels of such a page take at most so many times the bytes of latents.
# Measured at quality 75: 0.7 to 3.2 for JPEGs of pages, and 3.5 and more for photos, all but one
# (docs/measurements.md#graphics-exact-and-regions).
TIMES_OF_LETTERS = 3.5
# In a scan, so many of the blocks with two levels have strokes.  Measured: 0.19 and more, and at
# most 0.11 in four versions of a photo that resembles scans otherwise.
STROKES = 0.15


def worth(quality: float) -> float:
    """How many bytes more it is worth that a block with strokes is not latents."""
    return float(np.interp(quality, [*WORTH], [*WORTH.values()]))


class Letters(NamedTuple):
    """The blocks of a picture that have letters or lines on a ground.

    Those with ``two_levels`` have much contrast, and most of their pixels are near the darkest or
    the brightest one.  Some are edges of things.  Those with ``strokes`` have two edges or more.
    """

    two_levels: Blocks
    strokes: Blocks


def letters(image: Image.Image) -> Letters:
    """The blocks of a picture of mode RGB that have letters or lines."""
    found, of_strokes = [], []
    for pixels in graphics.parts_of(image):
        lowest, highest = pixels.min((1, 3)), pixels.max((1, 3))
        contrast = highest - lowest
        low, high = lowest + contrast // 4, highest - contrast // 4
        between = (pixels > low[:, None, :, None]) & (pixels < high[:, None, :, None])
        has_two = (contrast >= graphics.CONTRAST) & (between.sum((1, 3)) <= BETWEEN * BLOCK**2)
        middle = (lowest + contrast // 2)[has_two]
        bright = pixels.swapaxes(1, 2)[has_two] > middle[:, None, None]
        down, across = bright[:, 1:] != bright[:, :-1], bright[..., 1:] != bright[..., :-1]
        strokes = has_two.copy()
        strokes[has_two] = down.sum((1, 2)) + across.sum((1, 2)) >= CHANGES
        found.append(has_two)
        of_strokes.append(strokes)
    return Letters(np.concatenate(found), np.concatenate(of_strokes))


def strokes(image: Image.Image) -> Blocks:
    """The blocks of a picture of mode RGB that have strokes."""
    return letters(image).strokes


def has_letters(picture: graphics.Picture, found: Letters, rest: Blocks) -> bool:
    """Whether most of what has contrast in these blocks of a picture are letters or lines."""
    letters = (found.two_levels & rest).sum()
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
    if not are_letters or ink.mean() < FEWEST_LETTERS:
        return False
    found = letters(image)
    return bool(found.strokes.sum() >= STROKES * found.two_levels.sum())


def _parts(levels: Image.Image, usual: int, reach: int) -> NDArray[np.float64]:
    """The part of each block's pixels, 0 to 1, whose level is within ``reach`` of the usual one."""
    near = levels.point([255 if abs(level - usual) <= reach else 0 for level in range(256)])
    parts: NDArray[np.float64] = np.asarray(near.reduce(BLOCK)) / 255
    return parts
