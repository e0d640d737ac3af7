"""Finds gradients, blurred backgrounds and the like, which latents show well in few bytes.

Neighbours in a gradient differ by a level or two, or not at all.  A flat area has one colour, so
its neighbours do not differ.  Letters and lines differ much from what they stand on.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from . import connected, graphics, scans
from .arrays import Bools
from .block_maps import Blocks

# Neighbours in a gradient differ by at most this many levels in each channel.  Chosen: dithered
# gradients differ by 2 and some more, and the shades around letters by more.
STEP = 3
# A gradient has at least this many pixels.  Chosen: it is larger than a letter's shades.
FEWEST_PIXELS = 256
# At least this part of a gradient's pixels differ from the one to the left or the one above.
# Chosen: in a ramp over 500 rows from one grey to another that is 20 levels brighter, they do.
PART_OF_STEPS = 0.02
# At most this part of a gradient's pixels have one colour.  Chosen: a flat area with some shades
# at its edge, as resizing leaves them, is no gradient.
PART_OF_ONE_COLOUR = 0.5
# Graphics on gradients have at least this part of repeats in blocks with contrast.  Measured on 264
# photos of ImageNet's sample and of BSDS500: the most is 0.32, the next 0.22.  Drawn pictures have
# 0.39 and more.
REPEATS_IN_CONTRAST = 0.35
# Letters on blurred photos have fewer repeats, because few of their pixels are inside of strokes.
# They have at least this part.  Of the blocks with contrast, at least the second part has two
# levels, and the third part has strokes.  Measured on slides with text on blurred photos: 0.25 and
# more, 0.89 and more, and 0.5 and more.  Of 863 photos and wallpapers, one has all three: two
# lines of text.
REPEATS_IN_LETTERS, TWO_LEVELS, STROKES = 0.2, 0.85, 0.15
# Beside gradients in a photo are other parts of it.  A block belongs to a photo if, of the pixels
# around it that are no gradient, less than this part are repeats, and if less than this part of the
# blocks around it have strokes.  Measured on seven pages with photos, in colour and grey: 96 % and
# more of such blocks in photos are like that, and at most 4 % of those with text on gradients.
REPEATS_OF_PHOTOS, STROKES_OF_PHOTOS, AROUND = 0.18, 0.1, 2

_ROWS = 1024  # rows of pixels that are looked at together, to save memory with large pictures


def are_likely(picture: graphics.Picture) -> bool:
    """Whether a picture that has gradients has graphics on them: it is no photo of a sky.

    This takes little time.
    """
    has_contrast = picture.contrast >= graphics.CONTRAST
    if has_contrast.mean() < graphics.LETTERS_OF_A_PAGE:
        return False
    repeats = picture.repeats[has_contrast].mean() / 255
    if repeats >= REPEATS_IN_CONTRAST:
        return True
    if repeats < REPEATS_IN_LETTERS:
        return False  # nearly all photos end here
    letters = scans.letters(picture.image)
    two_levels, strokes = (found[has_contrast].mean() for found in letters)
    return bool(two_levels >= TWO_LEVELS and strokes >= STROKES)


def find(image: Image.Image) -> Bools:
    """The pixels (H, W) of a picture of mode RGB that belong to gradients."""
    strips = (
        image.crop((0, top, image.width, min(top + _ROWS, image.height)))
        for top in range(0, image.height, _ROWS)
    )
    return np.concatenate([_of_strip(np.asarray(strip)) for strip in strips])


def in_photos(picture: graphics.Picture, latent: Bools) -> Blocks:
    """The blocks that show parts of a photo beside gradients, whose pixels are ``latent``."""
    others, repeats = (
        graphics.mean_around(graphics.reduced(pixels), AROUND)
        for pixels in (~latent, ~latent & graphics.repeats(picture.image))
    )
    strokes = graphics.mean_around(scans.letters(picture.image).strokes, AROUND)
    found: Blocks = (repeats < REPEATS_OF_PHOTOS * others) & (strokes < STROKES_OF_PHOTOS)
    return found


def _of_strip(levels: NDArray[np.uint8]) -> Bools:
    across = _difference(levels[:, 1:], levels[:, :-1])
    down = _difference(levels[1:], levels[:-1])
    begins = np.ones(levels.shape[:2], np.bool_)
    begins[:, 1:] = across > STEP
    runs = connected.runs_of(begins)
    touch = down <= STEP
    # Only the first of neighbouring places at which the same two runs touch.
    touch[:, 1:] &= begins[1:, 1:] | begins[:-1, 1:] | ~touch[:, :-1]
    count = int(begins.sum())
    names = connected.joined(runs[:-1][touch], runs[1:][touch], count)
    steps = np.zeros(begins.shape, np.bool_)
    steps[:, 1:] = (across > 0) & (across <= STEP)
    steps[1:] |= (down > 0) & (down <= STEP)
    first = np.flatnonzero(begins.ravel())
    sizes = np.bincount(names, np.diff(first, append=begins.size), count)
    of_steps = np.bincount(names, np.add.reduceat(steps.ravel(), first, dtype=np.int64), count)
    are_gradients = (sizes >= FEWEST_PIXELS) & (of_steps >= PART_OF_STEPS * sizes)
    found: Bools = are_gradients[names][runs]
    if found.any():
        areas = names[runs][found]
        most = _most_frequent(areas, levels[found], count)
        found[found] = (most <= PART_OF_ONE_COLOUR * sizes)[areas]
    return found


def _most_frequent(
    areas: NDArray[np.int32], levels: NDArray[np.uint8], count: int
) -> NDArray[np.int64]:
    """How many pixels of each area have its most frequent colour."""
    colours = levels.astype(np.uint64) @ np.array([1 << 16, 1 << 8, 1], np.uint64)
    keys, numbers = np.unique(areas.astype(np.uint64) << 24 | colours, return_counts=True)
    found = np.zeros(count, np.int64)
    np.maximum.at(found, (keys >> 24).astype(np.int64), numbers)
    return found


def _difference(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The largest difference of the three channels."""
    found: NDArray[np.uint8] = (np.maximum(one, other) - np.minimum(one, other)).max(2)
    return found
