"""How the lapped transform ends at a picture's borders, for latents without samples beyond them.

At a border the window falls from 1 to 0 at once, as in the window switching of audio codecs, so
that the transform stays complete there.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .shape import FACTOR

HALF = FACTOR // 2  # samples by which a window reaches into its neighbours


def _angles(size: int) -> NDArray[np.float64]:
    """The window's angles at the size / 2 samples from a border inwards."""
    return np.pi * (np.arange(size // 2)[::-1] + 0.5) / (2 * size)


def mirrored(size: int = FACTOR) -> NDArray[np.float32]:
    """The factors from mirror images to the samples beyond a border, from the border outwards."""
    found: NDArray[np.float64] = -np.tan(_angles(size) / 2)
    return found.astype(np.float32)


def inside(scale: int = 1) -> NDArray[np.float32]:
    """The factors for decoded samples, from a border inwards.

    With a ``scale``, each sample is the mean of ``scale`` samples.  The factors are exact if these
    are equal.
    """
    found: NDArray[np.float64] = 1 / np.cos(_angles(FACTOR)).reshape(-1, scale).mean(1)
    return found.astype(np.float32)


def along(length: int, scale: int = 1) -> NDArray[np.float32]:
    """As `inside`, for all samples (length,) from one border to the other."""
    first = inside(scale)
    middle = np.ones(length - 2 * len(first), np.float32)
    return np.concatenate([first, middle, first[::-1]])
