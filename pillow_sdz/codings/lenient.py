"""Reads words of the range coder that end too early, or are damaged."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..arrays import Ints
from .range_coder import AHEAD, DamagedPayload, Prediction, SymbolDecoder, Tables, runs


class LenientDecoder(SymbolDecoder):
    """Reads words that end too early, or are damaged.  Missing symbols become the likeliest ones.

    Nothing says where words are damaged.  Symbols after that place are drawn as the prior expects
    them, with an error as large as that of a prediction.
    """

    def __init__(self, tables: Tables, payload: bytes) -> None:
        super().__init__(tables, payload)
        self._left = float(8 * len(payload) - AHEAD)  # bits

    def code(self, volume: str, index: tuple[Any, ...], mean: Ints, scale: Ints) -> Ints:
        try:
            return super().code(volume, index, mean, scale)
        except DamagedPayload:  # an escape that no encoder writes
            self._left = 0
            return super().code(volume, index, mean, scale)

    def _residuals(self, prediction: Prediction) -> tuple[Ints, Ints]:
        likeliest = np.zeros(prediction.table.shape, np.int32), np.zeros(0, np.int64)
        if self._left <= 0:
            return likeliest
        try:
            residual, escaped = super()._residuals(prediction)
        except DamagedPayload:  # after the end or the damage, anything may be read
            self._left = 0
            return likeliest
        order, *_ = runs(prediction.table)
        entry = residual + self._tables.reach[prediction.table]
        spent = np.cumsum(self._tables.bits_of(entry, prediction.table)[order])
        known = int(np.searchsorted(spent, self._left, "right"))
        if known == len(order):
            self._left -= spent[-1] if known else 0
            return residual, escaped
        self._left = 0
        residual[order[known:]] = 0
        residual[escaped] = 0  # escapes come last in their stage, so the words end before them
        return residual, likeliest[1]

    def uniform(self, count: int, size: int) -> Ints:
        self._left -= count * math.log2(size)
        return super().uniform(count, size)

    def _number(self, size: int) -> int:
        self._left -= math.log2(size)
        return super()._number(size)

    def finish(self) -> None:
        """Check nothing: the words are known to end too early."""


def decoder_of(payload: bytes, *, complete: bool) -> SymbolDecoder:
    """A decoder for a payload.  If it need not be ``complete``, it may be cut or damaged."""
    kind = SymbolDecoder if complete else LenientDecoder
    return kind(Tables.shipped(), payload)
