"""Latents -> integers: rounded to the nearest one, or chosen for what decoders make of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arrays import Floats, Ints, Quantisation
from .integers import STEP_UNITS
from .places import doubled
from .priors import Prior
from .range_coder import SYMBOL_LIMIT, Prediction, SymbolEncoder, Tables
from .rate_axis import LAST

# The constants are measured or chosen: docs/measurements.md#quantize.

# Lambda in D + lambda R, which is minimised: D is a squared error in squared steps, R is the rate
# in bits.  For each log2 of a step.  Measured.
RATE_WEIGHTS = (-0.75, 0.25), (0.05, 0.1)
# The same for latents on an axis of rates, at two of its places.  Measured.
AXIS_PLACES, AXIS_WEIGHTS = (0.2, 0.6), (0.005, 0.04)
# The part of the mean error around a place that its own error is to make up for.  Measured.
FEEDBACK = 0.75
REACH = 2  # places to each side whose errors are seen.  Measured.
AT_ONCE = 4096  # symbols whose errors around are gathered at once: 2 MB.  Chosen.

# Passes over the latents by effort.  Lower efforts round.  Each pass takes a little more time than
# rounding.  Measured: two passes may be worse than one, and more than three gain nothing.
PASSES = {3: 1, 4: 1, 5: 1, 6: 3, 7: 3, 8: 3, 9: 3}


def encode(prior: Prior, latents: NDArray[Any], step: int, effort: int) -> bytes:
    """The payload of latents (h, w, C), in the latents' unit.

    ``step`` is the quantisation step in 1/1024 of that unit, 1 to 65535.  ``effort`` is 0 to 9.
    From 0 to 2, latents are rounded.  From 3 on, an integer may also be the second nearest one, if
    that saves enough bits, or if it makes up for the errors around it (see
    `RateDistortionQuantizer`).  Then the latents have a larger error, but their pictures have a
    smaller one, in fewer bytes.
    """
    height, width, _ = latents.shape
    steps = latents.astype(np.float64) * (STEP_UNITS / step)
    steps = np.clip(steps, -SYMBOL_LIMIT, SYMBOL_LIMIT)
    tables = Tables.shipped()
    if effort not in PASSES:
        quantizer = Quantizer(tables, steps, np.zeros(0))
        prior.code(quantizer, height, width, step)
        return quantizer.bytes()
    weight = float(np.interp(math.log2(step / STEP_UNITS), *RATE_WEIGHTS))
    symbols = None
    for _ in range(PASSES[effort]):
        quantizer = RateDistortionQuantizer(tables, steps, weight, symbols)
        symbols = prior.code(quantizer, height, width, step)
    return quantizer.bytes()


def rate_weights(places: Quantisation) -> Floats:
    """Lambda at places on the axis of rates, in an array of the same shape."""
    share = np.asarray(places) / LAST
    found: Floats = np.exp(np.interp(share, AXIS_PLACES, np.log(AXIS_WEIGHTS)))
    return found


class Quantizer:
    """A `range_coder.Coder` that rounds latents and writes them.

    ``latents`` (h, w, C) and ``hyper`` are in units of the quantisation step.  ``changed`` is the
    map of `changes`, if the latents are stored as the difference from the frame before.
    ``besides`` has other values to be coded, by the name of their volume.
    """

    def __init__(
        self,
        tables: Tables,
        latents: NDArray[Any],
        hyper: NDArray[Any],
        changed: NDArray[np.bool_] | None = None,
        besides: Mapping[str, NDArray[Any]] | None = None,
    ) -> None:
        self._tables = tables
        self._volumes = {"latents": latents, "hyper": hyper, **(besides or {})}
        if changed is not None:
            self._volumes["changed"] = changed.astype(np.float32)
        self._encoder = SymbolEncoder(tables)

    def code(self, volume: str, index: tuple[Any, ...], mean: Ints, scale: Ints) -> Ints:
        limited = np.clip(self._volumes[volume][index].ravel(), -SYMBOL_LIMIT, SYMBOL_LIMIT)
        prediction = Prediction.of(mean, scale)
        symbols = self._choose(volume, limited, prediction, index)
        self._encoder.encode(symbols, prediction)
        return symbols

    def _choose(
        self, volume: str, latents: Floats, prediction: Prediction, index: tuple[Any, ...]
    ) -> Ints:
        symbols: Ints = np.rint(latents).astype(np.int64)
        return symbols

    def _second_nearest(
        self,
        latents: Floats,
        nearest: Ints,
        target: Floats,
        prediction: Prediction,
        weight: float | Floats,
    ) -> Ints:
        """The nearest integers, or the second nearest ones where these lower D + lambda R.

        D is the squared distance from ``target``, and ``weight`` is lambda.  The effect on the bits
        of later symbols is ignored.
        """
        beside = np.where(latents > nearest, nearest + 1, nearest - 1)
        other = np.clip(beside, -SYMBOL_LIMIT, SYMBOL_LIMIT)
        saved = self._tables.bits(nearest, prediction) - self._tables.bits(other, prediction)
        worse = (target - other) ** 2 - (target - nearest) ** 2
        symbols: Ints = np.where(worse < weight * saved, other, nearest)
        return symbols

    def bytes(self) -> bytes:
        """The payload, after the prior has coded all symbols."""
        return self._encoder.bytes()


class ThriftyQuantizer(Quantizer):
    """A `Quantizer` that takes the second nearest integer of latents where it saves enough bits.

    ``weights`` has lambda for each hyperlatent and its 2x2 latents, or for all of them, in squared
    steps a bit.  Where these 2x2 latents are ``hidden``, the likeliest integers are taken.
    """

    def __init__(
        self,
        tables: Tables,
        latents: NDArray[Any],
        hyper: NDArray[Any],
        weights: Floats,
        changed: NDArray[np.bool_] | None = None,
        besides: Mapping[str, NDArray[Any]] | None = None,
        hidden: NDArray[np.bool_] | None = None,
    ) -> None:
        super().__init__(tables, latents, hyper, changed, besides)
        self._hidden = None if hidden is None else doubled(hidden, *latents.shape[:2])
        of_cells = np.broadcast_to(weights, hyper.shape[:2])
        self._weights = doubled(of_cells, *latents.shape[:2])

    def _choose(
        self, volume: str, latents: Floats, prediction: Prediction, index: tuple[Any, ...]
    ) -> Ints:
        symbols = super()._choose(volume, latents, prediction, index)
        if volume != "latents":
            return symbols
        # Only an integer that is nearer to the centre takes fewer bits.
        above = symbols - prediction.centre
        error = symbols - latents
        (places,) = np.nonzero(above * error > 0)
        if len(places):
            weights = np.repeat(self._weights[index[:2]], len(latents) // len(index[0]))[places]
            here, nearest = latents[places], symbols[places]
            table, centre, mirror = prediction
            known = Prediction(table[places], centre[places], mirror[places])
            symbols[places] = self._second_nearest(here, nearest, here, known, weights)
        if self._hidden is not None:
            hidden = np.repeat(self._hidden[index[:2]], len(latents) // len(index[0]))
            symbols = np.where(hidden, prediction.centre, symbols)
        return symbols


class RateDistortionQuantizer(Quantizer):
    """A `Quantizer` that weighs rate against distortion, and diffuses errors.

    ``weight`` is lambda, in squared steps a bit.  D is the squared distance from a target: the
    latent, less a part of the mean error around it.  So errors of neighbours do not add up to a
    shift, which decoders show as another colour.  Noise without low frequencies leaves less in
    their pictures (error diffusion: Floyd and Steinberg, "An adaptive algorithm for spatial
    greyscale", 1976).

    The errors that are known are those of the symbols coded so far.  ``symbols`` of a pass before
    give the others.
    """

    def __init__(
        self,
        tables: Tables,
        latents: Floats,
        weight: float,
        symbols: Ints | None = None,
    ) -> None:
        super().__init__(tables, latents, np.zeros(0))
        self._weight = weight
        height, width, channels = latents.shape
        inside = slice(REACH, REACH + height), slice(REACH, REACH + width)
        # Errors, and 1 where they are known.  There is a border of places without errors.
        errors = np.zeros((height + 2 * REACH, width + 2 * REACH, channels, 2))
        if symbols is not None:
            errors[inside] = np.stack([symbols - latents, np.ones(latents.shape)], axis=3)
        places = np.arange(errors[..., 0].size).reshape(errors.shape[:3])
        self._places, self._errors = places[inside], errors.reshape(-1, 2)
        around = [offset for offset in product(range(-REACH, REACH + 1), repeat=2) if any(offset)]
        self._offsets = np.array([(y * errors.shape[1] + x) * channels for y, x in around])
        self._weights = np.array([1 / math.hypot(y, x) for y, x in around])

    def _choose(
        self, volume: str, latents: Floats, prediction: Prediction, index: tuple[Any, ...]
    ) -> Ints:
        places = self._places[index].ravel()
        target = latents - FEEDBACK * self._mean_error(places)
        nearest = super()._choose(volume, latents, prediction, index)
        symbols = self._second_nearest(latents, nearest, target, prediction, self._weight)
        self._errors[places] = np.stack([symbols - latents, np.ones(latents.shape)], axis=1)
        return symbols

    def _mean_error(self, places: Ints) -> Floats:
        """The weighted mean of the known errors around some places (n,).

        Few known errors are a part of the mean only.
        """
        sums = np.empty((len(places), 2))
        for start in range(0, len(places), AT_ONCE):
            part = slice(start, start + AT_ONCE)
            around = self._errors[places[part, None] + self._offsets]
            sums[part] = np.tensordot(around, self._weights, (1, 0))
        mean: Floats = sums[:, 0] / np.maximum(sums[:, 1], 1)
        return mean
