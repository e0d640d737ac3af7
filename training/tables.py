"""Make the frequency tables of `codings.range_coder`: python -m training.tables"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from pillow_sdz import weights
from pillow_sdz.codings.range_coder import (
    FREQUENCY_BITS,
    MEAN_UNITS,
    PHASED_SCALES,
    PHASES,
    SCALES,
)

# exp(-11) is about 2 ** -16, the smallest frequency, so residuals beyond 11 scales are escapes.
REACH_IN_SCALES = 11
MAX_REACH = 255  # Chosen: all tables have less than 100 kB, and it cuts only scales over 23.


# Deviations: a smaller mass than 2 ** -20 is beyond.
REACH_IN_DEVIATIONS = 5


def logistic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    cumulative: NDArray[np.float64] = 0.5 * (1 + np.tanh(x / 2))
    return cumulative


def normal(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.array([0.5 * math.erfc(-value / math.sqrt(2)) for value in x.tolist()])


def frequencies(
    cumulative: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    scale: float,
    mean: float,
    reach: int,
) -> NDArray[np.uint16]:
    """The frequencies of -reach..reach and an escape, by a discretised distribution.

    Each is at least 1, and their sum is 65536.
    """
    residual = -np.abs(np.arange(-reach, reach + 1) - mean)
    mass = cumulative((residual + 0.5) / scale) - cumulative((residual - 0.5) / scale)
    mass = np.append(mass, max(0.0, 1 - mass.sum()))
    total = 1 << FREQUENCY_BITS
    counts = 1 + np.floor(mass / mass.sum() * (total - len(mass))).astype(np.int64)
    counts[np.argmax(counts)] += total - counts.sum()
    narrow: NDArray[np.uint16] = counts.astype(np.uint16)
    return narrow


def main() -> None:
    rows, reaches = [], []

    def add(cumulative: Any, scale: float, reach: int, phases: int) -> None:
        for phase in range(phases):
            rows.append(frequencies(cumulative, scale, phase / MEAN_UNITS, reach))
            reaches.append(reach)

    for index in range(SCALES):
        scale = 2 ** (index / 8 - 5)
        reach = min(MAX_REACH, int(np.ceil(REACH_IN_SCALES * scale)) + 1)
        add(logistic, scale, reach, PHASES if index < PHASED_SCALES else 1)
    for index in range(PHASED_SCALES):
        deviation = 2 ** (index / 8 - 4)
        add(normal, deviation, int(np.ceil(REACH_IN_DEVIATIONS * deviation)) + 1, PHASES)
    arrays = {"frequencies": np.concatenate(rows), "reach": np.array(reaches, np.uint16)}
    save_file(arrays, weights.TABLES.path)
    print(len(rows), "tables", len(arrays["frequencies"]), "entries")


if __name__ == "__main__":
    main()
