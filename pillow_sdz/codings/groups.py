"""The layers of `hyperprior` that predict one group of channels."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arrays import Singles
from .dense import Dense
from .known import LARGEST_MAGNITUDE
from .places import BESIDE, CHECKERBOARD, SQUARE
from .rate_axis import APART, KNOTS

# Measured or chosen: docs/measurements.md#hyperprior.
ACTIVATION_LIMIT = 2047
HIDDEN_LIMIT = 4095  # of hidden layers, where rounding costs more


def rectified(x: Singles, limit: int = ACTIVATION_LIMIT) -> Singles:
    """The values clipped to 0..limit: the only non-linearity."""
    return np.clip(x, 0, limit, out=x)


def layer(tensors: Mapping[str, NDArray[Any]], name: str, *limits: Any, taps: int = 1) -> Dense:
    """A layer whose inputs have these largest magnitudes, at each of the ``taps``."""
    of_tap = np.concatenate([np.atleast_1d(x) for x in limits])
    return Dense(tensors, name, np.tile(of_tap, taps), taps)


def activations(count: int) -> NDArray[np.int64]:
    """The largest magnitudes of inputs that are `rectified`."""
    return np.full(count, ACTIVATION_LIMIT)


class Group:
    """The channels ``start`` to ``end``, and the layers that predict them.

    ``starts`` are those of all groups, and the channels from ``base`` on are the tail.
    ``features`` is how many inputs come from the hyperlatents.
    """

    def __init__(
        self,
        tensors: Mapping[str, NDArray[Any]],
        starts: Sequence[int],
        base: int,
        features: int,
        number: int,
    ) -> None:
        self.start, self.end = start, end = starts[number : number + 2]
        self.channels = end - start
        of = functools.partial(layer, tensors)
        largest = tensors["largest"].astype(np.int64)
        magnitude = np.minimum(largest, LARGEST_MAGNITUDE)
        known, own = magnitude[:start], magnitude[start:end]
        knots = np.full(KNOTS, APART)
        #: The first of the channels that the second pass sees of the first one.
        self.seen = 0 if start < base else start
        taps = tensors[f"context{number}.weight"].shape[1] // (end - self.seen)
        self.taps = CHECKERBOARD if taps == len(CHECKERBOARD) else BESIDE
        self.context = of(f"context{number}", largest[self.seen : end], taps=taps)
        level = tensors["levels"].astype(np.int64)[largest[:start]]
        self.around = of(f"around{number}", level, taps=len(SQUARE)) if start else None
        #: For each of the two passes.
        self.magnitude = [
            of(f"magnitude{number}.{second}", known, 8 * known, knots, *[4 * own] * second)
            for second in (0, 1)
        ]
        inside = (self.around.outputs if self.around else 0) + self.context.outputs
        given = activations(features), knots, largest[:start], activations(inside)
        self.hidden = of(f"hidden{number}", *given)
        self.output = of(f"output{number}", np.full(self.hidden.outputs, HIDDEN_LIMIT))
