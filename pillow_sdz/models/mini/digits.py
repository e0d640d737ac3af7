"""The digits of 8 bits that the decoder's graphs in int8 split latents into, and what they need.

A latent is a high digit, a low digit and a rest.  One of a high digit is worth `HIGH`, whatever the
file.  One of a low digit is worth a ``unit`` that follows the quality of the picture, because a
latent is a whole number of quantisation steps, and steps are 20 times as long at low qualities.
With a coarse unit, most channels need no high digit: at a quality of 75, more than half of them.
Rests are for cells whose quality is much higher than that of the picture.

All of it depends on the quality of the picture and on the place alone.  If it followed the tile,
pixels would depend on how a picture is cut into tiles.  A channel without a high digit in a tile
has high digits of 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...arrays import Ints, Latents
from .. import runtime
from .tensors import knots

LARGEST = 64  # the magnitude of a digit (training/digits.py)
# Two digits must hold 96: half of the magnitudes of each row of the encoder's linear part have a
# sum of at most 93 (measured), and the CNN adds a little.
HIGH = 1.5
UNIT = HIGH / runtime.DIGIT  # the finest unit, and that of rests
# The low digits of a picture have so many units in a mean quantisation step.  Measured
# (docs/speed.md#arithmetic).
UNITS = 24
# But no unit is coarser than this.  With a unit of 0.4, `mini-perceptual` loses 0.052 dB at a
# quality of 1 (measured).
COARSEST = 0.08
# So many of the first channels have such large numbers that the low digits of weights count.  With
# the finest unit, all that have them count.  Measured with `UNITS`.
FIRST = 32
# A cell has rests if a step of its own has fewer units.  Chosen: a third of `UNITS`.
FEWEST_UNITS = 8


class Steps:
    """The mean quantisation step at each place on the rate axis, from the gain's tensor."""

    def __init__(self, logarithms: NDArray[Any]) -> None:
        self._logarithms = logarithms.astype(np.float32).mean(1)

    def __call__(self, places: Ints) -> NDArray[np.float32]:
        steps: NDArray[np.float32] = np.exp(-knots(places) @ self._logarithms)
        return steps

    def unit(self, place: Ints) -> np.float32:
        """What 1 of a low digit is worth in a picture."""
        return np.float32(np.clip(self(place) / UNITS, np.float32(UNIT), COARSEST))


def inputs(latents: Latents, steps: NDArray[np.float32], unit: np.float32) -> dict[str, Any]:
    """A graph's inputs for latents (h, w, C) with these steps at each place: see `training.digits`.

    The channels that are 0 in all of the latents are left out.
    """
    most = np.maximum(latents.max((0, 1)), -latents.min((0, 1)))
    most[0] = np.inf  # a convolution needs a channel, and so do the high digits
    first = np.arange(len(most)) < (runtime.PRECISE_CHANNELS if unit <= UNIT else FIRST)
    # Channels with high digits come first, and before all the first ones.
    kind = np.where(first, 0, np.where(most > LARGEST * unit, 1, 2))
    order = np.argsort(kind, kind="stable")
    channels = order[most[order] > 0]
    finer = steps < FEWEST_UNITS * unit
    rests = len(channels) if finer.any() else 0
    firsts, large = np.searchsorted(kind[channels], (1, 2))
    return {
        # With its default mode, `take` makes one more copy.
        "latents": latents.take(channels, axis=2, mode="clip"),
        "channels": channels,
        "counts": np.array([firsts, large, rests]),
        "unit": np.array(unit),
        "limits": np.where(first[channels[:large]], -1, LARGEST * unit).astype(np.float32),
        "finer": finer.astype(np.float32),
    }
