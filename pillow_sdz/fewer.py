"""Gives exact pixels fewer colours, if that saves more bytes than the error is worth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageChops

from . import exact, graphics
from .arrays import Bools, Pixels
from .block_maps import Blocks
from .exact_parts import BLOCK

# At a quality q, a byte is worth WORTH * exp(-FALLING * q) squared levels.  Measured on eight
# photos of the training data, as squared errors and bytes from one quality to the next.  From
# quality 20 to 95, the measured values differ from this by at most a fifth.
WORTH, FALLING = 110_000, 0.0535
# Exact pixels may have so many colours.  Measured at quality 30, with AVIF (speed 6) in the same
# bytes, on 14 drawings: with 32, five more of them are behind, or further behind
# (docs/measurements.md#graphics-exact-and-regions).
COLOURS = (64, 128)
# All colours take at least so many times the bytes of the most of these.  Measured on pictures with
# gradients, and on drawings: 1.7 to 3.  Chosen: less.
TIMES_FOR_ALL = 1.25
# An error counts so much more in a pixel that equals the one to the left and the one above, because
# edges hide errors and flat parts do not.  Measured on a chart of the tuning set with 150 points of
# as many colours: docs/measurements.md#graphics-exact-and-regions.
WEIGHT_OF_FLATS = 200
# A colour stays as it is if this part of the exact pixels has it, such as a page's paper.  Chosen.
COMMON = 0.02
# Palettes are made from so many pixels.  Chosen: all pixels take several times as long.
SAMPLE = 1 << 14


def worth(quality: float) -> float:
    """The squared error, in squared levels, that a byte should remove at a quality."""
    return WORTH * math.exp(-FALLING * quality)


class Fewer(NamedTuple):
    """Exact pixels with fewer colours, or with all: their picture, and what they cost.

    The cost is that of the bytes, and of those that would remove the error.
    """

    colours: Image.Image
    coded: exact.Coded
    cost: float


def best(
    colours: Image.Image,
    blocks: Blocks,
    worth: float,
    limit: float,
    coded: exact.Coded | None = None,
) -> Fewer:
    """The exact pixels of some blocks with as few colours as cost least.

    A byte should remove a squared error of ``worth``.  ``coded`` has all colours, if it is known.
    Whatever costs more than the ``limit`` is not wanted, so it is not sought.
    """
    seen = np.asarray(shown(colours, blocks)) > 0
    opaque = colours.convert("RGB")
    levels = np.asarray(opaque)
    pixels = levels[seen]
    sample = _sample(pixels)
    every = sample.getcolors(SAMPLE) or []
    common = [
        np.array(colour, np.uint8) for number, colour in every if number >= COMMON * sample.width
    ]
    stay = _have(levels, common)
    if (seen & ~stay).any():
        sample = _sample(levels[seen & ~stay])
    weights = np.where(graphics.flats(opaque)[seen], WEIGHT_OF_FLATS, 1)
    found = Fewer(colours, coded, len(coded.data)) if coded else None
    most = 0  # bytes, with fewer colours
    for count in COLOURS:
        palette = sample.quantize(max(count - len(common), 2), Image.Quantize.MEDIANCUT, kmeans=2)
        fewer = np.array(opaque.quantize(palette=palette, dither=Image.Dither.NONE).convert("RGB"))
        fewer[stay] = levels[stay]
        difference = pixels.astype(np.int32) - fewer[seen]
        error = float(weights @ (difference * difference).sum(1))
        if not error:
            break
        picture = Image.fromarray(fewer)
        if colours.mode == "RGBA":
            picture.putalpha(colours.getchannel("A"))
        own = exact.coded(picture, blocks)
        most = len(own.data)
        tried = Fewer(picture, own, most + error / worth)
        if found is not None and tried.cost >= found.cost:
            return found  # even more colours would cost even more
        found = tried
        if most > limit:
            return found
    if coded is None and (found is None or TIMES_FOR_ALL * most < min(found.cost, limit)):
        coded = exact.coded(colours, blocks)
        if found is None or len(coded.data) <= found.cost:
            return Fewer(colours, coded, len(coded.data))
    assert found is not None
    return found


def limited(colours: Image.Image, blocks: Blocks, count: int) -> tuple[Image.Image, float]:
    """Exact pixels of some blocks with ``count`` colours, and their error.

    The error is a part of the contrast: of the squared distances from the mean of each block.  Of
    the pixels that get one colour, the most frequent colour is that one if many pixels have it.
    """
    seen = np.asarray(shown(colours, blocks)) > 0
    opaque = colours.convert("RGB")
    levels = np.asarray(opaque)
    sample = _sample(levels[seen])
    palette = sample.quantize(count, Image.Quantize.MEDIANCUT, kmeans=2)
    entries = opaque.quantize(palette=palette, dither=Image.Dither.NONE)
    fewer = np.array(entries.convert("RGB"))
    numbers = np.asarray(entries)
    every = sample.getcolors(SAMPLE) or []
    for number, colour in sorted(every):
        if number >= COMMON * sample.width:
            same = numbers[(levels == colour).all(2)][0]
            fewer[numbers == same] = colour
    mean = np.asarray(opaque.reduce(BLOCK)).repeat(BLOCK, 0).repeat(BLOCK, 1)
    mean = mean[: levels.shape[0], : levels.shape[1]]
    error, contrast = (
        np.square(levels[seen].astype(np.int32) - other[seen]).sum() for other in (fewer, mean)
    )
    picture = Image.fromarray(fewer)
    if colours.mode == "RGBA":
        picture.putalpha(colours.getchannel("A"))
    return picture, float(error) / max(float(contrast), 1)


def _sample(pixels: Pixels) -> Image.Image:
    """Some of the pixels (N, 3), as a picture."""
    return Image.fromarray(pixels[:: -(-len(pixels) // SAMPLE)][None])


def _have(levels: Pixels, colours: Sequence[Pixels]) -> Bools:
    """The pixels that have one of these colours."""
    found = np.zeros(levels.shape[:2], np.bool_)
    for colour in colours:
        found |= (levels == colour).all(2)
    return found


def shown(colours: Image.Image, blocks: Blocks) -> Image.Image:
    """What exact regions show, as a picture of mode L: 255 where they hide the latents."""
    found = exact.mask(blocks).crop((0, 0, *colours.size))
    if colours.mode == "RGBA":
        found = ImageChops.darker(found, colours.getchannel("A"))
    return found
