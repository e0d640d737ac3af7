"""Finds graphics, which are cheaper to keep exactly: text, lines, icons, flat areas.

Graphics have many *repeats*: pixels that equal the pixel to the left or the pixel above.  Nearly
all pixels of graphics are repeats.  Photos have noise, so they have few.  A lossless coder codes
graphics in few bytes, and an autoencoder that learnt from photos shows them badly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageFilter

from . import block_maps, connected, exact
from .arrays import Bools, Ints
from .block_maps import Blocks
from .exact_parts import BLOCK, PixelBox

Share = NDArray[np.uint8]  # a part of each block's pixels, in 1/255
Finder = Callable[[Image.Image], Blocks]

# A block is *still* if more than this part of its pixels are repeats.  Measured on 80 photos of the
# training data and on graphics of benchmarks.graphics' tuning set: half of the photos have no still
# block.  In each of the graphics, at least 60 % of the blocks are still.
STILL = 230
REPEATING = 77  # with so many repeats, a block near still blocks is graphics, such as letters
FEWEST_STILL = 0.01  # a picture with a smaller part, and with few, is a photo.  Chosen.
CONTRAST = 48  # levels from the darkest to the brightest pixel of a block with letters.  Chosen.
INSIDE = 0.9  # the part of graphics around a block that is no edge of an overexposed sky.  Chosen.
# A group of blocks is kept in three cases.  First: at least this number and this part of its blocks
# have letters or lines.  Chosen.
FEWEST_BUSY, PART_BUSY = 4, 0.02
# Second: it has at least this number of blocks, and they fill at least this part of their bounding
# box.  Chosen.
FEWEST_FLAT, PART_OF_BOX = 64, 0.9
# Third: at least this number and this part of its blocks have one colour.  Black and white do not
# count, because photos that are over- or underexposed have them.  Chosen: an icon of 40x40 pixels
# has 16 such blocks wherever it lies.  In a photo, such a group has no other blocks, because smooth
# parts of the photo may be around them.
FEWEST_COLOURED, PART_COLOURED = 16, 0.25
# In a photo, a group is also kept if it is text on white or black: it has so many strokes, and this
# part of as many as letters, and at most this part of its blocks have shades.  Measured on text by
# photos: at most 0.01 have shades, and 0.1 and more in 8 groups of photos that are else like it.
FEWEST_STROKES, PART_STROKES, PART_SHADES = 12, 0.3, 0.04
# A picture with a smaller part of blocks with letters is a photo, unless all of it is graphics.  In
# a photo, only blocks of one colour and the blocks around them are kept.  Measured: in 3 of 80
# photos of the training data, other blocks would be kept, and at most 3 % of their blocks have
# letters.  In the tuning set's pages with photos, at least 29 % have letters.
LETTERS_OF_A_PAGE = 0.04
BYTES_PER_CHANGE = 1.5  # of a pixel that is no repeat.  Measured on the same graphics: 0.8 to 2.
# Blocks between exact ones become exact if that adds less than this part of the bytes.  Chosen.
PART_OF_REST = 0.1
# How many blocks a photo may reach into blocks that are kept.  Measured on the tuning set's pages
# with photos: with 1, a page takes 1 % more bytes; with 3, it takes the same.
PHOTO_REACH = 2
# A pixel that may belong to a photo does if this part of the pixels around it may, too; any other
# if the second part may.  Chosen: 9 of 25 may at a photo's corner, and 15 at its edge.
PHOTO_CORNER, PHOTO_INSIDE = 0.35, 0.65
# A block has graphics if less of it is photo, in 1/255.  Chosen: at least a row of pixels is not.
PHOTO_ALONE = 230
# A page with few colours may be grey, and have all levels of a photo around its letters.  So only
# colours of this part of its pixels are known as its own.  Chosen: a shade has a tenth.
FEW_COLOURS, COMMON = 1024, 0.002

_ROWS = 1024  # rows of pixels that are looked at together, to save memory with large pictures

# Colours, as `_colours` returns them.
BLACK, WHITE = 0xFF000000, 0xFFFFFFFF
_WHOLE = 255  # the `Share` of all pixels


class Picture:
    """A picture of mode RGB, and what its blocks look like.  This is computed once."""

    def __init__(self, image: Image.Image) -> None:
        self.image = image

    @cached_property
    def repeats(self) -> Share:
        """For each block, the part of its pixels that equal the one to the left or above."""
        return np.concatenate([reduced(same) for same in _repeats(self.image)])

    @cached_property
    def coloured(self) -> Blocks:
        """Whether a block has a single colour that is neither black nor white."""
        found = []
        for _, colours in _strips(self.image):
            first = colours[::BLOCK, ::BLOCK]
            height, width = colours.shape
            all_first = first.repeat(BLOCK, 0).repeat(BLOCK, 1)[:height, :width]
            has_one = reduced(colours == all_first) == _WHOLE
            found.append(has_one & (first > BLACK) & (first < WHITE))
        return np.concatenate(found)

    @cached_property
    def contrast(self) -> NDArray[np.uint8]:
        """For each block, the levels between its darkest and its brightest pixel."""
        lowest, highest = extremes(self.image)
        found: NDArray[np.uint8] = highest - lowest
        return found


def find(picture: Picture, strokes: Finder | None = None) -> Blocks | None:
    """The blocks of a picture that are graphics; None if it is a photo, without text."""
    repeats = picture.repeats
    still = repeats >= STILL
    if still.sum() < min(FEWEST_STILL * still.size, FEWEST_COLOURED):
        return None
    graphics = still | (_spread(still, 2) & (repeats >= REPEATING))
    around = mean_around(graphics, 1)
    graphics = (graphics & (around > 0.3)) | (around > 0.6)
    graphics = _worth_keeping(picture, graphics, strokes)
    if not graphics.any():
        return None
    cost = BYTES_PER_CHANGE * BLOCK**2 / 255 * (255.0 - repeats)
    most = PART_OF_REST * cost[graphics].sum()
    groups = connected.groups(~graphics)
    costs = np.bincount(groups.ravel(), cost.ravel())
    order = 1 + np.argsort(costs[1:], kind="stable")
    is_cheap = np.zeros(len(costs), np.bool_)
    is_cheap[order[costs[order].cumsum() <= most]] = True
    found: Blocks = graphics | is_cheap[groups]
    return found


def _worth_keeping(picture: Picture, graphics: Blocks, strokes: Finder | None) -> Blocks:
    """The groups of graphics that are kept."""
    if graphics.all():
        return graphics
    busy, coloured = _busy(picture, graphics), graphics & picture.coloured
    is_photo = not is_page(int(busy.sum()), graphics)
    groups = connected.groups(graphics)
    count, of_letters, of_one_colour = (
        np.bincount(groups.ravel(), weights.ravel()) for weights in (graphics, busy, coloured)
    )
    has_letters = of_letters >= np.maximum(FEWEST_BUSY, PART_BUSY * count)
    is_coloured = (of_one_colour >= FEWEST_COLOURED) & (of_one_colour >= PART_COLOURED * count)
    is_flat = (count >= FEWEST_FLAT) & (count >= PART_OF_BOX * _box_sizes(groups, len(count)))
    kept = (has_letters | is_flat) & ((count == graphics.size) | (not is_photo))
    kept |= is_coloured & (has_letters | (not is_photo))
    if is_photo and strokes is not None and has_letters.any():
        shades = (picture.contrast > 0) & (picture.contrast < CONTRAST)
        of_strokes, of_shades = (
            np.bincount(groups.ravel(), (graphics & blocks).ravel())
            for blocks in (strokes(picture.image), shades)
        )
        is_text = of_strokes >= np.maximum(FEWEST_STROKES, PART_STROKES * of_letters)
        kept |= has_letters & is_text & (of_shades <= PART_SHADES * count)
    found: Blocks = graphics & kept[groups]
    if is_photo:
        areas = connected.groups(coloured)
        is_large = np.bincount(areas.ravel()) >= FEWEST_COLOURED
        found |= coloured & is_large[areas]
    return found


def letters(picture: Picture, graphics: Blocks) -> int:
    """How many blocks of graphics have letters, lines or the like."""
    return int(_busy(picture, graphics).sum())


def contrasts(picture: Picture, blocks: Blocks) -> int:
    """How many blocks, of graphics or not, have as much contrast as letters or lines."""
    return int((blocks & (picture.contrast >= CONTRAST)).sum())


def flats(image: Image.Image) -> Bools:
    """The pixels of a picture of mode RGB that equal the one to the left and the one above."""
    found = np.zeros((image.height, image.width), np.bool_)
    for top, colours in _strips(image, above=1):
        here = colours[1:, 1:]
        flat = (here == colours[:-1, 1:]) & (here == colours[1:, :-1])
        first = max(top, 1)
        found[first : first + len(flat), 1:] = flat
    return found


def repeats(image: Image.Image) -> Bools:
    """The pixels of a picture of mode RGB that equal the one to the left or the one above."""
    return np.concatenate([*_repeats(image)])


def changes(picture: Picture, graphics: Blocks) -> float:
    """How many pixels of graphics are no repeats."""
    return float(((255.0 - picture.repeats) / 255)[graphics].sum()) * BLOCK**2


def changes_without(photo: Image.Image, picture: Picture, graphics: Blocks) -> float:
    """As `changes`, if the pixels of a photo had one colour; see `apart_from_photos`."""
    box = block_maps.bounds(graphics)
    if box is None:
        return 0
    left, top, right, bottom = box
    pixels = left * BLOCK, top * BLOCK, right * BLOCK, bottom * BLOCK
    shown = picture.image.crop(pixels)
    shown.paste(0, (0, 0), photo.crop(pixels))
    return changes(Picture(shown), graphics[top:bottom, left:right])


def is_page(letters: int, graphics: Blocks) -> bool:
    """Whether a picture with this number of blocks with letters is a page, and not a photo."""
    return bool(graphics.all()) or letters >= LETTERS_OF_A_PAGE * graphics.size


def apart_from_photos(picture: Picture, graphics: Blocks) -> tuple[Blocks, Image.Image] | None:
    """Graphics up to the pixel where photos beside them begin; None if there is no photo.

    The first result has the blocks with graphics.  The second is a picture of mode L.  It is 255
    for the pixels of these blocks that belong to a photo.
    """
    near = graphics & (_spread(~graphics, PHOTO_REACH) | (picture.repeats < REPEATING))
    if graphics.all() or not near.any():
        return None
    inside = graphics & (~near | picture.coloured)
    # Blocks that have more of the photo than of the graphics.
    outside = _spread(graphics, 1) & ~graphics
    known = np.zeros(1 << 24, np.bool_)  # colours of the graphics
    for box, _ in _boxes_around(inside, picture.image.size):
        colours = _colours(picture.image.crop(box))
        known[colours[pixels_of(inside, box)] - BLACK] = True
    size = picture.image.width * picture.image.height
    tones = picture.image.getcolors(FEW_COLOURS) or ()
    rare = [colour for count, colour in tones if count < COMMON * size]
    known[np.array(rare, np.int64).reshape(-1, 3) @ [1, 1 << 8, 1 << 16]] = False
    found = ImageChops.invert(exact.mask(graphics)).crop((0, 0, *picture.image.size))
    for box, wider in _boxes_around(near | outside, picture.image.size, PHOTO_REACH * BLOCK):
        colours = _colours(picture.image.crop(wider))
        inner, outer, kept = (pixels_of(blocks, wider) for blocks in (near, outside, graphics))
        # Few of the colours are looked up, because the table is larger than caches are.
        is_known = np.zeros(colours.shape, np.bool_)
        looked_up = outer | (inner & ~_same(colours))
        is_known[looked_up] = known[colours[looked_up] - BLACK]
        photo = ~kept & ~(outer & is_known)
        may_be = photo | (inner & looked_up & ~is_known)
        around = np.asarray(_levels(may_be).filter(ImageFilter.BoxBlur(2)))
        may_be &= around > int(255 * PHOTO_CORNER)
        may_be |= (inner | outer) & (around > int(255 * PHOTO_INSIDE))
        beside = _levels(_connected(photo & may_be, may_be, 8 * BLOCK))
        left, top = wider[:2]
        core = box[0] - left, box[1] - top, box[2] - left, box[3] - top
        found.paste(beside.crop(core), box)
    part = np.asarray(found.reduce(BLOCK))
    apart = (graphics | outside) & (part < PHOTO_ALONE)
    return (apart, found) if part[apart].any() or (apart != graphics).any() else None


def _boxes_around(
    blocks: Blocks, size: tuple[int, int], margin: int = 0
) -> Iterator[tuple[PixelBox, PixelBox]]:
    """The smallest boxes of pixels around blocks of each strip, and the same with a margin."""
    rows = _ROWS // BLOCK
    for top in range(0, len(blocks), rows):
        box = block_maps.bounds(blocks[top : top + rows])
        if box is not None:
            left, up, right, down = box
            yield (
                (
                    left * BLOCK,
                    (top + up) * BLOCK,
                    min(right * BLOCK, size[0]),
                    min((top + down) * BLOCK, size[1]),
                ),
                (
                    max(left * BLOCK - margin, 0),
                    max((top + up) * BLOCK - margin, 0),
                    min(right * BLOCK + margin, size[0]),
                    min((top + down) * BLOCK + margin, size[1]),
                ),
            )


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


def pixels_of(blocks: Blocks, box: PixelBox) -> Bools:
    """Blocks as pixels of a box."""
    left, top, right, bottom = box
    rows, columns = np.arange(top, bottom) // BLOCK, np.arange(left, right) // BLOCK
    found: Bools = blocks[rows][:, columns]
    return found


def coloured(picture: Picture, graphics: Blocks) -> int:
    """How many blocks of graphics have a single colour that is neither black nor white."""
    return int((graphics & picture.coloured).sum())


def _busy(picture: Picture, graphics: Blocks) -> Blocks:
    inside = mean_around(graphics, 2) >= INSIDE
    busy: Blocks = graphics & inside & (picture.contrast >= CONTRAST)
    return busy


def _strips(image: Image.Image, above: int = 0) -> Iterator[tuple[int, NDArray[np.uint32]]]:
    """The colours of a picture, strip by strip, and the first row of each.

    Each has so many rows above it, if there are as many.
    """
    for top in range(0, image.height, _ROWS):
        box = 0, max(top - above, 0), image.width, min(top + _ROWS, image.height)
        yield top, _colours(image.crop(box))


def _repeats(image: Image.Image) -> Iterator[Bools]:
    """As `repeats`, strip by strip."""
    for top, colours in _strips(image, above=1):
        same = _same(colours)
        if top:
            same = same[1:]
        else:
            same[0] = True  # it has no row above it
        # The first pixels have no pixel to the left, so they get the result of the second ones.
        same[:, 0] |= same[:, min(1, same.shape[1] - 1)]
        yield same


def _colours(image: Image.Image) -> NDArray[np.uint32]:
    """The colours of a picture of mode RGB, from `BLACK` to `WHITE`."""
    return np.asarray(image.convert("RGBX")).view("<u4")[..., 0]


def _same(colours: NDArray[np.uint32]) -> Bools:
    """Whether a pixel equals the one to the left or the one above; the first row has none above."""
    same = np.zeros(colours.shape, np.bool_)
    same[1:] = colours[1:] == colours[:-1]
    same[:, 1:] |= colours[:, 1:] == colours[:, :-1]
    return same


def reduced(pixels: Bools) -> Share:
    """For each block, the part of its pixels that are True."""
    return np.asarray(_levels(pixels).reduce(BLOCK))


def _levels(pixels: Bools) -> Image.Image:
    """A picture of mode L: 255 where a pixel is True."""
    return Image.fromarray(pixels.view(np.uint8) * np.uint8(_WHOLE))


def extremes(image: Image.Image) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """For each block, the levels of its darkest and of its brightest pixel."""
    lowest, highest = [], []
    for pixels in parts_of(image):
        lowest.append(pixels.min(1).min(-1))
        highest.append(pixels.max(1).max(-1))
    return np.concatenate(lowest), np.concatenate(highest)


def parts_of(image: Image.Image) -> Iterator[NDArray[np.uint8]]:
    """The grey levels of a picture's blocks (rows, 8, columns, 8), part by part.

    Pixels at the edges are repeated.
    """
    for top in range(0, image.height, _ROWS):
        strip = image.crop((0, top, image.width, min(top + _ROWS, image.height)))
        pixels = np.asarray(strip.convert("L"))
        height, width = pixels.shape
        even = np.pad(pixels, ((0, -height % BLOCK), (0, -width % BLOCK)), mode="edge")
        yield even.reshape(even.shape[0] // BLOCK, BLOCK, even.shape[1] // BLOCK, BLOCK)


def _spread(blocks: Blocks, reach: int) -> Blocks:
    """Whether a block or one within ``reach`` of it is True."""
    return mean_around(blocks, reach) > 0


def mean_around(blocks: Blocks | Share, reach: int) -> NDArray[np.float64]:
    """The mean of the blocks within ``reach``.  The border's blocks are repeated."""
    sums = np.pad(blocks.astype(np.float64), reach, mode="edge")
    side = 2 * reach + 1
    for axis in (0, 1):
        sums = np.lib.stride_tricks.sliding_window_view(sums, side, axis).sum(-1)
    return sums / side**2


def _box_sizes(groups: Ints, count: int) -> Ints:
    """How many blocks the bounding box of each group has, and of the places without a group."""
    sizes = np.ones(count, np.int64)
    for places, side in zip(np.indices(groups.shape), groups.shape, strict=True):
        first, last = np.full(count, side), np.zeros(count, np.int64)
        np.minimum.at(first, groups, places)
        np.maximum.at(last, groups, places)
        sizes *= last + 1 - first
    return sizes
