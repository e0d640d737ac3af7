"""Latents -> integers, by rounding to the nearest."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .entropy import SYMBOL_LIMIT, Ints, Prediction, SymbolEncoder, Tables


class Quantizer:
    """An `entropy.Coder` that rounds latents as they are coded, and writes them.

    ``latents`` (h, w, C) and ``hyper`` are in units of the quantisation step.
    """

    # Choosing the cheaper of two integers by rate and distortion (a dead zone) was measured
    # and left out.  With half-trained weights, on ten photos held out from training, it lost
    # 0 to 0.5 dB and 1 to 12 points of SSIMULACRA2 at equal bytes, the more the wider it was.
    # The networks are trained for rounding.

    def __init__(self, tables: Tables, latents: NDArray[Any], hyper: NDArray[Any]) -> None:
        self._volumes = {"latents": latents, "hyper": hyper}
        self._encoder = SymbolEncoder(tables)

    def code(self, volume: str, index: tuple[Any, ...], mean: Ints, scale: Ints) -> Ints:
        limited = np.clip(self._volumes[volume][index].ravel(), -SYMBOL_LIMIT, SYMBOL_LIMIT)
        symbols: Ints = np.rint(limited).astype(np.int64)
        self._encoder.encode(symbols, Prediction.of(mean, scale))
        return symbols

    def bytes(self) -> bytes:
        """The payload, once the prior has coded everything."""
        return self._encoder.bytes()
