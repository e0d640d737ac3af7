"""What a decoder of `mini` needs to know of a tile."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...arrays import Ints, Latents


class TileInputs(NamedTuple):
    """A tile to decode.

    ``places`` has the place of each latent on the rate axis, or (1, 1) for all, and ``place`` is
    that of the picture's quality.
    """

    latents: Latents
    place: Ints
    places: Ints
    sides: NDArray[np.int64]
