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

EXACT = 1 << 24  # float32 holds every integer up to here

# How many products `Dense.around` keeps in memory at once.  Chosen: 4 MB, which fits into caches.
MOVED = 1 << 20

#: The product of two matrices in float32.
Product = Callable[[Singles, Singles], Singles]
# Weights are split into digits of this base, from -64 to 63.  CPUs without VNNI multiply two
# neighbouring inputs, and add the two products in 16 bits, which hold 2 * 255 * 64.
BASE = 128


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
        #: Sums of products of integers are multiplied by this (outputs,), then ``bias`` is added.
        self.unit = np.exp2(-tensors[f"{name}.shift"].astype(np.float32))
        self.bias = bias.astype(np.float32) * self.unit
        # (inputs of a tap, taps, outputs)
        by_tap = weight.reshape(len(bias), taps, -1).transpose(2, 1, 0)
        self._weight = np.ascontiguousarray(by_tap, dtype=np.float32) * self.unit
        self._stored = tensors[f"{name}.weight"]
        self.outputs = len(bias)

    @functools.cached_property
    def digits(self) -> list[NDArray[np.int8]]:
        """The weights (inputs, outputs) in digits of `BASE`, the highest ones first."""
        return [np.ascontiguousarray(digit.T) for digit in _digits(self._stored.astype(np.int64))]

    @functools.cached_property
    def columns(self) -> Singles:
        """The weights (inputs, outputs), multiplied by ``unit``."""
        found: Singles = self._weight.transpose(1, 0, 2).reshape(-1, self.outputs)
        return found

    def __call__(self, inputs: Singles, product: Product = np.matmul) -> Singles:
        """Inputs (n, k) to outputs (n, outputs).  If the layer has more inputs, the rest are 0."""
        return self._finished(product(inputs, self.columns[: inputs.shape[1]]))

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

    def _finished(self, total: Singles) -> Singles:
        total += self.bias
        outputs: Singles = np.floor(total, out=total)
        return outputs


def _digits(weight: NDArray[np.int64]) -> list[NDArray[np.int8]]:
    """Integers in digits, the highest ones first."""
    found: list[NDArray[np.int8]] = []
    while weight.any() or not found:
        low = (weight + BASE // 2) % BASE - BASE // 2
        found.insert(0, low.astype(np.int8))
        weight = (weight - low) // BASE
    return found
