"""Which quality fits in a number of bytes: a search that encodes at one after another."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from .. import container
from ..spaces import HIGHEST_QUALITY, LOWEST_QUALITY

# If a try takes seconds, only a few qualities are tried, until this part of the size is used.
# Chosen.
SLOW_TRIES, NEAR_ENOUGH = 3, 0.98
# The first try assumes that effort 9 takes this part of the bytes of effort 4, at the same quality.
# Measured on seven photos held out from training.
REFINED = 0.93

# A search ends when less than one in this many bytes is left over.  It aims at half of that.
# Chosen: no eye can see what a thousandth of the bytes changes.
ONE_IN = 1000
# The first step assumes that the logarithm of the bytes grows by this much from the lowest to the
# highest quality.  For photos it grows by 3.5 to 4.5.
GROWTH = 4
# After this many tries, the range is halved every second time, which bounds their number.  Chosen.
LINEAR_TRIES = 5


class DoesNotFit(ValueError):
    """No quality fits; ``smallest`` is the smallest size in bytes."""

    def __init__(self, smallest: int) -> None:
        self.smallest = smallest
        super().__init__(f"the smallest has {smallest} bytes")


@dataclass(frozen=True)
class EncodedLatents:
    """Every frame's chunks, one for each band, and the header's ``quantisation``."""

    frames: Sequence[Sequence[container.Chunk]]
    quantisation: int

    @property
    def size(self) -> int:
        """The bytes of the chunks in a file."""
        return sum(container.chunk_size(len(c.data)) for frame in self.frames for c in frame)


def largest(
    coded: Callable[[int], EncodedLatents],
    low: int,
    high: int,
    limit: int,
    first: int | None = None,
    one_in: int = ONE_IN,
) -> tuple[int, EncodedLatents]:
    """About the highest of ``low``..``high`` that fits in ``limit`` bytes, and its encoded latents.

    A higher one would add less than one in ``one_in`` bytes.  ``first`` is tried first.
    """
    fits: tuple[int, EncodedLatents] | None = None
    lowest, highest = low, high  # of the qualities that may still be tried
    quality = (low + high) // 2 if first is None else first
    if limit < 1:
        quality = low
    growth, before = GROWTH / (high - low), None
    for number in itertools.count(1):
        tried = coded(quality)
        if tried.size <= limit:
            fits, lowest = (quality, tried), quality + 1
            if limit - tried.size < limit // one_in:
                return fits
        elif quality == low:
            raise DoesNotFit(tried.size)
        else:
            highest = quality - 1
        if fits is not None and lowest > highest:
            return fits
        # The logarithm of the size is nearly linear in a quality.
        if before is not None:
            growth = math.log(tried.size / before.size) / (quality - before.at)
        before = _Tried(quality, tried.size)
        if growth > 0 and (number < LINEAR_TRIES or number % 2):
            aim = limit * (1 - 0.5 / one_in)
            quality += round(math.log(aim / tried.size) / growth)
        else:
            quality = (lowest + highest) // 2
        quality = min(max(quality, lowest), highest)
    raise AssertionError


class _Tried(NamedTuple):
    at: int
    size: int


def largest_of_slow(
    quick: Callable[[int], EncodedLatents],
    slow: Callable[[int], EncodedLatents],
    limit: int,
    first: int | None = None,
) -> EncodedLatents:
    """About the highest quality that ``slow``, which takes long, codes in ``limit`` bytes.

    ``slow`` takes a part of ``quick``'s bytes.  That part changes little with the quality.
    """
    part = REFINED
    best = None
    for _ in range(SLOW_TRIES):
        try:
            size = round(limit / part)
            quality, mark = largest(quick, LOWEST_QUALITY, HIGHEST_QUALITY, size, first)
        except DoesNotFit:
            quality, mark = LOWEST_QUALITY, quick(LOWEST_QUALITY)
        tried = slow(quality)
        size = tried.size
        if size <= limit:
            if best is None or size > best.size:
                best = tried
            if size >= NEAR_ENOUGH * limit or quality == HIGHEST_QUALITY:
                break
        elif quality == LOWEST_QUALITY:
            raise DoesNotFit(size)
        # A little more than was measured, because a file that is too large costs another try.
        part = 1.003 * size / mark.size
    return best or largest(quick, LOWEST_QUALITY, HIGHEST_QUALITY, limit, first)[1]
