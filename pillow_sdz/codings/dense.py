"""Layers of integers that run in float32, and give the same integers on every machine.

Weights, inputs and outputs are integers.  float32 holds every integer up to 2 ** 24, and no sum of
a layer can reach that.  So the sums are exact in any order, with any library, and with any number
of threads.  Weights are divided by powers of two beforehand, and so are the sums, which is exact as
well.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arrays import Ints, Singles
from .places import blocks

EXACT = 1 << 24  # float32 holds every integer up to here

# How many products `Dense.around` keeps in memory at once.  Chosen: 4 MB, which fits into caches.
MOVED = 1 << 20

#: The product of two matrices in float32.
Product = Callable[[Singles, Singles], Singles]
#: The product of bytes from 0 to 255 and bytes from -64 to 64, with exact sums of 32 bits.
ByteProduct = Callable[[NDArray[np.uint8], NDArray[np.int8]], NDArray[np.int32]]

# Weights are split into digits of this base, from -64 to 63.  CPUs without VNNI multiply two
# neighbouring inputs, and add the two products in 16 bits, which hold 2 * 255 * 64.
BASE = 128

# How many bytes `Dense.around_bytes` multiplies at once.  Chosen: they fit into caches.
GATHERED = 1 << 20


class Dense:
    """y = floor((W x + b) / 2 ** s).

    The tensors are ``NAME.weight``, W (outputs, inputs); ``NAME.bias``, b (outputs,); and
    ``NAME.shift``, s (outputs,).  ``limits`` (inputs,) has the largest magnitude of each input.
    With ``taps``, the inputs are the values at this number of places around a place, tap by tap.
    ValueError if a sum may reach 2 ** 24.
    """

    def __init__(
        self,
        tensors: Mapping[str, NDArray[Any]],
        name: str,
        limits: NDArray[np.int64],
        taps: int = 1,
    ) -> None:
        weight, bias = (tensors[f"{name}.{part}"].astype(np.int64) for part in ("weight", "bias"))
        if (np.abs(weight) @ limits + np.abs(bias)).max() >= EXACT:
            msg = f"sums of {name} may not be exact"
            raise ValueError(msg)
        self._unit = np.exp2(-tensors[f"{name}.shift"].astype(np.float32))
        self._bias = bias.astype(np.float32) * self._unit
        # (inputs of a tap, taps, outputs)
        by_tap = weight.reshape(len(bias), taps, -1).transpose(2, 1, 0)
        self._weight = np.ascontiguousarray(by_tap, dtype=np.float32) * self._unit
        self._stored = tensors[f"{name}.weight"]
        #: Whether inputs fit into the bytes of `around_bytes`.
        self.takes_bytes = bool(limits.max() < 256)
        self.outputs = len(bias)

    @functools.cached_property
    def _digits(self) -> NDArray[np.int8]:
        """The weights as `around_bytes` needs them, which few layers do."""
        return np.ascontiguousarray(_digits(self._stored.astype(np.int64)).T)

    def __call__(self, inputs: Singles, product: Product = np.matmul) -> Singles:
        """Inputs (n, k) to outputs (n, outputs).  If the layer has more inputs, the rest are 0."""
        weight = self._weight.transpose(1, 0, 2).reshape(-1, self.outputs)
        return self._finished(product(inputs, weight[: inputs.shape[1]]))

    def around(self, values: Singles, places: Ints, product: Product = np.matmul) -> Singles:
        """Values (m, inputs of a tap) to the outputs (n, outputs) of n places.

        ``places`` (n, taps) says which of the values are a place's inputs.
        """
        (count, taps), (known, inputs), size = places.shape, values.shape, self.outputs
        if known > 2 * count or inputs <= size:
            return self(values[places].reshape(count, taps * inputs), product)
        # There are fewer outputs than inputs, so all values are multiplied first.  The products
        # are then moved to their places.
        at_once = max(1, MOVED // max(1, known * size))
        total = np.zeros((count, size), np.float32)
        for first in range(0, taps, at_once):
            weight = self._weight[:, first : first + at_once].reshape(inputs, -1)
            moved = product(values, weight).reshape(-1, size)
            some = weight.shape[1] // size
            for tap in range(some):
                # With its default mode, `take` makes one more copy.
                rows = places[:, first + tap] * some + tap
                total += moved.take(rows, axis=0, mode="clip")
        return self._finished(total)

    def around_bytes(
        self, values: NDArray[np.uint8], places: Ints, product: ByteProduct
    ) -> Singles:
        """As `around`, of values from 0 to 255."""
        (count, taps), inputs = places.shape, values.shape[1]
        total = np.empty((count, self.outputs), np.float32)
        for block in blocks(count, max(1, GATHERED // (taps * inputs))):
            rows = values.take(places[block], axis=0, mode="clip")
            sums = product(rows.reshape(-1, taps * inputs), self._digits)
            whole, *lower = np.split(sums, sums.shape[1] // self.outputs, 1)
            for part in lower:
                whole = whole * BASE + part  # if this overflows, the next part mends it
            total[block] = whole
        total *= self._unit
        return self._finished(total)

    def _finished(self, total: Singles) -> Singles:
        total += self._bias
        outputs: Singles = np.floor(total, out=total)
        return outputs


def _digits(weight: NDArray[np.int64]) -> NDArray[np.int8]:
    """Weights (outputs, k) in digits (n * outputs, k): of all outputs the highest ones first."""
    found: list[NDArray[np.int8]] = []
    while weight.any() or not found:
        low = (weight + BASE // 2) % BASE - BASE // 2
        found.insert(0, low.astype(np.int8))
        weight = (weight - low) // BASE
    return np.concatenate(found)
