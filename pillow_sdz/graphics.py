"""Finds graphics, which are cheaper to keep exactly: text, lines, icons, flat areas.

Graphics have many *repeats*: pixels that equal the pixel to the left or the pixel above.  Nearly
all pixels of graphics are repeats.  Photos have noise, so they have few.  A lossless coder codes
graphics in few bytes, and an autoencoder that learnt from photos shows them badly.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from .block_maps import Blocks
from .exact import BLOCK

Share = NDArray[np.uint8]  # a part of each block's pixels, in 1/255

# A block is *still* if more than this part of its pixels are repeats.  Measured on 80 photos of the
# training data and on graphics of benchmarks.graphics' tuning set: half of the photos have no still
# block.  In each of the graphics, at least 60 % of the blocks are still.
STILL = 230
# With this part of repeats, a block near still blocks is graphics too, such as letters.
REPEATING = 77
# A picture with a smaller part of still blocks is a photo.  Chosen.
FEWEST_STILL = 0.01
# A block has letters or lines if its darkest and brightest pixel are this many levels apart.
# Chosen.
CONTRAST = 48
# A block is inside of graphics if this part of the blocks around it is graphics.  Otherwise it may
# be at the edge of an overexposed sky.  Chosen.
INSIDE = 0.9
# A group of blocks is kept in three cases.  First: at least this number and this part of its blocks
# have letters or lines.  Chosen.
FEWEST_BUSY, PART_BUSY = 4, 0.02
# Second: it has at least this number of blocks, and they fill at least this part of their bounding
# box.  Chosen.
FEWEST_FLAT, PART_OF_BOX = 64, 0.9
# Third: at least this number and this part of its blocks have one colour.  Black and white do not
# count, because photos that are over- or underexposed have them.  Chosen: an icon of 40x40 pixels
# has 16 such blocks wherever it lies.
FEWEST_COLOURED, PART_COLOURED = 16, 0.25
# A picture with a smaller part of blocks with letters is a photo, unless all of it is graphics.  In
# a photo, only blocks of one colour and the blocks around them are kept.  Measured: in 3 of 80
# photos of the training data, other blocks would be kept, and at most 3 % of their blocks have
# letters.  In the tuning set's pages with photos, at least 29 % have letters.
LETTERS_OF_A_PAGE = 0.04
# The bytes of a pixel that is no repeat, to choose between exact pixels and latents.  Measured on
# the same graphics: 0.8 to 2.
BYTES_PER_CHANGE = 1.5
# Blocks between exact ones become exact if that adds less than this part of the bytes.  Then the
# picture may need no latents at all.  Chosen.
PART_OF_REST = 0.1
# How many blocks a photo may reach into blocks that are kept.  Measured on the tuning set's pages
# with photos: with 1, a page takes 1 % more bytes; with 3, it takes the same.
PHOTO_REACH = 2
# Some pixels may belong to a photo.  Such a pixel does if this part of the pixels around it may,
# too.  Any other pixel does if the second, larger part may.  Chosen: at a photo's corner, 9 of 25
# pixels may belong to it, and 15 at its edge.
PHOTO_CORNER, PHOTO_INSIDE = 0.35, 0.65
# A block has graphics if a smaller part of it than this belongs to the photo, in 1/255.  Chosen: at
# least a row or a column of 8 pixels is graphics.
PHOTO_ALONE = 230

# A scan is a page of letters on paper, with noise.  In a block of paper, the darkest and brightest
# pixel are at most this many levels apart, and in a block with letters at least this many.  Chosen:
# noise is below the first, and letters of 10 pixels are above the second.
PAPER_CONTRAST, INK_CONTRAST = 40, 72
# At least this part of a scan's blocks is paper.  Chosen: half of what a page full of letters has.
FEWEST_PAPER = 0.25
# The brightest pixel of a block is paper if it is this near to the usual one.  Chosen: a scanner's
# light falls off by a tenth.
PAPER_RANGE = 24
# Such a part of the blocks with letters has paper in it.  Chosen.  Photos seldom have so much:
# docs/measurements.md#graphics-exact-and-regions.
LETTERS_ON_PAPER = 0.95

_ROWS = 1024  # rows of pixels that are looked at together, to save memory with large pictures

Bools = NDArray[np.bool_]  # of pixels


def find(image: Image.Image) -> Blocks | None:
    """The blocks of a picture of mode RGB that are graphics; None if it is a photo."""
    repeats = _repeats(image)
    still = repeats >= STILL
    if still.mean() < FEWEST_STILL:
        return None
    graphics = still | (_spread(still, 2) & (repeats >= REPEATING))
    around = _mean_around(graphics, 1)
    graphics = (graphics & (around > 0.3)) | (around > 0.6)
    busy, coloured = _busy(image, graphics), graphics & _coloured(image)
    is_photo = not is_page(int(busy.sum()), graphics)
    for group in _groups(graphics):
        count = int(group.sum())
        has_letters = int((busy & group).sum()) >= max(FEWEST_BUSY, PART_BUSY * count)
        found = int((coloured & group).sum())
        if found >= FEWEST_COLOURED and found >= PART_COLOURED * count:
            if is_photo and not has_letters:
                graphics &= ~group | coloured
            continue
        is_flat = count >= FEWEST_FLAT and _part_of_box(group) >= PART_OF_BOX
        if not (has_letters or is_flat) or (is_photo and not group.all()):
            graphics &= ~group
    if not graphics.any():
        return None
    cost = BYTES_PER_CHANGE * BLOCK**2 / 255 * (255.0 - repeats)
    most = PART_OF_REST * cost[graphics].sum()
    for group in sorted(_groups(~graphics), key=lambda group: float(cost[group].sum())):
        most -= cost[group].sum()
        if most < 0:
            break
        graphics |= group
    return graphics


def letters(image: Image.Image, graphics: Blocks) -> int:
    """How many blocks of graphics have letters, lines or the like."""
    return int(_busy(image, graphics).sum())


def flats(image: Image.Image) -> Bools:
    """The pixels of a picture of mode RGB that equal the one to the left and the one above."""
    found = np.zeros((image.height, image.width), np.bool_)
    for top, colours in zip(range(0, image.height, _ROWS), _colours(image, above=1), strict=True):
        here = colours[1:, 1:]
        flat = (here == colours[:-1, 1:]) & (here == colours[1:, :-1])
        first = max(top, 1)
        found[first : first + len(flat), 1:] = flat
    return found


def changes(image: Image.Image, graphics: Blocks) -> float:
    """How many pixels of graphics are no repeats."""
    return float(((255.0 - _repeats(image)) / 255)[graphics].sum()) * BLOCK**2


def is_page(letters: int, graphics: Blocks) -> bool:
    """Whether a picture with this number of blocks with letters is a page, and not a photo."""
    return bool(graphics.all()) or letters >= LETTERS_OF_A_PAGE * graphics.size


def is_scan(image: Image.Image) -> bool:
    """Whether a picture of mode RGB is a page with letters on bright paper, and with noise."""
    lowest, highest = _extremes(image)
    contrast = highest - lowest
    paper, ink = contrast <= PAPER_CONTRAST, contrast >= INK_CONTRAST
    if paper.mean() < FEWEST_PAPER or ink.mean() < LETTERS_OF_A_PAGE:
        return False
    usual = int(np.median(highest[paper]))
    bright = np.abs(highest.astype(np.int16) - usual) <= PAPER_RANGE
    return bool(
        (paper & bright).mean() >= FEWEST_PAPER
        and (ink & bright).sum() >= LETTERS_ON_PAPER * ink.sum()
    )


def apart_from_photos(image: Image.Image, graphics: Blocks) -> tuple[Blocks, Image.Image] | None:
    """Graphics up to the pixel where photos beside them begin; None if there is no photo.

    The first result has the blocks with graphics.  The second is a picture of mode L.  It is 255
    for the pixels of these blocks that belong to a photo.
    """
    near = graphics & (_spread(~graphics, PHOTO_REACH) | (_repeats(image) < REPEATING))
    if graphics.all() or not near.any():
        return None
    inside = graphics & (~near | _coloured(image))
    # Blocks that have more of the photo than of the graphics.
    outside = _spread(graphics, 1) & ~graphics
    known = np.zeros(1 << 24, np.bool_)  # colours of the graphics
    for top, colours in zip(range(0, image.height, _ROWS), _colours(image), strict=True):
        known[colours[_pixels_of(inside, top, colours.shape)]] = True
    found = Image.new("L", image.size)
    margin = PHOTO_REACH * BLOCK
    strips = _colours(image, above=margin, below=margin)
    for top, colours in zip(range(0, image.height, _ROWS), strips, strict=True):
        start = max(top - margin, 0)
        inner, outer, kept = (
            _pixels_of(blocks, start, colours.shape) for blocks in (near, outside, graphics)
        )
        same, is_known = _same(colours), known[colours]
        photo = ~kept & ~(outer & is_known)
        may_be = photo | (inner & ~same & ~is_known)
        levels = Image.fromarray(np.where(may_be, np.uint8(255), np.uint8(0)))
        around = np.asarray(levels.filter(ImageFilter.BoxBlur(2))) / 255
        may_be &= around > PHOTO_CORNER
        may_be |= (inner | outer) & (around > PHOTO_INSIDE)
        beside = _connected(photo & may_be, may_be, 8 * BLOCK)
        levels = Image.fromarray(np.where(beside, np.uint8(255), np.uint8(0)))
        found.paste(levels.crop((0, top - start, image.width, levels.height)), (0, top))
    return (graphics | outside) & (np.asarray(found.reduce(BLOCK)) < PHOTO_ALONE), found


def _connected(pixels: Bools, others: Bools, steps: int) -> Bools:
    """The pixels, and others that are connected with them, at most this many steps away."""
    for _ in range(steps):
        wider = pixels.copy()
        wider[1:] |= pixels[:-1]
        wider[:-1] |= pixels[1:]
        wider[:, 1:] |= pixels[:, :-1]
        wider[:, :-1] |= pixels[:, 1:]
        wider &= others | pixels
        if (wider == pixels).all():
            break
        pixels = wider
    return pixels


def _pixels_of(blocks: Blocks, top: int, shape: tuple[int, ...]) -> Bools:
    """Blocks as pixels, of a strip (rows, columns) that begins at the row ``top``."""
    rows = (top + np.arange(shape[0])) // BLOCK
    columns = np.arange(shape[1]) // BLOCK
    found: Bools = blocks[rows][:, columns]
    return found


def coloured(image: Image.Image, graphics: Blocks) -> int:
    """How many blocks of graphics have a single colour that is neither black nor white."""
    return int((graphics & _coloured(image)).sum())


def _coloured(image: Image.Image) -> Blocks:
    """Whether a block has a single colour that is neither black nor white."""
    found = []
    for colours in _colours(image):
        height, width = colours.shape
        even = np.pad(colours, ((0, -height % BLOCK), (0, -width % BLOCK)), mode="edge")
        parts = even.reshape(even.shape[0] // BLOCK, BLOCK, even.shape[1] // BLOCK, BLOCK)
        lowest, highest = parts.min(1).min(-1), parts.max(1).max(-1)
        found.append((lowest == highest) & (lowest > 0) & (lowest < 0xFFFFFF))
    return np.concatenate(found)


def _busy(image: Image.Image, graphics: Blocks) -> Blocks:
    inside = _mean_around(graphics, 2) >= INSIDE
    busy: Blocks = graphics & inside & (_contrast(image) >= CONTRAST)
    return busy


def _strips(image: Image.Image, above: int = 0, below: int = 0) -> Iterator[NDArray[np.uint8]]:
    """The pixels of a picture, strip by strip, each with this many rows above and below it."""
    for top in range(0, image.height, _ROWS):
        box = 0, max(top - above, 0), image.width, min(top + _ROWS + below, image.height)
        yield np.asarray(image.crop(box))


def _repeats(image: Image.Image) -> Share:
    """For each block, the part of its pixels that equal the one to the left or the one above."""
    found = []
    first = True
    for colours in _colours(image, above=1):
        same = _same(colours)
        if first:
            same[0] = True  # it has no row above it
        else:
            same = same[1:]
        first = False
        # The first pixels have no pixel to the left, so they get the result of the second ones.
        same[:, 0] |= same[:, min(1, same.shape[1] - 1)]
        found.append(_reduced(same))
    return np.concatenate(found)


def _colours(image: Image.Image, *, above: int = 0, below: int = 0) -> Iterator[NDArray[np.uint32]]:
    """The colours of a picture of mode RGB, below 1 << 24, strip by strip; see `_strips`."""
    for pixels in _strips(image, above, below):
        whole = np.zeros((*pixels.shape[:2], 4), np.uint8)
        whole[..., :3] = pixels
        yield whole.view("<u4")[..., 0]


def _same(colours: NDArray[np.uint32]) -> Bools:
    """Whether a pixel equals the one to the left or the one above; the first row has none above."""
    same = np.zeros(colours.shape, np.bool_)
    same[1:] = colours[1:] == colours[:-1]
    same[:, 1:] |= colours[:, 1:] == colours[:, :-1]
    return same


def _reduced(pixels: NDArray[np.bool_]) -> Share:
    """For each block, the part of its pixels that are True."""
    levels = np.where(pixels, np.uint8(255), np.uint8(0))
    return np.asarray(Image.fromarray(levels).reduce(BLOCK))


def _contrast(image: Image.Image) -> NDArray[np.uint8]:
    """For each block, the levels between its darkest and its brightest pixel."""
    lowest, highest = _extremes(image)
    found: NDArray[np.uint8] = highest - lowest
    return found


def _extremes(image: Image.Image) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """For each block, the levels of its darkest and of its brightest pixel."""
    lowest, highest = [], []
    for pixels in _strips(image.convert("L")):
        height, width = pixels.shape
        even = np.pad(pixels, ((0, -height % BLOCK), (0, -width % BLOCK)), mode="edge")
        parts = even.reshape(even.shape[0] // BLOCK, BLOCK, even.shape[1] // BLOCK, BLOCK)
        lowest.append(parts.min(1).min(-1))
        highest.append(parts.max(1).max(-1))
    return np.concatenate(lowest), np.concatenate(highest)


def _spread(blocks: Blocks, reach: int) -> Blocks:
    """Whether a block or one within ``reach`` of it is True."""
    return _mean_around(blocks, reach) > 0


def _mean_around(blocks: Blocks, reach: int) -> NDArray[np.float64]:
    """The part of the blocks within ``reach`` that are True.  The border's blocks are repeated."""
    sums = np.pad(blocks.astype(np.float64), reach, mode="edge")
    side = 2 * reach + 1
    for axis in (0, 1):
        sums = np.lib.stride_tricks.sliding_window_view(sums, side, axis).sum(-1)
    return sums / side**2


def _part_of_box(group: Blocks) -> float:
    rows, columns = (np.flatnonzero(group.any(axis)) for axis in (1, 0))
    box = group[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return float(box.mean())


def _groups(blocks: Blocks) -> Iterator[Blocks]:
    """The groups of True blocks that touch each other at a side."""
    # Each run of a row joins the runs above that it touches.
    names = np.zeros(blocks.shape, np.int64)
    joined: list[int] = [0]

    def name_of(group: int) -> int:
        while joined[group] != group:
            joined[group] = joined[joined[group]]
            group = joined[group]
        return group

    edges = np.diff(blocks.astype(np.int8), axis=1, prepend=0, append=0)
    for row, edge in enumerate(edges):
        starts, stops = np.flatnonzero(edge > 0), np.flatnonzero(edge < 0)
        for start, stop in zip(starts, stops, strict=True):
            above = (
                {name_of(n) for n in set(names[row - 1, start:stop].tolist()) if n}
                if row
                else set()
            )
            if not above:
                joined.append(len(joined))
                above = {len(joined) - 1}
            name = min(above)
            for other in above:
                joined[other] = name
            names[row, start:stop] = name
    final = np.array([name_of(group) for group in range(len(joined))])[names]
    for name in np.unique(final[final > 0]):
        yield final == name
