"""The networks of the lattice prior: three layers, whose sums are exact in float32.

They are made of the integers in a file of weights.  docs/lattice.md specifies how.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arrays import Floats, Ints, Singles
from .integers import EXACT_SINGLE, LOG_UNITS, STEP_UNITS

# Values are in 1/256 of the latents' unit, which is 4 units of steps.  Chosen: so all sums of a
# layer stay below 2 ** 24, and float32 holds them exactly (docs/measurements.md#lattice).
UNITS = 256
FINER = STEP_UNITS // UNITS
AT_ONCE = 2048  # places: the hidden layers then stay in the CPU's cache.  Measured.
INPUT_LIMIT = (1 << 12) - 1  # the largest input: 16 units.  Chosen: latents hardly exceed 10.


def _exact(weights: Floats, limits: list[int]) -> Singles:
    """Weights in binary fractions whose sums are exact in float32.

    All weights of an output are multiples of 2 ** -p, with the largest p for which no sum of them
    can reach 2 ** 24 of these units.  ``limits`` has the largest magnitude of each input.
    """
    unit = np.ones((len(weights), 1))
    largest = np.array(limits, np.float64)
    for _ in range(EXACT_SINGLE.bit_length()):
        finer = np.abs(np.rint(weights * (2 * unit))) @ largest < EXACT_SINGLE
        unit[finer] *= 2
    exact = np.rint(weights * unit)
    if (np.abs(exact) @ largest >= EXACT_SINGLE).any():
        msg = "the weights of a prior are too large"
        raise ValueError(msg)
    return (exact / unit).astype(np.float32)


# One unit of a layer here is this many units of the file.  In the file, values and means are in
# 1/1024, hidden layers go up to 32767, and scales are in eighths of an octave.
_VALUE, _HIDDEN, _LOG, _SCALE = FINER, 8, 1, 2


class Network:
    """The three layers of a channel in a pass.

    The inputs are in the order of `lattice._Context`.  The last one of a hidden layer is 1.
    """

    def __init__(
        self, tensors: Mapping[str, NDArray[Any]], name: str, order: Ints, spacings: int
    ) -> None:
        """``order`` has the number that each input has in the file.  The bias is the last one.

        The last inputs in the file say which one of the ``spacings`` a place has.
        """

        def weights(layer: str, inputs: list[int], outputs: int | list[int]) -> Floats:
            """The real weights of a layer in the file, the last one for an input of 1."""
            shift = int(tensors[f"{name}.{layer}.shift"][0])
            bias = tensors[f"{name}.{layer}.bias"].astype(np.float64)
            scale = 2.0**-shift / np.broadcast_to(outputs, bias.shape)
            parts = [
                tensors[f"{name}.{layer}.weight{i}"].astype(np.float64)
                * (tensors[f"{name}.{layer}.multiplier{i}"] * scale * unit)[:, None]
                for i, unit in enumerate(inputs)
            ]
            # With one half added, rounding down gives the nearest integer.
            return np.concatenate([*parts, (bias * scale + 0.5)[:, None]], axis=1)

        of_first = weights("first", [_VALUE, _LOG], _HIDDEN)
        of_second = weights("second", [_HIDDEN], _HIDDEN)
        of_output = weights("output", [_HIDDEN, _VALUE, _LOG], [_VALUE, _SCALE])
        hidden = len(of_second)
        values_and_logs = [INPUT_LIMIT] * (of_first.shape[1] - spacings - 1)
        limits = [*values_and_logs, *[LOG_UNITS] * spacings, 1]
        first = _exact(of_first, limits)
        output = _exact(of_output, [INPUT_LIMIT] * hidden + limits)
        # The weights of the first hidden layer and of the output, for each spacing.
        together = np.concatenate([first, output[:, hidden:]])
        self._of_inputs = [_for_spacing(together, i, spacings)[:, order] for i in range(spacings)]
        self._second = _exact(of_second, [INPUT_LIMIT] * len(first) + [1])
        self._last: Singles = np.pad(output[:, :hidden], ((0, 0), (0, 1)))

    def __call__(self, inputs: Singles, spacing: int) -> Singles:
        """Means in 1/256 and scales in quarters (2, n) for inputs (k, n)."""
        weights, hidden = self._of_inputs[spacing], self._second.shape[1] - 1
        found = np.empty((len(self._last), inputs.shape[1]), np.float32)
        for start in range(0, inputs.shape[1], AT_ONCE):
            part = slice(start, start + AT_ONCE)
            of_inputs = weights @ inputs[:, part]
            second = _rectified(self._second @ _rectified(of_inputs[:hidden]))
            np.floor(self._last @ second + of_inputs[hidden:], out=found[:, part])
        return found


def _for_spacing(weights: Singles, number: int, spacings: int) -> Singles:
    """The weights for one spacing.  The inputs for the spacings become a part of the bias.

    The sums stay exact, because the limits of a layer hold for them.
    """
    fixed = weights[:, -1:] + LOG_UNITS * weights[:, [number - spacings - 1]]
    return np.concatenate([weights[:, : -spacings - 1], fixed], axis=1)


def _rectified(x: Singles) -> Singles:
    """A hidden layer (k, n) as an input, with a last row of ones."""
    found = np.empty((len(x) + 1, x.shape[1]), np.float32)
    np.floor(x, out=x)
    np.clip(x, 0, INPUT_LIMIT, out=found[:-1])
    found[-1] = 1
    return found
