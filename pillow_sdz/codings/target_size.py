"""Which quality fits in a number of bytes: a search that encodes at one after another."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .. import container
from ..spaces import HIGHEST_QUALITY, LOWEST_QUALITY

# Where a try takes seconds, only a few qualities are tried, until so much of the size is used.
# Chosen.
SLOW_TRIES, NEAR_ENOUGH = 3, 0.98
# What the first try supposes: effort 9's bytes of effort 4's at the same quality.  Measured, seven
# photos held out from training.
REFINED = 0.93


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
    coded: Callable[[int], EncodedLatents], low: int, high: int, limit: int, *, near: int = 1
) -> tuple[int, EncodedLatents]:
    """The highest of ``low``..``high`` that is coded in at most ``limit`` bytes, and as what.

    The search ends when ``near`` more does not fit.
    """
    best = coded(low)
    if best.size > limit:
        raise DoesNotFit(best.size)
    too_large = coded(high)
    if too_large.size <= limit:
        return high, too_large
    halve = False
    while high - low > near:
        # The size grows about exponentially with a quality; halving every second time
        # bounds the number of tries where it does not.
        growth = too_large.size / best.size
        part = math.log(limit / best.size) / math.log(growth)
        middle = low + round((high - low) * (0.5 if halve else part))
        middle = min(max(middle, low + 1), high - 1)
        halve = not halve
        tried = coded(middle)
        if tried.size <= limit:
            low, best = middle, tried
        else:
            high, too_large = middle, tried
    return low, best


def largest_of_slow(
    quick: Callable[[int], EncodedLatents], slow: Callable[[int], EncodedLatents], limit: int
) -> EncodedLatents:
    """About the highest quality that ``slow``, which takes long, codes in ``limit`` bytes.

    The part of ``quick``'s bytes that it takes changes little from one quality to the next.
    """
    part = REFINED
    best = None
    for _ in range(SLOW_TRIES):
        try:
            quality, mark = largest(quick, LOWEST_QUALITY, HIGHEST_QUALITY, round(limit / part))
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
        # A little more than it seems, since a miss costs another try.
        part = 1.003 * size / mark.size
    return best or largest(quick, LOWEST_QUALITY, HIGHEST_QUALITY, limit)[1]
