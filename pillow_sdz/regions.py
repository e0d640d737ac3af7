"""Decides which part of a frame is kept exactly, and makes the rest easy for the autoencoder."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageChops

from . import alpha, block_maps, drawn, exact, fewer, gradients, graphics, scans, vp8l
from .arrays import Bools
from .block_maps import Blocks
from .container import chunk_size
from .exact_parts import BLOCK, shape_of

# A block of 8x8 pixels with letters counts as having this squared error in latents, in squared
# levels.  On the tuning set of benchmarks.graphics, the real error is 70,000 (quality 75) to
# 120,000 (30).  Chosen: twice as much, because readers notice errors in letters first.
ERROR_OF_LETTERS = 250_000
# The same for a drawn block beside the exact ones.  Measured with `fewer.WEIGHT_OF_FLATS` on five
# pictures: docs/measurements.md#graphics-exact-and-regions.  Chosen between.
ERROR_OF_DRAWN = 500_000
# The same for a block without letters.  Chosen: ten levels in red, green and blue, so that flat
# colours are right from quality 20 on.
ERROR_OF_FLATS = 20_000
# Blocks of one colour in a photo may be exact if each costs at most so many bytes more, and all of
# them at most so many.  Measured on four squares of 40 to 64 pixels in each of 5 photos of the
# training data, at quality 20: 0.3 to 3, and 370.  The second is for photos with flat backgrounds.
BYTES_OF_COLOURED, MOST_FOR_COLOURED = 4, 400
# Below this quality, exact regions may have fewer colours.  Chosen: they differ from the original
# only if the user asks for a low quality.
EXACT_FROM = 60
# Latents take at least this many bytes for a pixel, except for a flat background.  Measured: photos
# at quality 5 take 0.12 bits.
FEWEST_BYTES = 0.015
# Latents take at least so many bytes for a block with letters.  Measured on 10 photos of the
# validation data with an icon, a label or a line of text each: what the latents take less without
# it.  The most is twice as much (docs/measurements.md#graphics-exact-and-regions).
BYTES_OF_LETTERS = {1: 0.9, 10: 4.8, 20: 6.0, 35: 8.0, 50: 12.0, 75: 34.0, 90: 62.0}
PART_OF_LETTERS = 0.5  # of a photo's block with contrast.  Measured on seven photos: 0.28 to 0.66.
FEWEST_PER_CHANGE = (
    0.4  # exact bytes in a photo for a pixel that is no repeat.  Measured: 0.5 to 1.9
)
# The same beside flat parts of a photo.  Measured on 8 photos of the validation data with such
# parts, and on 5 with drawn squares and discs: 2.2 and more.  Chosen: less.
FEWEST_PER_EDGE = 1.5
# The same for pictures with few colours.  Those of letters that were resized or of noise of two
# colours take 0.2 or more, and photos 0.4 to 1.7 (measured on the tuning set and on 70 photos).  A
# chessboard takes nothing, but it has much contrast.  Chosen: less.
FEWEST_PER_PATTERN = 0.1
# A picture of at most `ICON` pixels may take so many bytes for a pixel of its side, or `FEW`.
# Measured from 24 pixels on: all but 3 of 108 icons take up to 39, and all but 3 of 128 photos 40
# and more.  Noise of 16x16 pixels takes 850: docs/measurements.md#graphics-exact-and-regions.
ICON, BYTES_OF_ICON, FEW = 1 << 14, 40, 900
FEW_OF_ALL = 100  # an icon that takes so few bytes keeps all colours.  Chosen.
SMALL = 1 << 12  # pixels that need no estimate of their bytes.  Chosen: they take less than 1 ms.
FEW_COLOURS = 256  # no coloured photo has so few.  Chosen: as many as a GIF has.
FEWEST_GRADIENTS = 0.05  # the part of a picture that gradients cover, to be latents.  Chosen.
# The bytes of latents for a pixel of a gradient, and the least for anything.
BYTES_OF_GRADIENT, LEAST_OF_LATENTS = 0.006, 1500
# From quality `EXACT_FROM` on, gradients are latents if the file then has less than this part of
# the bytes.  Chosen: exact gradients are worth something; with 0.75, skies in pages are exact.
PART_OF_EXACT = 0.85
# An estimate of exact pixels' bytes is at most so many times too high.  Measured: 0.9 to 1.3 for
# photos and scans, 1.3 to 2.1 for drawings that were resized, and 2 to 6 for other graphics, which
# have few pixels that are not exact.
TIMES_OF_ESTIMATE = 2


class Frame(NamedTuple):
    """A frame with exact blocks: their colours, and the picture for the latents.

    ``colours`` is as `exact.Encoder` takes it, and ``coded`` is what `exact.coded` makes of it, if
    that is known.  ``picture`` is None if latents show nothing of the frame.  The exact blocks are
    worth ``most`` bytes: those that latents would take for them, and some more, because exact
    blocks look better.  The ``cost`` is in bytes: those of the exact blocks, those that would
    remove their error, and an estimate of the same for the latents.  The quality of the latents
    is ``higher`` than that of the file.  With ``is_photo``, most of it is a photo.
    """

    blocks: Blocks
    colours: Image.Image
    picture: Image.Image | None
    most: float
    coded: exact.Coded | None = None
    cost: float = 0
    error: float = 0
    higher: float = 0
    is_photo: bool = False
    only_gradients: bool = False

    @property
    def is_worth_it(self) -> bool:
        """Whether its exact blocks do not take too many bytes."""
        return self.coded is not None and chunk_size(len(self.coded.data)) <= self.most

    def seen(self) -> Bools:
        """The pixels (H, W) that the latents show."""
        seen: Bools = np.asarray(fewer.shown(self.colours, self.blocks)) == 0
        return seen


def found(
    image: Image.Image, hidden: Image.Image | None, quality: float, *, keeps_colours: bool = False
) -> Frame | None:
    """A frame with exact blocks where a picture of mode RGB has graphics; None if it has none.

    ``hidden``, of mode L, is 255 where nobody sees the pixels.  Below quality `EXACT_FROM`, exact
    blocks may have fewer colours, unless the frame ``keeps_colours``.
    """
    picture = graphics.Picture(alpha.painted(image, hidden))
    icon = _icon(picture.image)
    if icon is not None and icon.coded is not None and len(icon.coded.data) <= FEW_OF_ALL:
        return icon
    judge = _Judge(quality, may_change=quality < EXACT_FROM and not keeps_colours)
    frame = None if drawn.is_blocky(picture.image) else _found(picture, image, hidden, judge)
    is_whole = frame is not None and frame.picture is None and frame.is_worth_it
    return frame if is_whole or icon is None else judge.priced(icon)


def _icon(colours: Image.Image) -> Frame | None:
    """A frame of a small picture that is exact as a whole; None if it takes too many bytes."""
    pixels = colours.width * colours.height
    return whole(colours, max(FEW, BYTES_OF_ICON * math.sqrt(pixels))) if pixels <= ICON else None


def _found(
    picture: graphics.Picture, image: Image.Image, hidden: Image.Image | None, judge: _Judge
) -> Frame | None:
    """As `found`, without a look at the size of the picture."""
    likely = hidden is None and gradients.are_likely(picture)
    over = _over_gradients(picture, judge) if likely else None
    if over is None or over.cost > over.most:
        return _plain(picture, image, hidden, judge)
    part = judge.part_of_exact
    plain = _plain(picture, image, hidden, judge._replace(limit=over.cost / part))
    return plain if plain is not None and part * plain.cost <= min(over.cost, plain.most) else over


class _Judge(NamedTuple):
    """Says what exact blocks cost at a quality, and if they may have fewer colours.

    What costs more than the ``limit`` is not wanted.
    """

    quality: float
    may_change: bool
    limit: float = math.inf

    @property
    def worth(self) -> float:
        """The squared error, in squared levels, that a byte should remove."""
        return fewer.worth(self.quality)

    @property
    def bytes_of_letters(self) -> float:
        """How many bytes latents take at least for a block with letters."""
        return float(np.interp(self.quality, [*BYTES_OF_LETTERS], [*BYTES_OF_LETTERS.values()]))

    @property
    def part_of_exact(self) -> float:
        """Latents of gradients must cost less than this part of exact gradients."""
        return 1 if self.may_change else PART_OF_EXACT

    def of_latents(self, picture: graphics.Picture, rest: Blocks, gradients: float = 0) -> float:
        """What it costs that latents show the ``rest``: bytes, and the error of drawn blocks.

        ``gradients`` says how many pixels of gradients they show.
        """
        if not rest.any():
            return 0
        least = max(LEAST_OF_LATENTS, BYTES_OF_GRADIENT * gradients)
        found = drawn.in_blocks(picture, rest)
        of_drawn = found * (self.bytes_of_letters + ERROR_OF_DRAWN / self.worth)
        others = graphics.contrasts(picture, rest) - found
        return least + of_drawn + others * PART_OF_LETTERS * self.bytes_of_letters

    def priced(self, frame: Frame, beside: float = 0) -> Frame:
        """The frame with its cost, and perhaps with fewer colours.

        ``beside`` is what its latents cost in addition.
        """
        colours, blocks, coded = frame.colours, frame.blocks, frame.coded
        if self.may_change:
            limit = min(frame.most, self.limit)
            colours, coded, cost = fewer.best(colours, blocks, self.worth, limit, coded)
        else:
            coded = coded or exact.coded(colours, blocks)
            cost = len(coded.data)
        error = cost - len(coded.data)
        return frame._replace(colours=colours, coded=coded, cost=cost + beside, error=error)


def _over_gradients(picture: graphics.Picture, judge: _Judge) -> Frame | None:
    """A frame in which gradients are latents; None if there are few."""
    image = picture.image
    latent = gradients.find(image)
    if latent.mean() < FEWEST_GRADIENTS:
        return None
    # Graphics on gradients are graphics on flat areas, if gradients have one colour.
    painted = image.copy()
    painted.paste(0, (0, 0), Image.fromarray(latent))
    flat = graphics.Picture(painted)
    blocks = graphics.find(flat)
    if blocks is None:
        return None
    blocks = blocks & ~gradients.in_photos(picture, latent)
    letters = graphics.letters(picture, blocks)
    apart = graphics.apart_from_photos(flat, blocks)
    if apart is not None:
        blocks, photo = apart
        latent |= np.asarray(photo) > 0
    blocks = blocks & block_maps.of_pixels(~latent, BLOCK)
    if not blocks.any():
        return None
    colours = image.copy()
    colours.putalpha(Image.fromarray(~latent).convert("L"))
    flats = max(int(blocks.sum()) - letters, 0)
    most = (letters * ERROR_OF_LETTERS + flats * ERROR_OF_FLATS) / judge.worth
    most += letters * judge.bytes_of_letters
    rest = alpha.replaced(image, fewer.shown(colours, blocks))
    # Latents that show nothing but gradients have twice the quality, up to that of exact colours.
    # Measured: docs/measurements.md#graphics-exact-and-regions.
    of_photos = graphics.contrasts(picture, ~blocks) > graphics.LETTERS_OF_A_PAGE * (~blocks).sum()
    higher = 0 if of_photos else max(min(judge.quality, EXACT_FROM - judge.quality), 0)
    beside = judge.of_latents(picture, ~blocks, latent.sum())
    frame = Frame(blocks, colours, rest, most, higher=higher, only_gradients=not of_photos)
    return judge.priced(frame, beside)


def _plain(
    picture: graphics.Picture, image: Image.Image, hidden: Image.Image | None, judge: _Judge
) -> Frame | None:
    """As `found`, with exact gradients."""
    colours = picture.image
    blocks = graphics.find(picture, scans.strokes)
    if blocks is None:
        return _whole(picture, judge, None)
    if hidden is not None:
        seen = np.asarray(hidden.point([255] * 255 + [0]).reduce(BLOCK)) > 0
        blocks = blocks | ~seen if (blocks | ~seen).all() else blocks & seen
        if not blocks.any():
            return None
    letters = graphics.letters(picture, blocks)
    rest = int(blocks.sum()) - letters
    most = (letters * ERROR_OF_LETTERS + rest * ERROR_OF_FLATS) / judge.worth
    if blocks.all():
        most = max(most + FEWEST_BYTES * image.width * image.height, FEW)
        ways = [colours] if hidden is None else [colours, drawn.continued(image, hidden)]
        frames = [judge.priced(Frame(blocks, way, None, most)) for way in ways]
        return min(frames, key=lambda frame: frame.cost)
    of_letters = letters * judge.bytes_of_letters
    if graphics.is_page(letters, blocks):
        return _page(picture, blocks, image, hidden, judge, most + of_letters)
    if whole := _whole(picture, judge, blocks):
        return whole
    flats = blocks & picture.coloured
    if letters:
        frame = _in_photo(picture, blocks, image, hidden, judge, letters)
        if not flats.any() or (frame is not None and frame.is_worth_it):
            return frame
    # Edges of flat parts may have counted as letters.
    return _in_photo(picture, flats if letters else blocks, image, hidden, judge, 0)


def _page(
    picture: graphics.Picture,
    blocks: Blocks,
    image: Image.Image,
    hidden: Image.Image | None,
    judge: _Judge,
    most: float,
) -> Frame:
    """A frame of a picture with much text, and perhaps with photos."""
    colours = picture.image
    beside = judge.of_latents(picture, ~blocks)
    page = judge.priced(Frame(blocks, colours, None, most), beside)
    if (apart := graphics.apart_from_photos(picture, blocks)) is not None:
        wider, photo = apart
        without = colours.copy()
        without.putalpha(ImageChops.invert(photo))
        other = judge.priced(Frame(wider, without, None, most), beside)
        page = min(page, other, key=lambda frame: frame.cost)
    if page.cost < judge.limit and (whole := _whole(picture, judge, page.blocks, page)):
        return whole
    behind = fewer.shown(page.colours, page.blocks)
    if hidden is not None:
        behind.paste(255, (0, 0), hidden)
    return page._replace(picture=alpha.replaced(image, behind))


def _in_photo(
    picture: graphics.Picture,
    blocks: Blocks,
    image: Image.Image,
    hidden: Image.Image | None,
    judge: _Judge,
    letters: int,
) -> Frame | None:
    """A frame of a photo with letters, or with flat parts."""
    colours = picture.image
    strokes = int((scans.strokes(picture.image) & blocks).sum()) if letters else 0
    of_letters = letters * judge.bytes_of_letters + strokes * ERROR_OF_LETTERS / judge.worth
    coloured = graphics.coloured(picture, blocks)
    most = min(BYTES_OF_COLOURED * coloured, MOST_FOR_COLOURED)
    if letters and FEWEST_PER_CHANGE * graphics.changes(picture, blocks) > most + of_letters:
        return None  # the rest would take time for nothing
    # Blocks of one colour have no shapes to copy.
    coded = exact.coded(colours, blocks, with_copies=coloured < blocks.sum())
    narrow = len(coded.data)
    if not letters and chunk_size(narrow) > most:
        return None
    apart = graphics.apart_from_photos(picture, blocks)
    if apart is not None:
        wider, photo = apart
        without = colours.copy()
        without.putalpha(ImageChops.invert(photo))
        # A photo also has exact pixels around these blocks.
        limit = narrow + most if letters else most - chunk_size(0)
        changes = 0 if letters else graphics.changes_without(photo, picture, wider)
        if FEWEST_PER_EDGE * changes < limit:
            coded_wider = exact.coded(without, wider)
            if len(coded_wider.data) < limit:
                blocks, colours, coded = wider, without, coded_wider
    if not letters:
        # Other colours than these would take more bytes: 20 to 300 more at quality 90.
        cost = len(coded.data) + judge.of_latents(picture, ~blocks)
        rest = alpha.replaced(image, hidden)
        return Frame(blocks, colours, rest, most, coded, cost, is_photo=True)
    behind = fewer.shown(colours, blocks)
    if hidden is not None:
        behind.paste(255, (0, 0), hidden)
    behind = alpha.replaced(image, behind)
    frame = Frame(blocks, colours, behind, most + of_letters, coded, is_photo=True)
    return judge.priced(frame, judge.of_latents(picture, ~blocks))


def _whole(
    picture: graphics.Picture, judge: _Judge, blocks: Blocks | None, page: Frame | None = None
) -> Frame | None:
    """A frame that is exact as a whole, if the picture is drawn and latents cost more.

    Letters that were resized, and patterns of single pixels, have few repeats.  The exact
    ``blocks``, or those of a ``page``, are not enough.
    """
    image = picture.image
    has_few = drawn.is_drawn(image, None if page is None else blocks)
    if page is None and not has_few:
        return None  # nearly all photos end here
    is_toned = drawn.is_toned(image)
    every = np.ones(shape_of(image.size), np.bool_)
    rest = every if page is None else ~page.blocks
    contrasts = graphics.contrasts(picture, rest)
    others = contrasts - drawn.in_blocks(picture, rest)  # their error is not yet in `of_latents`
    if page is not None:
        if not has_few and 2 * others >= contrasts:
            return None
        # Latents may also show the page.
        least = min(page.cost, page.most + judge.of_latents(picture, rest))
        most = least / judge.part_of_exact
        if not is_toned:
            most += others * ERROR_OF_LETTERS / judge.worth
    else:
        if is_toned and not drawn.has_ground(image):
            return None  # grey and sepia photos have few colours, too
        most = contrasts * judge.bytes_of_letters
        # A photo of a thing on a ground of one colour may have few colours, but not so few.
        if not is_toned and image.getcolors(FEW_COLOURS):
            most += contrasts * ERROR_OF_LETTERS / judge.worth
        elif not is_toned and blocks is not None and drawn.is_drawn(image, blocks):
            most = judge.of_latents(picture, every)
    if most < FEWEST_PER_PATTERN * graphics.changes(picture, rest):
        return None  # the rest would take time for nothing
    whole = judge.priced(Frame(every, image, None, most))
    return whole if whole.cost <= most else None


def whole(colours: Image.Image, most: float, known: Blocks | None = None) -> Frame | None:
    """A frame that is exact as a whole, not only in ``known`` blocks; None if it is too large."""
    every = np.ones(shape_of(colours.size), np.bool_)
    others = int(every.sum() if known is None else (~known).sum())
    if others * BLOCK**2 > SMALL and _estimate(colours) > TIMES_OF_ESTIMATE * most:
        return None  # the rest would take time for nothing
    frame = Frame(every, colours, None, most, exact.coded(colours, every))
    return frame if frame.is_worth_it else None


def _estimate(colours: Image.Image) -> float:
    """About how many bytes exact pixels take, from every eighth row of blocks.

    It is the more above the truth, the more repeats there are.
    """
    tops = range(min(colours.height, 8 * BLOCK) // 2 // BLOCK * BLOCK, colours.height, 8 * BLOCK)
    width = min(colours.width, vp8l.MAX_SIDE)
    sample = Image.new("RGB", (width, BLOCK * len(tops)))
    for row, top in enumerate(tops):
        sample.paste(colours.crop((0, top, width, top + BLOCK)), (0, BLOCK * row))
    pixels = colours.width * colours.height
    return len(vp8l.encode(sample, fast=True)) * pixels / (sample.width * sample.height)
