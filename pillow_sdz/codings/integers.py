"""Arithmetic that gives the same integers on every machine.

Weights and activations are integers.  Products are summed in floating point.  This is exact in any
order, because every partial sum stays below 2 ** 53, or below 2 ** 24 in float32.  So a file
decodes to the same integers with any BLAS, on any machine, with any number of threads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arrays import Floats, Ints, Singles
from ..header import STEP_UNITS as STEP_UNITS

EXACT = 1 << 53  # float64 holds every integer up to here
EXACT_SINGLE = 1 << 24  # and float32 up to here

STEP_LIMIT = 1 << 16  # steps are below this, in `STEP_UNITS`.  0.05 is 51, half a percent off.
SINGLE_BITS, SINGLE_BIAS = 23, 127  # of the mantissa of a float32, and of its exponent
LOG_UNITS = 256  # logarithms to base 2 are in 1/256 octaves.  Chosen: finer than their error.


def logarithm(x: Floats) -> Floats:
    """log2(x / `STEP_UNITS`) of integers x >= 1, piecewise linear, in 1/256 octaves.

    It is exact, because frexp is exact and all factors here are powers of two.
    """
    mantissa, exponent = np.frexp(x)
    octaves: Floats = np.floor((2 * mantissa - 1) * LOG_UNITS)
    octaves += (exponent - STEP_UNITS.bit_length()) * LOG_UNITS
    return octaves


def logarithm_of_singles(x: Singles, unit: int) -> Singles:
    """As `logarithm`, of float32 that hold integers >= 1: log2(x / unit), for powers of two.

    The bits of a float32 are its logarithm, piecewise linear, in 2 ** -23 octaves.
    """
    octaves = x.view(np.int32) >> (SINGLE_BITS - (LOG_UNITS.bit_length() - 1))
    octaves -= LOG_UNITS * (SINGLE_BIAS + unit.bit_length() - 1)
    return octaves.astype(np.float32)


class Affine:
    """y = (sum over inputs of (W_i x_i) * m_i + b + 2 ** (s - 1)) >> s, all integers.

    ``W_i`` is int8 (outputs, inputs).  ``m_i``, int32, and ``b``, int64, have a value for each
    output.  ``m_i`` turns the unit of the input into that of the output.  ``limits`` has the
    largest magnitude of each input; ValueError if a sum may then reach 2 ** 53.
    """

    def __init__(self, tensors: Mapping[str, NDArray[Any]], name: str, *limits: int) -> None:
        self._shift = int(tensors[f"{name}.shift"][0])
        bias = tensors[f"{name}.bias"].astype(np.int64) + (1 << (self._shift - 1))
        self.outputs = len(bias)
        self._bias = bias.astype(np.float64)
        self._weights: list[dict[type, NDArray[Any]]] = []
        self._multipliers: list[NDArray[np.float64]] = []
        self._totals: list[int] = []
        self._limits = limits
        largest = np.abs(bias).astype(object)
        for i, limit in enumerate(limits):
            weight = np.ascontiguousarray(tensors[f"{name}.weight{i}"].T, dtype=np.float64)
            multiplier = tensors[f"{name}.multiplier{i}"].astype(np.float64)
            total = np.abs(weight).sum(0).astype(np.int64).astype(object)
            largest += total * limit * np.maximum(1, np.abs(multiplier).astype(np.int64))
            self._weights.append({np.float64: weight, np.float32: weight.astype(np.float32)})
            self._multipliers.append(multiplier)
            self._totals.append(int(total.max()))
        if largest.max() >= EXACT:
            msg = f"sums of {name} may not be exact"
            raise ValueError(msg)

    def exact_type(self, limit: int, number: int = 0) -> type:
        """The narrowest type whose sums are exact if input ``number`` stays within a limit.

        float32 is twice as fast.  Both types give the same integers.
        """
        return np.float32 if self._totals[number] * limit < EXACT_SINGLE else np.float64

    def __call__(self, *inputs: NDArray[Any]) -> Ints:
        """Inputs (n, k_i) or (1, k_i), floats that hold integers, to outputs (n, k)."""
        total = np.empty((len(inputs[0]), self.outputs))
        total[:] = self._bias
        for i, (x, weights) in enumerate(zip(inputs, self._weights, strict=True)):
            # The input's limit is tried first, because finding the largest value takes time.
            kind = self.exact_type(self._limits[i], i)
            if kind is np.float64 and x.dtype == np.float32:
                kind = self.exact_type(largest_magnitude(x), i)
            total += (x.astype(kind, copy=False) @ weights[kind]) * self._multipliers[i]
        total *= 2.0**-self._shift  # exact, and floor is exact as well
        return np.floor(total, out=total).astype(np.int64)


def largest_magnitude(values: NDArray[Any]) -> int:
    """The largest magnitude; 0 if there are no values."""
    return int(max(values.max(initial=0), -values.min(initial=0)))


def rounded(mean: Ints, scale: Ints) -> Ints:
    """Means in eighths of a step, rounded, so that a stage has fewer tables.

    A mean is rounded to a quarter, a half or a whole step if the scale is at least 1, 2 or 4 steps.
    This costs at most 0.001 bits a symbol: the square of the error, in squared deviations.
    """
    bits = np.clip((scale >> 3) - 4, 0, 3)
    found: Ints = (mean + (1 << bits >> 1)) >> bits << bits
    return found
