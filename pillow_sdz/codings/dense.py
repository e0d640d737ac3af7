"""Layers of integers that run in float32, and give the same integers on every machine.

Weights, inputs and outputs are integers.  No sum of a layer can reach 2 ** 24, up to which float32
holds every integer.  So the sums are exact in any order, with any BLAS, and with any number of
threads.  Outputs are divided by powers of two, which is exact as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

EXACT = 1 << 24  # float32 holds every integer up to here


class Dense:
    """y = floor((W x + b) / 2 ** s).

    The tensors are ``NAME.weight``, W (outputs, inputs); ``NAME.bias``, b (outputs,); and
    ``NAME.shift``, s (outputs,).  ``limits`` (inputs,) has the largest magnitude of each input.
    ValueError if a sum may reach 2 ** 24.
    """

    def __init__(
        self, tensors: Mapping[str, NDArray[Any]], name: str, limits: NDArray[np.int64]
    ) -> None:
        weight, bias = (tensors[f"{name}.{part}"].astype(np.int64) for part in ("weight", "bias"))
        if (np.abs(weight) @ limits + np.abs(bias)).max() >= EXACT:
            msg = f"sums of {name} may not be exact"
            raise ValueError(msg)
        self._weight = np.ascontiguousarray(weight.T, dtype=np.float32)
        self._bias = bias.astype(np.float32)
        self._unit = np.exp2(-tensors[f"{name}.shift"].astype(np.float32))
        self.outputs = len(bias)

    def __call__(self, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        """Inputs (n, k) to outputs (n, outputs).  If k is less than all inputs, the last are 0."""
        total = inputs @ self._weight[: inputs.shape[1]]
        total += self._bias
        total *= self._unit
        outputs: NDArray[np.float32] = np.floor(total, out=total)
        return outputs
