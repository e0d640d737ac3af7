"""Latents -> integers: rounding, or the integer that is worth its bits."""

from __future__ import annotations

from typing import Any

import numpy as np

from .entropy import SYMBOL_LIMIT, Floats, Ints, Prediction, SymbolEncoder, Tables


class Quantizer:
    """An `entropy.Coder` that chooses each symbol as it is coded, and writes it.

    ``latents`` (h, w, C) are in units of the quantisation step.  ``price`` (C,), in bits for
    a squared step of error, makes the choice between the two nearest integers by rate and
    distortion; None rounds.  Since the choice is made in coding order, its rate is the one
    that the file really pays; only what it does to later predictions is not foreseen.
    """

    def __init__(
        self, tables: Tables, latents: Floats, hyper: Ints, price: Floats | None = None
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

    def code(self, volume: str, index: tuple[Any, ...], mean: Ints, scale: Ints) -> Ints:
        values = self._volumes[volume][index]
        nearest = np.rint(values)
        prediction = Prediction.of(mean, scale)
        symbols = nearest.ravel().astype(np.int64)
        if self._price is not None and volume == "latents":
            price = np.broadcast_to(self._price[index[-1]], values.shape).ravel()
            values = values.ravel()
            # Only towards the prediction can the other neighbour be cheaper.
            other = symbols + np.sign(prediction.centre - symbols)
            gain = self._bits(symbols, prediction) - self._bits(other, prediction)
            loss = price * ((values - other) ** 2 - (values - symbols) ** 2)
            symbols = np.where(gain > loss, other, symbols)
        self._encoder.encode(symbols, prediction)
        return symbols

    def bytes(self) -> bytes:
        """The payload, once the prior has coded everything."""
        return self._encoder.bytes()
