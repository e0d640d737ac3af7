"""How close a picture is to its original: PSNR and SSIM, with numpy alone."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

# The constants of Wang et al. 2004 (section III.C), for samples in 0..255.
WINDOW = 11
SIGMA = 1.5
C1 = (0.01 * 255) ** 2
C2 = (0.03 * 255) ** 2
MIDDLE = 128  # of the samples' range

FloatArray = NDArray[np.floating]


def psnr(original: NDArray[np.uint8], distorted: NDArray[np.uint8]) -> float:
    """Peak signal-to-noise ratio in dB over all samples; infinite for equal pictures.

    Both are uint8 arrays of one shape, e.g. (height, width, 3).
    """
    _check_shapes(original, distorted)
    error = original.astype(np.float64) - distorted.astype(np.float64)
    mse = float(np.mean(error * error))
    return math.inf if mse == 0 else 10 * math.log10(255**2 / mse)


def luma(picture: NDArray[np.uint8]) -> FloatArray:
    """Rec. 601 luma in 0..255, not rounded, of an RGB picture (height, width, 3)."""
    weights = np.array([0.299, 0.587, 0.114])
    result: FloatArray = picture.astype(np.float64) @ weights
    return result


def ssim(original: NDArray[np.uint8], distorted: NDArray[np.uint8]) -> float:
    """Structural similarity of the luma of two RGB pictures, at most 1.

    Wang, Bovik, Sheikh, Simoncelli, "Image Quality Assessment: From Error Visibility to
    Structural Similarity", 2004. The window is Gaussian, 11x11 samples with sigma 1.5, and stays
    inside the picture. Both pictures are uint8 arrays (height, width, 3) with at least 11 samples
    on each side.
    """
    _check_shapes(original, distorted)
    similarity, _ = ssim_maps(luma(original), luma(distorted))
    return float(similarity.mean())


def ssim_maps(x: FloatArray, y: FloatArray) -> tuple[FloatArray, FloatArray]:
    """The SSIM at every place of the window, and its contrast-structure factor alone.

    ``x`` and ``y`` are planes (height, width) with values in 0..255, in float64 or float32. Both
    maps are 10 samples lower and narrower. MS-SSIM needs the second one.
    """
    if min(x.shape) < WINDOW:
        msg = f"SSIM needs at least {WINDOW} samples on each side, not {x.shape}"
        raise ValueError(msg)
    # Around the middle of the range, squares are smaller, and float32 is more precise.
    x, y = x - MIDDLE, y - MIDDLE
    mean_x, mean_y = _window_mean(x), _window_mean(y)
    variances = _window_mean(x * x + y * y) - (mean_x * mean_x + mean_y * mean_y)
    covariance = _window_mean(x * y) - mean_x * mean_y
    contrast_structure = (2 * covariance + C2) / (variances + C2)
    mean_x, mean_y = mean_x + MIDDLE, mean_y + MIDDLE
    luminance = (2 * mean_x * mean_y + C1) / (mean_x * mean_x + mean_y * mean_y + C1)
    return luminance * contrast_structure, contrast_structure


def _window_mean(plane: FloatArray) -> FloatArray:
    """The Gaussian-weighted mean of every full window, first along columns, then along rows."""
    return _weighted(_weighted(plane).T).T


def _weighted(plane: FloatArray) -> FloatArray:
    """The Gaussian-weighted mean of every full window of rows."""
    offsets = np.arange(WINDOW) - WINDOW // 2
    weights = np.exp(-(offsets**2) / (2 * SIGMA**2))
    weights = (weights / weights.sum()).astype(plane.dtype)
    height, middle = len(plane) - WINDOW + 1, WINDOW // 2
    total: FloatArray = plane[middle : middle + height] * weights[middle]
    pair = np.empty_like(total)
    for above in range(middle):
        # Two rows as far from the middle have the same weight.
        below = WINDOW - 1 - above
        np.add(plane[above : above + height], plane[below : below + height], out=pair)
        pair *= weights[above]
        total += pair
    return total


def _check_shapes(original: NDArray[np.uint8], distorted: NDArray[np.uint8]) -> None:
    if original.shape != distorted.shape:
        msg = f"pictures of different shapes: {original.shape} and {distorted.shape}"
        raise ValueError(msg)
