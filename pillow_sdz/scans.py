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
# Usually at least this part of a scan's blocks has letters.  Pages with fewer, such as slides that
# were JPEGs, are kept like scans only if their pixels take few bytes.  Chosen: less than slides
# have.
USUAL_LETTERS, FEWEST_LETTERS = graphics.LETTERS_OF_A_PAGE, 0.005

# The quality of a scanned page is higher by this part of the quality that was asked for.  Chosen:
# readers look at letters closely.  With it, the default quality becomes the highest.
HIGHER = 1 / 3
# From these qualities on, a scanned page is kept like graphics, with levels of brightness this far
# apart.  Measured on the tuning set of benchmarks.graphics: below the last one, latents take
# fewer bytes at an equal SSIMULACRA2 (docs/measurements.md#graphics-exact-and-regions).  At the
# default, 3 levels: with 4, scans with a white border or of JPEGs have 89.2 to 89.4.
STEPS = {95: 2, 75: 3, 70: 4}
# With levels so far apart, pixels of a scan take at most so many times the bytes of latents of the
# higher quality.  Measured at quality 75: 0.9 to 1.4 for scans with noise of 1 to 4 levels, and 1.6
# for a photo of a floor.  Two levels take 1.3 times as many bytes as three.
TIMES_OF_LATENTS = {2: 1.95, 3: 1.5, 4: 1.5}
# Levels of colour are this many times as far apart.  Measured on the tuning set of
# benchmarks.graphics: with 3, a scan takes 9 to 14 % more bytes.
COLOUR_STEPS = 4
# In a block whose usual colour is further than this from these levels, they are moved.  Chosen:
# flat colours are at most two levels off.
NEAR_LEVEL = 1
_ROWS = 1024  # rows of pixels that are changed together, to save memory with large pictures


def is_scan(image: Image.Image, exact: Blocks | None = None) -> bool:
    """Whether a picture of mode RGB is a page of letters on paper, and with noise.

    If some of its blocks are ``exact``, most of its letters must lie in the others.
    """
    return letters(image, exact) >= USUAL_LETTERS


def letters(image: Image.Image, exact: Blocks | None = None) -> float:
    """The part of a page's blocks, 0 to 1, that has letters; 0 if it is no page.

    Pictures and ``exact`` blocks are as in `is_scan`.
    """
    lowest, highest = graphics.extremes(image)
    contrast = highest - lowest
    paper, ink = contrast <= PAPER_CONTRAST, contrast >= INK_CONTRAST
    if exact is not None:
        before = ink.sum()
        ink &= ~exact
        if 2 * ink.sum() < before:
            return 0
    if not paper.any() or not ink.any():
        return 0
    middle = lowest + contrast // 2
    usual = int(np.median(middle[paper]))
    bars = paper & (np.abs(middle.astype(np.int16) - usual) > PAPER_RANGE)  # of another colour
    if (paper & ~bars).sum() < FEWEST_PAPER * (~bars).sum():
        return 0
    levels = image.convert("L")
    of_paper, near = (_parts(levels, usual, reach)[ink] for reach in (PAPER_RANGE, SHADES))
    shades = (near - of_paper).sum()
    are_letters = (
        of_paper >= PAPER_IN_LETTERS
    ).mean() >= LETTERS_ON_PAPER and shades <= FEW_SHADES * (1 - of_paper).sum()
    return float(ink.mean()) if are_letters else 0


def _parts(levels: Image.Image, usual: int, reach: int) -> NDArray[np.float64]:
    """The part of each block's pixels, 0 to 1, whose level is within ``reach`` of the usual one."""
    near = levels.point([255 if abs(level - usual) <= reach else 0 for level in range(256)])
    parts: NDArray[np.float64] = np.asarray(near.reduce(BLOCK)) / 255
    return parts


def coarser(scan: Image.Image, step: int) -> Image.Image:
    """A scanned page with levels of brightness that are ``step`` apart, so that noise costs less.

    The paper's colour stays as it is.
    """
    size = -(-scan.width // BLOCK), -(-scan.height // BLOCK)
    some = np.asarray(scan.resize(size, Image.Resampling.NEAREST)).astype(np.int32)
    paper = np.median(some[..., ::2] - some[..., 1:2], (0, 1)).astype(np.int32)
    green = int(np.argmax(scan.getchannel(1).histogram()))
    ground = np.array([green + paper[0], green, green + paper[1]], np.int32)
    wide = COLOUR_STEPS * step
    found = Image.new("RGB", scan.size)
    for top in range(0, scan.height, _ROWS):
        levels = np.asarray(scan.crop((0, top, scan.width, min(top + _ROWS, scan.height))))
        above = levels.astype(np.int32) - ground
        colour = above[..., ::2] - above[..., 1:2]  # red and blue, less green
        own = _between_levels(colour, wide)
        coarse = (colour - own + wide // 2) // wide * wide + own
        # Green gets the brightness that red and blue lose (Rec. ITU-R BT.601: 0.299 and 0.114).
        brightness = 1000 * above[..., 1] + (colour - coarse) @ np.array([299, 114], np.int32)
        brightness = (brightness + 500 * step) // (1000 * step) * step
        red, blue = np.moveaxis(brightness[..., None] + coarse, -1, 0)
        shown = np.clip(np.stack([red, brightness, blue], -1) + ground, 0, 255).astype(np.uint8)
        found.paste(Image.fromarray(shown), (0, top))
    return found


def _between_levels(colour: NDArray[np.int32], wide: int) -> NDArray[np.int32]:
    """How far blocks of one colour, (H, W, 2), are from the levels that are ``wide`` apart.

    Noise is less than a level there, so a coloured box would come back with another colour.
    """
    height, width, _ = colour.shape
    even = np.pad(colour, ((0, -height % BLOCK), (0, -width % BLOCK), (0, 0)), mode="edge")
    rows, columns = even.shape[0] // BLOCK, even.shape[1] // BLOCK
    parts = (
        even.reshape(rows, BLOCK, columns, BLOCK, 2).swapaxes(1, 2).reshape(rows, columns, -1, 2)
    )
    usual = np.median(parts, 2)
    off = np.rint(usual - np.rint(usual / wide) * wide).astype(np.int32)
    off[(np.abs(off) <= NEAR_LEVEL) | (np.ptp(parts, 2) > wide)] = 0
    found: NDArray[np.int32] = off.repeat(BLOCK, 0).repeat(BLOCK, 1)[:height, :width]
    return found
