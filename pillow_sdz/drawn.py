"""Tells drawn pictures, which have few colours, from photos.

Lines and letters that were resized have shades around them, and dithered pictures are patterns of
single pixels.  Both have few repeats, so `graphics` does not find them.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from . import connected
from .block_maps import Blocks
from .exact_parts import BLOCK
from .graphics import CONTRAST, Picture, pixels_of

# In graphics, a colour is on at least this many pixels on average.  Measured: 11 or more on the
# tuning set at three quarters and at half of its size, but for slides, and 1 to 8 on photos.
PIXELS_OF_COLOUR = 10
STRIP = 16  # rows that are looked at first.  Chosen.
# A toned picture has a ground if this part of its pixels has one tone.  Chosen: few photos do.
GROUND = 0.25
# Pictures with more colours than this have no tone of one colour.  Chosen: grey has 256 levels, and
# a stamp with soft edges some hundred.
MOST_TONES = 1024
# Two tones are next to each other if red, green and blue differ by at most so many levels.  Chosen:
# so are those of photos with 32 or more levels, and not those of dithered pictures of 16 levels.
NEXT_TONE = 8
# In a toned picture, at most this part of the pixels has a tone with no other next to it.  Chosen:
# stamps cover less.
PART_COLOURED = 0.1
# A block with contrast is drawn if it has this part of repeats, in 1/255.  Measured: 42 to 83 % of
# such blocks in scatter plots and maps that are not exact have it, and 2 % of those in 189 photos.
REPEATS = 51
# Of the blocks with contrast in a group of blocks that touch each other, at least this part is
# drawn, or none is.  Measured: 0.39 and more in grey maps and slides at half of their size,
# and 0.06 to 0.31 in ten grey photos in pages, because grey pixels often equal a neighbour.
PART_DRAWN = 0.35
# In a JPEG of a very low quality, neighbouring pixels in different blocks differ at least so many
# times as much as others, which differ by at least so many levels.  Measured on four photos in two
# sizes: 1.4 to 1.7 times at quality 20, 1.7 to 2.4 at 12, and 3.5 to 5.7 at 5.  Other photos have
# 0.7 to 0.9, one with a mosaic in it 1.4, and the tuning set of benchmarks.graphics at most 0.9.
BLOCKY, LEAST_STEP = 1.6, 1
FEWEST_PIXELS = 64  # along a side, to tell that.  Chosen: 7 places between blocks.
LOOKED_AT = 1024  # pixels along a side of the part that is looked at for it, to save time.  Chosen.


def is_drawn(image: Image.Image, blocks: Blocks | None) -> bool:
    """Whether a picture of mode RGB has each colour on many pixels.

    If ``blocks`` are known to be graphics, only the other pixels count.
    """
    top = image.height // 2
    strip = image.crop((0, top, image.width, min(top + STRIP, image.height)))
    if blocks is None and not _has_few_colours(strip, PIXELS_OF_COLOUR // 2):
        return False  # this takes no time, and nearly all photos end here
    if blocks is not None:
        rest = np.asarray(image)[pixels_of(~blocks, (0, 0, *image.size))]
        if not rest.size:
            return False
        image = Image.fromarray(rest[None])
    return _has_few_colours(image, PIXELS_OF_COLOUR)


def _has_few_colours(image: Image.Image, pixels: int) -> bool:
    """Whether a colour is on at least so many pixels on average."""
    return image.getcolors(max(1, image.width * image.height // pixels)) is not None


def is_blocky(image: Image.Image) -> bool:
    """Whether a picture of mode RGB was a JPEG of a very low quality.

    Its levels jump between blocks of 8x8 pixels, and many blocks have one colour, but it is a
    photo.
    """
    left, top = ((side - min(side, LOOKED_AT)) // 2 // BLOCK * BLOCK for side in image.size)
    right, bottom = min(left + LOOKED_AT, image.width), min(top + LOOKED_AT, image.height)
    levels = np.asarray(image.crop((left, top, right, bottom)).convert("L")).astype(np.int16)
    if min(levels.shape) < FEWEST_PIXELS:
        return False
    found = []
    for along in (levels, levels.T):
        steps = np.abs(np.diff(along, axis=1)).mean(0)
        between = np.arange(len(steps)) % BLOCK == BLOCK - 1
        # Lines and mosaics cover a part of a picture, and a JPEG's blocks are everywhere.
        found.append((np.quantile(steps[between], 0.25), np.median(steps[~between])))
    jumps, inside = np.mean(found, 0)
    return bool(inside >= LEAST_STEP and jumps >= BLOCKY * inside)


def in_blocks(picture: Picture, blocks: Blocks) -> int:
    """How many of some blocks have contrast, and too many repeats for a photo."""
    has_contrast = blocks & (picture.contrast >= CONTRAST)
    if not has_contrast.any():
        return 0
    groups = connected.groups(blocks)[has_contrast]
    drawn = np.bincount(groups, picture.repeats[has_contrast] >= REPEATS)
    return int(drawn[drawn >= PART_DRAWN * np.bincount(groups)].sum())


def is_toned(image: Image.Image) -> bool:
    """Whether a picture of mode RGB is grey, sepia or the like, but for a stamp or a dot.

    Such photos have few colours, as drawn pictures have.
    """
    found = image.getcolors(MOST_TONES)
    if found is None:
        return False
    counts = np.array([count for count, _ in found])
    tones = np.array([colour for _, colour in found])
    order = np.argsort(tones @ [299, 587, 114], kind="stable")  # by luma (Rec. ITU-R BT.601)
    far = np.array([NEXT_TONE + 1])
    steps = np.concatenate([far, np.abs(np.diff(tones[order], axis=0)).max(1), far])
    alone = np.minimum(steps[1:], steps[:-1]) > NEXT_TONE
    return bool(counts[order][alone].sum() <= PART_COLOURED * counts.sum())


def has_ground(image: Image.Image) -> bool:
    """Whether a toned picture of mode RGB has a ground of one tone."""
    return max(image.getchannel(0).histogram()) >= GROUND * image.width * image.height


def continued(image: Image.Image, hidden: Image.Image) -> Image.Image:
    """A picture with the colours of visible pixels where it is hidden: 255 in ``hidden``.

    Each is that of the pixel to the left, or else of the first one in its row, or of the row above.
    So letters of one colour, whose shapes are in alpha, take next to nothing.
    """
    pixels, seen = np.array(image), np.asarray(hidden) == 0
    if not seen.any():
        return Image.new("RGB", image.size)  # nobody's colours may travel
    columns = np.where(seen, np.arange(image.width), 0)
    first = seen.argmax(1)
    np.maximum.accumulate(columns, 1, out=columns)
    columns = np.maximum(columns, first[:, None])
    rows = np.where(seen.any(1), np.arange(image.height), seen.any(1).argmax())
    np.maximum.accumulate(rows, out=rows)
    return Image.fromarray(pixels[rows[:, None], columns[rows]])
