"""Latents -> integers: rounding, or the integer that is worth its bits."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .entropy import SYMBOL_LIMIT, Floats, Ints, Prediction, SymbolEncoder, Tables


class Quantizer:
    """An `entropy.Coder` that chooses each symbol as it is coded, and writes it.

    ``latents`` (h, w, C) are in units of the quantisation step.  ``price`` (C,), in bits for
    a squared step of error, makes the choice between the two nearest integers by rate and
    distortion; None rounds.  Since the choice is made in coding order, its rate is the one
    that the file really pays; only what it does to later predictions is not foreseen.
    """

    def __init__(
        self,
        tables: Tables,
        latents: NDArray[np.floating[Any]],
        hyper: Ints,
        price: Floats | None = None,
    ) -> None:
        self._tables = tables
        self._volumes: dict[str, Floats] = {
            "latents": np.clip(latents, -SYMBOL_LIMIT, SYMBOL_LIMIT).astype(np.float64),
            "hyper": np.clip(hyper, -SYMBOL_LIMIT, SYMBOL_LIMIT).astype(np.float64),
        }
        self._price = price
        self._encoder = SymbolEncoder(tables)

    def _bits(self, symbols: Ints, prediction: Prediction) -> Floats:
        reach = self._tables.reach[prediction.table]
        residual = (symbols - prediction.centre) * prediction.mirror
        entry = np.where(np.abs(residual) > reach, 2 * reach + 1, residual + reach)
        bits: Floats = self._tables.bits[self._tables.start[prediction.table] + entry]
        return bits

    def _cheaper(self, symbols: Ints, values: Floats, price: Floats, p: Prediction) -> Ints:
        """The symbols, some replaced by the next one towards the prediction."""
        other = symbols + np.sign(p.centre - symbols)
        saving = self._bits(symbols, p) - self._bits(other, p)
        loss = price * ((values - other) ** 2 - (values - symbols) ** 2)
        return np.where(saving > loss, other, symbols)

    def code(self, volume: str, index: tuple[Any, ...], mean: Ints, scale: Ints) -> Ints:
        values = self._volumes[volume][index]
        prediction = Prediction.of(mean, scale)
        symbols: Ints = np.rint(values).astype(np.int64).ravel()
        if self._price is not None and volume == "latents":
            # Only towards the prediction can the other neighbour be cheaper, and most
            # symbols are what is predicted.
            at = np.flatnonzero(symbols != prediction.centre)
            price = np.broadcast_to(self._price[index[-1]], values.shape).ravel()[at]
            there = Prediction(*(part[at] for part in prediction))
            symbols[at] = self._cheaper(symbols[at], values.ravel()[at], price, there)
        self._encoder.encode(symbols, prediction)
        return symbols

    def bytes(self) -> bytes:
        """The payload, once the prior has coded everything."""
        return self._encoder.bytes()
