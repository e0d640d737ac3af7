"""Latents and integers that the tests of codings share."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pillow_sdz.arrays import Ints


def correlated_latents(height: int, width: int, channels: int) -> NDArray[np.float64]:
    """Latents (h, w, C) like those of an autoencoder: mixtures of waves, edges and noise."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width]
    planes = []
    for _ in range(channels):
        a, b, phase = rng.uniform(-0.15, 0.15, 3)
        edge = rng.uniform(-1, 1) * (y * rng.uniform(-1, 1) + x > width / 2)
        planes.append(np.sin(a * y + b * x + 20 * phase) + edge)
    latents = np.stack(planes, axis=2) + rng.normal(0, 0.3, (height, width, channels))
    mixture: NDArray[np.float64] = latents @ rng.normal(0, channels**-0.5, (channels, channels))
    return mixture


def pinned_symbols(height: int, width: int, channels: int, largest: int) -> Ints:
    """Integers that depend on no library: a congruential generator, smoothed by sums."""
    state, numbers = 1, []
    for _ in range(height * width * channels):
        state = (state * 1664525 + 1013904223) % 2**32
        numbers.append((state >> 16) % (2 * largest + 1) - largest)
    noise = np.array(numbers).reshape(height, width, channels)
    smooth: Ints = noise + (noise.cumsum(0) + noise.cumsum(1)) // 4 + noise.cumsum(2) // 2
    return smooth
