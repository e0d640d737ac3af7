"""Decides which part of a frame is kept exactly, and makes the rest easy for the autoencoder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops

from . import alpha, drawn, exact, graphics
from .block_maps import Blocks
from .container import chunk_size
from .exact_parts import BLOCK, shape_of

# At a quality q, a byte is worth WORTH * exp(-FALLING * q) squared levels.  Measured on eight
# photos of the training data, as squared errors and bytes from one quality to the next.  From
# quality 20 to 95, the measured values differ from this by at most a fifth.
WORTH, FALLING = 110_000, 0.0535
# A block of 8x8 pixels with letters counts as having this squared error in latents, in squared
# levels.  On the tuning set of benchmarks.graphics, the real error is 70,000 (quality 75) to
# 120,000 (30).  Chosen: twice as much, because readers notice errors in letters first.
ERROR_OF_LETTERS = 250_000
# The same for a block without letters.  Latents may shift its colour by some levels.  Chosen: ten
# levels in red, green and blue, so that flat colours are right from quality 20 on.
ERROR_OF_FLATS = 20_000
# Latents show blocks of one colour in a photo some levels off.  Such blocks may be exact if each
# costs at most this many bytes more, and all of them together at most this many.  Measured on four
# squares of 40 to 64 pixels in each of 5 photos of the training data, at quality 20: 0.3 to 3
# bytes, and 370.  The second limit is for photos that have a flat background.
BYTES_OF_COLOURED, MOST_FOR_COLOURED = 4, 400
# Below this quality, exact regions may have fewer colours.  Chosen: they differ from the original
# only if the user asks for a low quality.  With 32 colours, all graphics of the tuning set but a
# chart have a higher SSIMULACRA2 than AVIF (speed 6) in the same bytes.  With 16, gradients do not.
EXACT_FROM = 60
COLOURS = (128, 96, 64, 48, 32)
# With fewer colours, an error counts so much more in a pixel that equals the one to the left and
# the one above, because edges hide errors and flat parts do not.  Measured on a chart of the tuning
# set with 150 points of as many colours: docs/measurements.md#graphics-exact-and-regions.
WEIGHT_OF_FLATS = 200
# Latents take at least this many bytes for a pixel, except for a flat background.  Measured: photos
# at quality 5 take 0.12 bits.
FEWEST_BYTES = 0.015
# At each quality, latents take at least this many bytes for a block with letters.  Measured on 10
# photos of the validation data with an icon, a label or a line of text each: what the latents take
# less without it.  The most is twice as much (docs/measurements.md#graphics-exact-and-regions).
BYTES_OF_LETTERS = {1: 0.9, 10: 4.8, 20: 6.0, 35: 8.0, 50: 12.0, 75: 34.0, 90: 62.0}
# Exact blocks in a photo take at least this many bytes for a pixel that is no repeat.  Measured on
# the same photos: 0.5 to 1.9.
FEWEST_PER_CHANGE = 0.4
# The same for exact pixels beside flat parts of a photo.  Measured on 8 photos of the validation
# data with such parts, and on 5 with drawn squares and discs: 2.2 and more.  Chosen: less.
FEWEST_PER_EDGE = 1.5
# The same for pictures with few colours.  Those of letters that were resized or of noise of two
# colours take 0.2 or more, and photos 0.4 to 1.7.  A chessboard takes nothing, but it has much
# contrast.  Measured on the tuning set of benchmarks.graphics, and on 70 photos of the validation
# data.  Chosen: less.
FEWEST_PER_PATTERN = 0.1
# A colour stays as it is if this part of the exact pixels has it, such as a page's paper.  Chosen.
COMMON = 0.02
# Levels of colour are this many times as far apart.  Measured there: with 3, a scan takes 9 to 14 %
# more bytes.  With 5, flat colours would be 4 levels off where there is little noise.
COLOUR_STEPS = 4
# A picture that is exact as a whole may take so many bytes.  Chosen: latents of 16x16 pixels take
# 70 to 80, and show one colour some levels off.
FEW = 100
# A coloured picture with at most so many colours is no photo.  Chosen: as many as a GIF has.
FEW_COLOURS = 256
_ROWS = 1024  # rows of pixels that are looked at together, to save memory with large pictures


class Frame(NamedTuple):
    """A frame with exact blocks: their colours, and the picture for the latents.

    ``colours`` is as `exact.Encoder` takes it, and ``coded`` is what `exact.coded` makes of it, if
    that is known.  ``picture`` is None if latents show nothing of the frame.  The exact blocks are
    worth ``most`` bytes: those that latents would take for them, and some more, because exact
    blocks look better.  ``only_flats`` says that they are flat parts of a photo, which are exact
    because of their colours.
    """

    blocks: Blocks
    colours: Image.Image
    picture: Image.Image | None
    most: float
    only_flats: bool = False
    coded: exact.Coded | None = None

    def seen(self) -> NDArray[np.bool_]:
        """The pixels (H, W) that the latents show."""
        seen: NDArray[np.bool_] = np.asarray(_shown(self.colours, self.blocks)) == 0
        return seen


def worth(quality: float) -> float:
    """The squared error, in squared levels, that a byte should remove at a quality."""
    return WORTH * math.exp(-FALLING * quality)


def found(image: Image.Image, hidden: Image.Image | None, quality: float) -> Frame | None:
    """A frame with exact blocks where a picture of mode RGB has graphics; None if it has none.

    ``hidden``, of mode L, is 255 where nobody sees the pixels.
    """
    colours = image
    if hidden is not None:
        colours = image.copy()
        colours.paste(0, (0, 0), hidden)
    picture = graphics.Picture(colours)
    blocks = graphics.find(picture)
    if blocks is None:
        return _whole(picture, None, None, quality)
    if hidden is not None:
        seen = np.asarray(hidden.point([255] * 255 + [0]).reduce(BLOCK)) > 0
        blocks = blocks | ~seen if (blocks | ~seen).all() else blocks & seen
        if not blocks.any():
            return None
    letters = graphics.letters(picture, blocks)
    flats = int(blocks.sum()) - letters
    most = (letters * ERROR_OF_LETTERS + flats * ERROR_OF_FLATS) / worth(quality)
    if blocks.all():
        most = max(most + FEWEST_BYTES * image.width * image.height, FEW)
        if hidden is None:
            return Frame(blocks, colours, None, most)
        ways = [colours, drawn.continued(image, hidden)]
        frames = [Frame(blocks, c, None, most, coded=exact.coded(c, blocks)) for c in ways]
        return min(frames, key=lambda frame: len(frame.coded.data) if frame.coded else 0)
    of_letters = letters * _bytes_of_letters(quality)
    is_page = graphics.is_page(letters, blocks)
    if not is_page and (whole := _whole(picture, blocks, None, quality)):
        return whole
    if not is_page:
        most = min(BYTES_OF_COLOURED * graphics.coloured(picture, blocks), MOST_FOR_COLOURED)
        if letters and FEWEST_PER_CHANGE * graphics.changes(picture, blocks) > most + of_letters:
            return None  # the rest would take time for nothing
    only_flats = not is_page and not letters
    # Blocks of one colour have no shapes to copy.
    has_shapes = graphics.coloured(picture, blocks) < blocks.sum()
    coded = exact.coded(colours, blocks, with_copies=has_shapes)
    narrow = len(coded.data)
    if only_flats and chunk_size(narrow) > most:
        return None
    apart = graphics.apart_from_photos(picture, blocks)
    if apart is not None:
        wider, photo = apart
        without = colours.copy()
        without.putalpha(ImageChops.invert(photo))
        # A photo also has exact pixels around these blocks.
        limit = most if only_flats else narrow + (0 if is_page else most)
        changes = graphics.changes_without(photo, picture, wider) if only_flats else 0
        if FEWEST_PER_EDGE * changes < limit:
            coded_wider = exact.coded(without, wider)
            if len(coded_wider.data) < limit:
                blocks, colours, coded = wider, without, coded_wider
    if is_page and (whole := _whole(picture, blocks, coded, quality)):
        return whole
    if only_flats:
        # Other colours than these would take more bytes: 20 to 300 more at quality 90.
        return Frame(blocks, colours, filled(image, hidden), most, only_flats=True, coded=coded)
    behind = _shown(colours, blocks)
    if hidden is not None:
        behind.paste(255, (0, 0), hidden)
    return Frame(blocks, colours, filled(image, behind), most + of_letters, coded=coded)


def _whole(
    picture: graphics.Picture, blocks: Blocks | None, part: exact.Coded | None, quality: float
) -> Frame | None:
    """A frame that is exact as a whole, if the picture has few colours and latents take more bytes.

    Letters that were resized, and patterns of single pixels, have few repeats.  ``part`` has the
    exact ``blocks`` of a page, which are not enough.
    """
    image = picture.image
    is_page = part is not None
    if not drawn.is_drawn(image, blocks if is_page else None):
        return None
    is_grey = drawn.is_grey(image)
    if is_grey and not is_page and not drawn.has_ground(image):
        return None  # grey photos have few colours, too
    worth_of_letters = _bytes_of_letters(quality)
    # A photo of a thing on a ground of one colour may have few colours, but not so few.
    if not is_grey and (is_page or image.getcolors(FEW_COLOURS)):
        worth_of_letters += ERROR_OF_LETTERS / worth(quality)
    every = np.ones(shape_of(image.size), np.bool_)
    rest = every if blocks is None or not is_page else ~blocks
    most = 0.0 if part is None else float(len(part.data))
    most += graphics.contrasts(picture, rest) * worth_of_letters
    if most < FEWEST_PER_PATTERN * graphics.changes(picture, rest):
        return None  # the rest would take time for nothing
    coded = exact.coded(image, every)
    return Frame(every, image, None, most, coded=coded) if len(coded.data) <= most else None


def _bytes_of_letters(quality: float) -> float:
    """How many bytes latents take at least for a block with letters."""
    return float(np.interp(quality, [*BYTES_OF_LETTERS], [*BYTES_OF_LETTERS.values()]))


def simpler(frame: Frame, quality: float) -> Frame:
    """The frame with as few colours in its exact blocks as look well enough at a quality.

    From quality `EXACT_FROM` on it is the frame itself.
    """
    colours, blocks = frame.colours, frame.blocks
    if quality >= EXACT_FROM:
        return frame
    seen = _shown(colours, blocks)
    shown = np.asarray(seen) > 0
    opaque = colours.convert("RGB")
    pixels = np.asarray(opaque)[shown]
    every = Image.fromarray(pixels[None]).getcolors(len(pixels)) or []
    common = [np.array(c, np.uint8) for number, c in every if number >= COMMON * len(pixels)]
    weights = np.where(graphics.flats(opaque)[shown], WEIGHT_OF_FLATS, 1)
    coded = frame.coded or exact.coded(colours, blocks)
    best, least = frame._replace(coded=coded), float(len(coded.data))
    now = pixels
    for count in COLOURS:
        # Only the colours of the exact pixels count.
        palette = Image.fromarray(pixels[None]).quantize(count, Image.Quantize.MEDIANCUT, kmeans=2)
        fewer = _keeping(
            common,
            opaque,
            opaque.quantize(palette=palette, dither=Image.Dither.NONE).convert("RGB"),
        )
        before, now = now, np.asarray(fewer)[shown]
        if np.array_equal(before, now):
            continue
        difference = pixels.astype(np.int32) - now
        error = float(weights @ (difference * difference).sum(1))
        if colours.mode == "RGBA":
            fewer.putalpha(colours.getchannel("A"))
        coded = exact.coded(fewer, blocks)
        cost = len(coded.data) + error / worth(quality)
        if cost < least:
            best, least = frame._replace(colours=fewer, coded=coded), cost
    return best


def coarser(scan: Image.Image, step: int) -> Image.Image:
    """A scanned page with levels of brightness that are ``step`` apart, so that noise costs less.

    The paper's colour stays as it is.
    """
    small = np.asarray(scan.reduce(BLOCK)).astype(np.int32)
    paper = np.median(small[..., ::2] - small[..., 1:2], (0, 1)).astype(np.int32)
    wide = COLOUR_STEPS * step
    found = Image.new("RGB", scan.size)
    for top in range(0, scan.height, _ROWS):
        levels = np.asarray(scan.crop((0, top, scan.width, min(top + _ROWS, scan.height))))
        green = levels[..., 1].astype(np.int32)
        colour = levels[..., ::2] - green[..., None] - paper  # red and blue, less green
        coarse = (colour + wide // 2) // wide * wide
        # Green gets the brightness that red and blue lose (Rec. ITU-R BT.601: 0.299 and 0.114).
        brightness = 1000 * green + (colour - coarse) @ np.array([299, 114], np.int32)
        green = (brightness + 500 * step) // (1000 * step) * step
        red, blue = np.moveaxis(green[..., None] + coarse + paper, -1, 0)
        shown = np.clip(np.stack([red, green, blue], -1), 0, 255).astype(np.uint8)
        found.paste(Image.fromarray(shown), (0, top))
    return found


def _keeping(
    common: Sequence[NDArray[np.uint8]], image: Image.Image, fewer: Image.Image
) -> Image.Image:
    """A picture with fewer colours, and with some colours where the original has them."""
    original, found = np.asarray(image), np.array(fewer)
    for colour in common:
        found[(original == colour).all(2)] = colour
    return Image.fromarray(found)


def _shown(colours: Image.Image, blocks: Blocks) -> Image.Image:
    """What exact regions show, as a picture of mode L: 255 where they hide the latents."""
    shown = exact.mask(blocks).crop((0, 0, *colours.size))
    if colours.mode == "RGBA":
        shown = ImageChops.darker(shown, colours.getchannel("A"))
    return shown


def filled(image: Image.Image, hidden: Image.Image | None) -> Image.Image:
    """The picture with new colours where it is hidden, which take few bits."""
    if hidden is None:
        return image
    with_alpha = image.copy()
    with_alpha.putalpha(hidden.point([255] * 255 + [0]))
    return alpha.filled(with_alpha)
