"""Finds what is cheaper to keep than to reconstruct: text, lines, icons, flat areas.

Photos are told from graphics by *repeats*: pixels that equal the one to the left or the one above.
In graphics nearly all pixels do, in photos, which have noise, few.  A lossless coder codes such
blocks in few bytes, and an autoencoder that learnt from photos shows them badly.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from .exact import BLOCK, Blocks

Share = NDArray[np.uint8]  # of a block's pixels, in 1/255

# Measured on 80 photos of the training data and on graphics of benchmarks.graphics' tuning set, in
# the part of a block's pixels that are repeats.  Of photos, half have no block above STILL; of the
# graphics at least 60 % of their blocks are.
STILL = 230
# A block near still ones is graphics from here on, letters for instance.
REPEATING = 77
# A picture with a smaller part of still blocks is a photo.  Chosen.
FEWEST_STILL = 0.01
# Levels between a block's darkest and brightest pixel from which it has something to see: lines
# and letters.  Chosen.
CONTRAST = 48
# Of the blocks around it, the part that must be graphics for a block to be inside of graphics, and
# not at the edge of an overexposed sky.  Chosen.
INSIDE = 0.9
# A group of blocks is kept if it has so many blocks with letters or lines, and such a part of them;
# or if it has so many blocks, and they fill such a part of their bounding box.  Chosen.
FEWEST_BUSY, PART_BUSY = 4, 0.02
FEWEST_FLAT, PART_OF_BOX = 64, 0.9
# Or so many blocks of one colour, and such a part of them; not black or white, as photos are where
# they are over- or underexposed.  Chosen: an icon of 40x40 pixels has them wherever it lies.
FEWEST_COLOURED, PART_COLOURED = 16, 0.25
# With a smaller part of letters, a picture that is not all graphics is a photo.  Only blocks of one
# colour, and what is around them, are kept of it.  Measured: of 80 photos of the training data,
# three have something else to keep, and letters in at most 3 % of their blocks; the tuning set's
# pages with photos in 29 % and more.
LETTERS_OF_A_PAGE = 0.04
# What a pixel that is no repeat costs, in bytes, to choose between exact and latents.  Measured on
# the same graphics: 0.8 to 2.
BYTES_PER_CHANGE = 1.5
# Blocks between exact ones become exact if that adds less than this part of the bytes.  Then the
# picture may need no latents at all.  Chosen.
PART_OF_REST = 0.1
# How far a photo reaches into blocks that are kept, in blocks.  Measured on the tuning set's pages
# with photos: with 1, a page takes 1 % more bytes; with 3, the same.
PHOTO_REACH = 2
# A pixel that may be of a photo is, if such a part of the pixels around it may be; any other pixel,
# if such a part may be.  Chosen: 9 of 25 may be at a photo's corner, and 15 at its edge.
PHOTO_CORNER, PHOTO_INSIDE = 0.35, 0.65
# A block has graphics if less than this of it is of the photo, in 1/255.  Chosen: a row or a column
# of 8 pixels.
PHOTO_ALONE = 230

_ROWS = 1024  # of pixels that are looked at together: so large pictures take little memory

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
    """How many of the blocks that are graphics have letters, lines or the like."""
    return int(_busy(image, graphics).sum())


def is_page(letters: int, graphics: Blocks) -> bool:
    """Whether a picture with so many blocks of letters is no photo."""
    return bool(graphics.all()) or letters >= LETTERS_OF_A_PAGE * graphics.size


def apart_from_photos(image: Image.Image, graphics: Blocks) -> tuple[Blocks, Image.Image] | None:
    """Graphics up to the pixel where photos beside them begin; None if there is no photo.

    The first result is the blocks with graphics, the second has mode L, and 255 for the pixels in
    them that belong to a photo.
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
    """The pixels, and others that lie together with them, so many steps away at most."""
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
    """How many of the blocks that are graphics have one colour, and not black or white."""
    return int((graphics & _coloured(image)).sum())


def _coloured(image: Image.Image) -> Blocks:
    """Whether a block has one colour, and not black or white."""
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
    """The pixels of a picture, strip by strip, each with so many rows above and below it."""
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
        # The first pixels have none beside them: they are as the next ones.
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
    found = []
    for pixels in _strips(image.convert("L")):
        height, width = pixels.shape
        even = np.pad(pixels, ((0, -height % BLOCK), (0, -width % BLOCK)), mode="edge")
        parts = even.reshape(even.shape[0] // BLOCK, BLOCK, even.shape[1] // BLOCK, BLOCK)
        found.append(parts.max(1).max(-1) - parts.min(1).min(-1))
    return np.concatenate(found)


def _spread(blocks: Blocks, reach: int) -> Blocks:
    """Whether a block or one within ``reach`` of it is True."""
    return _mean_around(blocks, reach) > 0


def _mean_around(blocks: Blocks, reach: int) -> NDArray[np.float64]:
    """The part of the blocks within ``reach`` that are True; those outside are as the nearest."""
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
