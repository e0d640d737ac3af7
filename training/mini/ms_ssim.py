"""MS-SSIM of tensors, with gradients.  `benchmarks.metrics.ms_ssim` is the one that is reported."""

from __future__ import annotations

import functools

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

# The exponents of the five scales, finest first, the window, and the constants for a range of 1:
# Wang, Simoncelli, Bovik, "Multi-scale structural similarity for image quality assessment", 2003.
EXPONENTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
TAPS, SIGMA = 11, 1.5
C1, C2 = 0.01**2, 0.03**2
LEAST = 1e-3  # terms are at least this, because a power of 0 has no gradient.  Chosen.


@functools.lru_cache(16)
def _window(size: int) -> NDArray[np.float32]:
    """The window's sums in a row of ``size`` samples, as a matrix (size - 10, size)."""
    taps = np.exp(-0.5 * ((np.arange(TAPS) - TAPS // 2) / SIGMA) ** 2)
    matrix = np.zeros((size - TAPS + 1, size), np.float32)
    for row, values in enumerate(matrix):
        values[row : row + TAPS] = taps / taps.sum()
    return matrix


def _blur(x: Tensor) -> Tensor:
    rows, columns = (torch.from_numpy(_window(n)).to(x) for n in x.shape[-2:])
    return rows @ x @ columns.T


def ms_ssim(pictures: Tensor, originals: Tensor) -> Tensor:
    """The similarities (B,), 1 for equal pictures, the mean of R, G and B.

    Both are (B, 3, H, W), float32 in a range of 1, H and W at least 11.  Pictures that are too
    small for five scales have fewer; the exponents of these are larger then.
    """
    count = 1
    while count < len(EXPONENTS) and min(pictures.shape[-2:]) >> count >= TAPS:
        count += 1
    total = sum(EXPONENTS[:count])
    similarity = pictures.new_ones(pictures.shape[:2])
    x, y = pictures, originals
    for scale, exponent in enumerate(EXPONENTS[:count]):
        if scale:
            x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
        mean_x, mean_y, square_x, square_y, product = _blur(
            torch.stack([x, y, x * x, y * y, x * y])
        )
        variances = square_x + square_y - mean_x * mean_x - mean_y * mean_y
        term = (2 * (product - mean_x * mean_y) + C2) / (variances + C2)
        if scale == count - 1:
            # The levels are in -0.5..0.5, and this term is defined for levels from 0 on.
            a, b = mean_x + 0.5, mean_y + 0.5
            term = term * (2 * a * b + C1) / (a * a + b * b + C1)
        similarity = similarity * term.mean((2, 3)).clamp_min(LEAST) ** (exponent / total)
    return similarity.mean(1)
