"""Chooses what is coded where nobody sees the latents of a picture, because pixels lie over them.

The likeliest symbols of latents take the fewest bits there.  How few depends on the hyperlatents
and on the quality, which the encoder also chooses.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import block_maps
from ..arrays import Floats, Ints
from ..spaces import LOWEST_QUALITY
from . import quality_map
from .hyperprior import HyperPrior, Part
from .places import CELL, dilated
from .range_coder import Prediction, Tables

# The hyperlatents are 0 in all channels but one.  These values of it are tried, with both signs.
# Measured (docs/measurements.md#unseen): the best ones are 2 to 8.
VALUES = (1, 2, 3, 4, 6, 8, 12)
FIRST_VALUE = 4  # is tried in all channels
# What is tried fills a square of so many cells a side.  The cells at its edge do not count.
# Chosen: the networks see one cell around a cell.
SIDE = 4
INSIDE = (SIDE - 2) ** 2


# Latents that are so many cells away have no effect on a pixel that anybody could see.  Measured:
# docs/measurements.md#unseen.
NEAR = 1


class Cheapest(NamedTuple):
    """The hyperlatents (Z,) of a cell that nobody sees, and the bits that the cell takes."""

    hyper: Ints
    bits: float


class _Likeliest:
    """A `range_coder.Coder` that chooses the likeliest symbols, and counts their bits.

    ``hyper`` (n, Z) has the hyperlatents of n squares of cells, one below the other.
    """

    def __init__(self, hyper: Ints) -> None:
        self._hyper = hyper
        self.bits = np.zeros(len(hyper))

    def code(self, volume: str, index: tuple[Any, ...], mean: Ints, scale: Ints) -> Ints:
        if volume not in ("hyper", "latents"):
            return np.zeros_like(mean)
        prediction = Prediction.of(mean, scale)
        rows, columns = index[:2]
        edge = 1 if volume == "hyper" else CELL
        squares = rows // (edge * SIDE)
        symbols = prediction.centre
        if volume == "hyper":
            symbols = self._hyper[squares].ravel()
        bits = Tables.shipped().bits(symbols, prediction).reshape(len(rows), -1).sum(1)
        for places in (rows, columns):
            bits[(places // edge % SIDE == 0) | (places // edge % SIDE == SIDE - 1)] = 0
        np.add.at(self.bits, squares, bits)
        return symbols


def cells(seen: NDArray[np.bool_], side: int) -> NDArray[np.bool_] | None:
    """The cells that have no effect on pixels (H, W) that are ``seen``; None if all have.

    A cell has ``side`` pixels along a side.
    """
    near = block_maps.of_pixels(seen, side)
    for _ in range(NEAR):
        near = dilated(near)
    return None if near.all() else ~near


def _bits(prior: HyperPrior, hyper: Ints, quality: int) -> Floats:
    """The bits of a cell with each of these hyperlatents (n, Z)."""
    coder = _Likeliest(hyper)
    # The other groups take next to no bits there.
    part = Part(prior.first_group)
    prior.code(coder, CELL * SIDE * len(hyper), CELL * SIDE, quality, part=part)
    return coder.bits / INSIDE


@functools.lru_cache(maxsize=2)
def _direction(prior: HyperPrior) -> Ints:
    """Hyperlatents (Z,) with one 1 or -1, multiples of which make latents cheap."""
    each = np.eye(prior.hyper_channels, dtype=np.int64)
    tried = np.concatenate([each, -each])
    best: Ints = tried[_bits(prior, FIRST_VALUE * tried, LOWEST_QUALITY).argmin()]
    return best


@functools.lru_cache(maxsize=16)
def cheapest(prior: HyperPrior, quality: int) -> Cheapest:
    """What takes the fewest bits where nobody sees it, at a quality in hundredths."""
    tried = _direction(prior) * np.array([0, *VALUES])[:, None]
    bits = _bits(prior, tried, quality)
    return Cheapest(tried[bits.argmin()], float(bits.min()))


def lowered(
    prior: HyperPrior, quality: int, offsets: NDArray[np.int32] | None, hidden: NDArray[np.bool_]
) -> tuple[NDArray[np.int32] | None, Ints]:
    """The map of `quality_map`, and the hyperlatents (Z,) of the ``hidden`` cells.

    The map has the lowest quality there if that saves bits.
    """
    here, lowest = cheapest(prior, quality), cheapest(prior, LOWEST_QUALITY)
    least = -min(-(-(quality - LOWEST_QUALITY) // quality_map.UNIT), quality_map.LIMIT)
    found = np.where(hidden, least, 0 if offsets is None else offsets).astype(np.int32)
    saved = hidden.sum() * (here.bits - lowest.bits)
    more = quality_map.total_bits(found) - quality_map.total_bits(offsets)
    return (found, lowest.hyper) if saved > more else (offsets, here.hyper)
