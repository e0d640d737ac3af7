"""Latents -> integers: rounded to the nearest, or chosen by rate and distortion."""

from __future__ import annotations

import math
from typing import Any, Protocol

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from ..arrays import Floats, Ints
from .integers import STEP_UNITS
from .range_coder import SYMBOL_LIMIT, Coder, Prediction, SymbolEncoder, Tables

# D + lambda R is minimised, with the squared error D in squared steps and the rate R in bits.
# Where the step is fine, D = step^2 / 12 and falls by 2 ln 2 times itself a bit: 0.1155.
# Coarser steps want more; of 0.08 to 0.2 this served steps of 0.25 to 1.4 best together
# (benchmarks.effort, a third of the photos).  Other weights for coarser lattice levels, which
# the finer ones are predicted from, saved nothing.
RATE_WEIGHT = 0.15

EFFORT_OF_RATE = 3  # one pass of rate and distortion, in about the time of rounding
# Rate-distortion-optimised integers err more than rounded ones: at log2 of these steps as much
# as rounding with a step coarser by such a part.  Between what was measured on latents like
# Stable Diffusion 1's (0.05, 0.10 and 0.16 at steps of 0.25, 0.5 and 1; benchmarks.effort) and
# on sd-mini's of photos held out from training (0.02, 0.06, 0.09 and 0.17 up to a step of 2).
FINER = (-3, -2, -1, 0, 1), (0.01, 0.03, 0.07, 0.12, 0.17)
# Rounds of `_descend` by effort.  Chosen: each doubling of the time saves 0.1 to 0.7 % more at
# steps of 0.25 to 1 (benchmarks.effort).
ROUNDS = {6: 8, 7: 16, 8: 32, 9: 64}

# How far from a changed integer `_descend` looks for what it did to the other integers' bits.
# The taps of the finest lattice reach 3.  With 2 it began to keep what made things worse.
INFLUENCE = 3
# Changes of one round are farther apart than INFLUENCE, and after this many rounds, when
# little is left to gain that way, than twice that, where they do not blur each other.  All
# are tried again then: on one photo, in 64 rounds, 0.1 to 1.5 % more at steps of 0.25 to 1.
CROWDED_ROUNDS = 32


class Prior(Protocol):
    """Predicts latents (h, w, C) of any quantisation step from themselves alone."""

    def code(self, coder: Coder, height: int, width: int, step: int) -> Ints:
        """Code latents' integers; see `lattice.LatticePrior.code`."""
        ...


def encode(prior: Prior, latents: NDArray[Any], step: int, effort: int) -> bytes:
    """The payload of latents (h, w, C), in the latents' unit.

    ``step`` is the quantisation step in 1/1024 of that unit, 1 to 65535.  ``effort`` is 0 to
    9: up to 2 it rounds, up to 5 it weighs rate against distortion in one pass, and above it
    tries alternatives in ever more passes, each about the time of one encoding.  With the
    same step, more effort means fewer bytes and a larger error; at equal error, fewer bytes
    (see `equal_error`).
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
    """The step at which this effort errs about as much as rounding does at ``step``."""
    if effort < EFFORT_OF_RATE:
        return step
    finer = np.interp(math.log2(step / STEP_UNITS), *FINER)
    return max(1, round(step * (1 - float(finer))))


class Quantizer:
    """A `range_coder.Coder` that rounds latents as they are coded, and writes them.

    ``latents`` (h, w, C) and ``hyper`` are in units of the quantisation step; ``changed`` is the
    map of `changes`, where they are told by what changes.
    """

    # `mini` does without the choice below: its decoder is trained on rounded latents.  On seven
    # photos held out from training, at the best weight (0.015), it saved 0.2 to 0.4 % at equal
    # PSNR and 0.4 to 1.3 % at equal SSIMULACRA2, and at 0.07 lost 1 to 5 %; its hyperlatents
    # alone save more without any loss (models/refinement.py).

    def __init__(
        self,
        tables: Tables,
        latents: NDArray[Any],
        hyper: NDArray[Any],
        changed: NDArray[np.bool_] | None = None,
    ) -> None:
        self._tables = tables
        self._volumes = {"latents": latents, "hyper": hyper}
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
        """The payload, once the prior has coded everything."""
        return self._encoder.bytes()


class RateDistortionQuantizer(Quantizer):
    """A `Quantizer` that takes the next but nearest integer where its bits are worth it.

    ``weight`` is lambda, in squared steps a bit.  What a choice does to the bits of later
    symbols is not seen here.
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
    """A `range_coder.Coder` of given symbols that writes nothing and notes bits.

    ``bits`` (h, w, C) are those of the symbols, ``others_bits`` what others would take in
    their places, one at a time and with all else as it is.
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
    """Symbols of a smaller D + lambda R, found by trying others and keeping what helped.

    Each round changes the most promising of the symbols not yet tried, far enough apart that
    what each does to the bits of those predicted from it is seen in the bits around it.
    """

    def survey(symbols: Ints) -> tuple[Floats, Floats]:
        """Bits of the places (h, w), and what the others take in addition (h, w, C)."""
        coder = _Survey(symbols, _other(latents, symbols))
        prior.code(coder, symbols.shape[0], symbols.shape[1], step)
        return coder.bits.sum(2), coder.others_bits - coder.bits

    def lagrangian(symbols: Ints, bits: Floats) -> float:
        return float(((latents - symbols) ** 2).sum() + RATE_WEIGHT * bits.sum())

    first = symbols
    bits, more = survey(first)
    first_cost = lagrangian(first, bits)
    untried = np.ones(symbols.shape, bool)
    for number in range(rounds):
        if number == CROWDED_ROUNDS:
            untried[:] = True
        apart = INFLUENCE if number < CROWDED_ROUNDS else 2 * INFLUENCE
        others = _other(latents, symbols)
        worse = (latents - others) ** 2 - (latents - symbols) ** 2
        # What is known before the trial: without the bits of those predicted from it.
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
        # Around what was undone, the bits are as they were.
        around = np.zeros(bits.shape)
        around[undone[:2]] = 1
        around = _windows(around, INFLUENCE, 0).max((2, 3)) > 0
        bits = np.where(around, bits, trial_bits)
        more = np.where(around[:, :, None], more, trial_more)
        symbols = trial
    return symbols if lagrangian(symbols, survey(symbols)[0]) < first_cost else first


def _peaks(promise: Floats, apart: int) -> NDArray[np.bool_]:
    """The finite values of a plane (h, w) that nothing within ``apart`` exceeds; ties broken."""
    rank = np.empty(promise.shape)
    rank.flat[np.argsort(promise, axis=None, kind="stable")] = np.arange(promise.size)
    largest = _windows(rank, apart, -1).max((2, 3))
    peaks: NDArray[np.bool_] = (rank == largest) & np.isfinite(promise)
    return peaks


def _windows(plane: NDArray[Any], reach: int, beyond: float) -> NDArray[Any]:
    """Views (h, w, 2 reach + 1, 2 reach + 1) of what lies around each place of a plane."""
    padded = np.pad(plane, reach, constant_values=beyond)
    return sliding_window_view(padded, (2 * reach + 1, 2 * reach + 1))
