"""The range decoder of docs/format.md, written only from the specification."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence

MASK = (1 << 64) - 1


class RangeDecoder:
    """Words of 32 bits, a state of 64 bits, 24-bit probabilities."""

    def __init__(self, payload: bytes) -> None:
        self._words = payload
        self._at = 0
        self._lower, self._range = 0, MASK
        self._point = self._word() << 32 | self._word()

    def _word(self) -> int:
        word = self._words[self._at : self._at + 4].ljust(4, b"\0")
        self._at += 4
        return int.from_bytes(word, "big")

    def decode(self, counts: Sequence[int]) -> int:
        """The next symbol of an alphabet with these counts, which sum to 2 ** 24."""
        scale = self._range >> 24
        quantile = ((self._point - self._lower) & MASK) // scale
        cumulative = [0, *itertools.accumulate(counts)]
        if quantile >= cumulative[-1]:
            raise ValueError(quantile)
        symbol = bisect.bisect_right(cumulative, quantile) - 1
        self._lower = (self._lower + scale * cumulative[symbol]) & MASK
        self._range = scale * counts[symbol]
        if self._range < 1 << 32:
            self._lower = self._lower << 32 & MASK
            self._range <<= 32
            self._point = (self._point << 32 | self._word()) & MASK
        return symbol
