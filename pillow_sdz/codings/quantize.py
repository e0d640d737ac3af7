"""Latents -> integers: rounded to the nearest one, or chosen by rate and distortion."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from ..arrays import Floats, Ints
from .integers import STEP_UNITS
from .priors import Prior
from .range_coder import SYMBOL_LIMIT, Prediction, SymbolEncoder, Tables

# The constants are measured or chosen: docs/measurements.md#quantize.

# Lambda in D + lambda R, which is minimised: D is the squared error in squared steps, R is the rate
# in bits.  Measured.
RATE_WEIGHT = 0.15

EFFORT_OF_RATE = 3  # chosen: one pass of rate and distortion takes about the time of rounding
# With rate and distortion, the error is larger than with rounding.  For the same error, the step
# must be finer.  For each log2 of a step, this is by which part.  Measured.
FINER = (-3, -2, -1, 0, 1), (0.01, 0.03, 0.07, 0.12, 0.17)
# Rounds of `_descend` by effort.  Chosen.
ROUNDS = {6: 8, 7: 16, 8: 32, 9: 64}

# A changed integer changes the bits of others within this distance.  The taps of the finest lattice
# reach as far.  Measured.
INFLUENCE = 3
# The changes of one round are more than INFLUENCE apart.  After this many rounds, all are tried
# again, more than twice as far apart, so that one does not hide the effect of another.  Measured.
CROWDED_ROUNDS = 32


def encode(prior: Prior, latents: NDArray[Any], step: int, effort: int) -> bytes:
    """The payload of latents (h, w, C), in the latents' unit.

    ``step`` is the quantisation step in 1/1024 of that unit, 1 to 65535.  ``effort`` is 0 to 9.
    From 0 to 2, latents are rounded.  From 3 to 5, one pass weighs rate against distortion.  From 6
    on, more and more passes try alternatives; each takes about the time of one encoding.  With the
    same step, more effort means fewer bytes and a larger error.  With the same error, it still
    means fewer bytes (see `equal_error`).
    """
    height, width, _ = latents.shape
    steps = latents.astype(np.float64) * (STEP_UNITS / step)
    steps = np.clip(steps, -SYMBOL_LIMIT, SYMBOL_LIMIT)
    tables = Tables.shipped()
    quantizer = Quantizer(tables, steps, np.zeros(0))
    if effort >= EFFORT_OF_RATE:
        quantizer = RateDistortionQuantizer(tables, steps, RATE_WEIGHT)
    symbols = prior.code(quantizer, height, width, step)
    if effort in ROUNDS:
        chosen = _descend(prior, steps, symbols, step, ROUNDS[effort])
        quantizer = Quantizer(tables, chosen, np.zeros(0))
        prior.code(quantizer, height, width, step)
    return quantizer.bytes()


def equal_error(step: int, effort: int) -> int:
    """The step at which this effort has about the error that rounding has at ``step``."""
    if effort < EFFORT_OF_RATE:
        return step
    finer = np.interp(math.log2(step / STEP_UNITS), *FINER)
    return round(step * (1 - float(finer)))


class Quantizer:
    """A `range_coder.Coder` that rounds latents and writes them.

    ``latents`` (h, w, C) and ``hyper`` are in units of the quantisation step.  ``changed`` is the
    map of `changes`, if the latents are stored as the difference from the frame before.
    ``besides`` has other values to be coded, by the name of their volume.

    `mini` always rounds: its decoder is trained on rounded latents (docs/measurements.md#quantize).
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
        symbols = self._choose(limited, prediction)
        self._encoder.encode(symbols, prediction)
        return symbols

    def _choose(self, latents: NDArray[Any], prediction: Prediction) -> Ints:
        symbols: Ints = np.rint(latents).astype(np.int64)
        return symbols

    def bytes(self) -> bytes:
        """The payload, after the prior has coded all symbols."""
        return self._encoder.bytes()


class RateDistortionQuantizer(Quantizer):
    """A `Quantizer` that takes the second nearest integer if that saves enough bits.

    ``weight`` is lambda, in squared steps a bit.  The effect on the bits of later symbols is
    ignored.
    """

    def __init__(self, tables: Tables, latents: Floats, weight: float) -> None:
        super().__init__(tables, latents, np.zeros(0))
        self._weight = weight

    def _choose(self, latents: NDArray[Any], prediction: Prediction) -> Ints:
        nearest = super()._choose(latents, prediction)
        other = _other(latents, nearest)
        saved = self._tables.bits(nearest, prediction) - self._tables.bits(other, prediction)
        worse = (latents - other) ** 2 - (latents - nearest) ** 2
        return np.where(worse < self._weight * saved, other, nearest)


def _other(latents: Floats, symbols: Ints) -> Ints:
    """The integer next to each symbol, on the latent's side."""
    beside = np.where(latents > symbols, symbols + 1, symbols - 1)
    other: Ints = np.clip(beside, -SYMBOL_LIMIT, SYMBOL_LIMIT)
    return other


class _Survey:
    """A `range_coder.Coder` of given symbols that counts bits and writes nothing.

    ``bits`` (h, w, C) has the bits of each symbol.  ``others_bits`` has the bits of each symbol's
    alternative, if it alone were changed.
    """

    def __init__(self, symbols: Ints, others: Ints) -> None:
        self._tables = Tables.shipped()
        self._symbols, self._others = symbols, others
        self.bits, self.others_bits = np.zeros(symbols.shape), np.zeros(symbols.shape)

    def code(self, volume: str, index: tuple[Any, ...], mean: Ints, scale: Ints) -> Ints:
        prediction = Prediction.of(mean, scale)
        symbols: Ints = self._symbols[index].ravel()
        shape = self.bits[index].shape
        self.bits[index] = self._tables.bits(symbols, prediction).reshape(shape)
        others = self._others[index].ravel()
        self.others_bits[index] = self._tables.bits(others, prediction).reshape(shape)
        return symbols


def _descend(prior: Prior, latents: Floats, symbols: Ints, step: int, rounds: int) -> Ints:
    """Symbols with a smaller D + lambda R.  Other symbols are tried, and kept if they help.

    Each round changes the most promising symbols that have not been tried.  They are far apart, so
    the bits around a symbol show the effect of its change alone.
    """

    def survey(symbols: Ints) -> tuple[Floats, Floats]:
        """The bits of each place (h, w), and how many more each alternative takes (h, w, C)."""
        coder = _Survey(symbols, _other(latents, symbols))
        prior.code(coder, symbols.shape[0], symbols.shape[1], step)
        return coder.bits.sum(2), coder.others_bits - coder.bits

    def lagrangian(symbols: Ints, bits: Floats) -> float:
        return float(((latents - symbols) ** 2).sum() + RATE_WEIGHT * bits.sum())

    bits, more = survey(symbols)
    best, lowest = symbols, lagrangian(symbols, bits)
    untried = np.ones(symbols.shape, bool)
    for number in range(rounds):
        if number == CROWDED_ROUNDS:
            untried[:] = True
        apart = INFLUENCE if number < CROWDED_ROUNDS else 2 * INFLUENCE
        others = _other(latents, symbols)
        worse = (latents - others) ** 2 - (latents - symbols) ** 2
        # What is known of the gain before the trial: the effect on other symbols' bits is not.
        promise = np.where(untried, -worse - RATE_WEIGHT * more, -np.inf)
        rows, columns = np.nonzero(_peaks(promise.max(2), apart))
        if not len(rows):
            break
        places = (rows, columns, promise[rows, columns].argmax(1))
        untried[places] = False
        trial = symbols.copy()
        trial[places] = others[places]
        trial_bits, trial_more = survey(trial)
        change = _windows(trial_bits - bits, INFLUENCE, 0).sum((2, 3))
        kept = worse[places] + RATE_WEIGHT * change[rows, columns] < 0
        undone = tuple(axis[~kept] for axis in places)
        trial[undone] = symbols[undone]
        # Around a change that was undone, the bits are those from before.
        around = np.zeros(bits.shape)
        around[undone[:2]] = 1
        around = _windows(around, INFLUENCE, 0).max((2, 3)) > 0
        bits = np.where(around, bits, trial_bits)
        more = np.where(around[:, :, None], more, trial_more)
        symbols = trial
        # A lower effort ends after this round.  Its result is kept, in case that it stays the best.
        if (
            number + 1 in ROUNDS.values()
            and (cost := lagrangian(symbols, survey(symbols)[0])) < lowest
        ):
            best, lowest = symbols, cost
    return best


def _peaks(promise: Floats, apart: int) -> NDArray[np.bool_]:
    """The finite values of a plane (h, w) that are the largest within ``apart``, without ties."""
    rank = np.empty(promise.shape)
    rank.flat[np.argsort(promise, axis=None, kind="stable")] = np.arange(promise.size)
    largest = _windows(rank, apart, -1).max((2, 3))
    peaks: NDArray[np.bool_] = (rank == largest) & np.isfinite(promise)
    return peaks


def _windows(plane: NDArray[Any], reach: int, beyond: float) -> NDArray[Any]:
    """Views (h, w, 2 reach + 1, 2 reach + 1) of the values around each place of a plane."""
    padded = np.pad(plane, reach, constant_values=beyond)
    return sliding_window_view(padded, (2 * reach + 1, 2 * reach + 1))
