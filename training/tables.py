"""Make the frequency tables of `codings.range_coder`: python -m training.tables"""

from __future__ import annotations

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


def logistic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    cumulative: NDArray[np.float64] = 0.5 * (1 + np.tanh(x / 2))
    return cumulative


def frequencies(scale: float, mean: float, reach: int) -> NDArray[np.uint16]:
    """The frequencies of -reach..reach and an escape, by a discretised logistic.

    Each is at least 1, and their sum is 65536.
    """
    residual = -np.abs(np.arange(-reach, reach + 1) - mean)
    mass = logistic((residual + 0.5) / scale) - logistic((residual - 0.5) / scale)
    mass = np.append(mass, max(0.0, 1 - mass.sum()))
    total = 1 << FREQUENCY_BITS
    counts = 1 + np.floor(mass / mass.sum() * (total - len(mass))).astype(np.int64)
    counts[np.argmax(counts)] += total - counts.sum()
    narrow: NDArray[np.uint16] = counts.astype(np.uint16)
    return narrow


def main() -> None:
    rows, reaches = [], []
    for index in range(SCALES):
        scale = 2 ** (index / 8 - 5)
        reach = min(MAX_REACH, int(np.ceil(REACH_IN_SCALES * scale)) + 1)
        for phase in range(PHASES if index < PHASED_SCALES else 1):
            rows.append(frequencies(scale, phase / MEAN_UNITS, reach))
            reaches.append(reach)
    arrays = {"frequencies": np.concatenate(rows), "reach": np.array(reaches, np.uint16)}
    save_file(arrays, weights.TABLES.path)
    print(len(rows), "tables", len(arrays["frequencies"]), "entries")


if __name__ == "__main__":
    main()
