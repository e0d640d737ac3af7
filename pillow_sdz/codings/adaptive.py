"""The prior for latents without a trained prior: it learns while it codes.

Each channel has two linear regressions.  They are refitted by least squares while the latents are
coded (Li and Orchard 2001, "Edge-directed prediction for lossless compression of natural images").
One predicts each value from its neighbours, and from the errors that earlier channels had at this
place.  The other predicts the error of the first.  Encoder and decoder see the same symbols, and
round every step of the arithmetic alike, so both learn the same.

A photo has two to three hundred waves, and each takes some dozens of calls of numpy.
docs/adaptive.md specifies the prior.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..arrays import Floats, Ints, Singles
from .calibration import QUARTERS, Calibration
from .coding import WORK_PER_BYTE
from .frame_coders import Apart, FrameCoder, checked_steps
from .integers import LOG_UNITS, STEP_UNITS, logarithm, rounded
from .range_coder import Coder, DamagedPayload
from .waves import CHANNEL_DELAY, OWN, Layout, Offsets, Wave, waves

# Constants without another origin are measured and rounded: docs/measurements.md#adaptive.
UNIT_BITS = 6  # values, errors and magnitudes are in 1/64 of a step
UNIT = 1 << UNIT_BITS
VALUE_LIMIT = (1 << 18) - 1  # 4096 steps: the sums of products between two refits are below 2 ** 53
WEIGHT_BITS = 16
SAMPLE_BITS = 20  # the factor of a sample is in 2 ** -20

BEFORE: Offsets = [(0, 0), (0, 1), (1, 0), (0, -1), (-1, 0)]  # (row, column)
# All places of BEFORE are used in the last NEAR channels, or in the last NEAR_OF_FEW if there are
# at most FEW channels.
NEAR, NEAR_OF_FEW, FEW = 1, 3, 8
# The same place is used in the last FAR channels, or in the last WIDE.  More channels take longer:
# the time of a refit grows with their square and more.
FAR, WIDE = 12, 31

PRIOR = 1 << 17  # the first weights count as much as 32 samples of size 1
FLOOR = 1 << 12  # one such sample is added to the diagonal: far above the errors of rounding
RELATIVE_FLOOR = 2.0**-10  # this part of the diagonal is added: it bounds the condition number
DECAY = 5  # a wave keeps 31/32 of what was learned before: photos change from place to place
REFIT_WAVES = 8  # the most waves between two refits; a refit costs as much as some waves
LEARNING_WAVES = 24  # a refit comes after each wave at first, later after 2, 3, ...; see `refit`
REFIT_PLACES = 1 << 13  # the most rows times waves between two refits, so that sums are exact

LEAST_MAGNITUDE = 4  # in 1/64: no error is expected to be below 0.06 steps
INITIAL_ERROR = 3 * STEP_UNITS // 10  # in 1/1024 of the latents' unit
# From the logarithm of the magnitude to a scale in quarters of an octave.  Scale 0 is 2 ** -5
# steps.  A magnitude is 140/256 octaves above the scale (docs/measurements.md#adaptive).
# `logarithm` is 15/256 too low on average.  32 rounds to quarters.
SCALE_OFFSET = 5 * LOG_UNITS - 140 + 15 + 32


class _Regressions:
    """Two linear regressions for each channel of each frame.

    Weights (F, K, C, 1) are integers in 2 ** -16.
    """

    def __init__(self, frames: int, channels: int, initial: Ints) -> None:
        """``initial`` has the first weights (K,) of each channel."""
        inputs = len(initial)
        weights = initial.astype(np.float64)[:, None, None]
        self._weights = np.tile(weights, (frames, 1, channels, 1))
        moments = np.diag(np.full(inputs + 1, float(PRIOR)))
        moments[:-1, -1] = moments[-1, :-1] = PRIOR * initial >> WEIGHT_BITS
        self._moments = np.tile(moments, (frames, channels, 1, 1))
        # The samples (F, K + 1, C, n) since the last refit, and the channels that have some.
        self._samples = np.zeros((frames, inputs + 1, channels, 0), np.float32)
        self._count = 0
        self._first, self._last = channels, 0

    def predict(self, inputs: Singles, channels: slice) -> Floats:
        """Predictions (F, A, R), in 2 ** -16 of their unit, from inputs (F, K, A, R)."""
        predicted: Floats = np.einsum("fkar,fkar->far", inputs, self._weights[:, :, channels])
        return predicted

    def learn(self, inputs: Singles, importance: Singles, channels: slice) -> None:
        """Learn from samples (F, K + 1, A, R): inputs, and what they should have predicted.

        The samples are changed: each is multiplied by its ``importance`` (F, A, R).
        """
        count = self._count + inputs.shape[3]
        if count > self._samples.shape[3]:
            more = np.zeros((*self._samples.shape[:3], 2 * count), np.float32)
            more[..., : self._count] = self._samples[..., : self._count]
            self._samples = more
        part = self._samples[..., self._count : count]
        part[:, :, : channels.start] = part[:, :, channels.stop :] = 0
        inputs *= importance[:, None]
        np.floor(inputs, out=part[:, :, channels])
        self._count = count
        self._first = min(self._first, channels.start)
        self._last = max(self._last, channels.stop)

    def refit(self, kept: float) -> None:
        """Compute the best weights for all samples; ``kept`` is the weight of the older ones.

        Channels without new samples stay as they are.
        """
        these = slice(self._first, self._last)
        samples = self._samples[:, :, these, : self._count].astype(np.float64).swapaxes(1, 2)
        self._count, self._first, self._last = 0, self._samples.shape[2], 0
        moments = self._moments[:, these]
        moments *= kept
        moments += samples @ samples.swapaxes(2, 3)
        frames, channels, size, _ = moments.shape
        weights = solve(moments.reshape(-1, size, size)).reshape(frames, channels, size - 1)
        self._weights[:, :, these, 0] = weights.swapaxes(1, 2)


def solve(moments: Floats) -> Floats:
    """The weights (M, K), in 2 ** -16, from moments (M, K + 1, K + 1) with the output last.

    Gaussian elimination in float64.  Each operation is rounded by itself, so the result is the same
    everywhere.  The matrix is positive, so no pivots are searched.
    """
    inputs = moments.shape[1] - 1
    # numpy's inner loops go over all matrices.  A row of one matrix is too short for them.
    a = moments.transpose(1, 2, 0).copy()
    diagonal = np.einsum("iim->im", a)
    diagonal += diagonal * RELATIVE_FLOOR + FLOOR
    for i in range(inputs):
        factor = a[i + 1 : inputs, i] / a[i, i]
        a[i + 1 : inputs, i + 1 :] -= factor[:, None] * a[i, i + 1 :]
    weights = a[:-1, -1]
    for i in reversed(range(inputs)):
        weights[i] /= a[i, i]
        weights[:i] -= a[:i, i] * weights[i]
    found: Floats = np.clip(np.floor(weights * (1 << WEIGHT_BITS) + 0.5), -(1 << 20), 1 << 20)
    return found.T


def _limited(x: Floats) -> Floats:
    return np.clip(x, -VALUE_LIMIT, VALUE_LIMIT)


def _sum(magnitudes: Singles) -> Singles:
    """The sums over axis 1.  float32 holds them: they are sums of few integers up to 2 ** 18."""
    found: Singles = magnitudes.sum(1)
    return np.minimum(found, np.float32(VALUE_LIMIT))


class _Expectation(NamedTuple):
    """The inputs at the places of a wave, (F, K + 1, A, R) each, and what they predict.

    The last input of each is the value that should have been predicted.  It is known after the
    coding.
    """

    values: Singles
    errors: Singles
    mean: Floats  # in 2 ** -22 of a step
    magnitude: Floats  # the expected error of the mean, in the same unit

    @property
    def eighths(self) -> Ints:
        """The means in eighths of a step."""
        return np.floor(self.mean * 2.0**-19 + 0.5).astype(np.int64)

    @property
    def bins(self) -> Ints:
        """The magnitudes in quarters of an octave."""
        octaves = logarithm(np.floor(self.magnitude * 2.0**-12)).astype(np.int64)
        return octaves + SCALE_OFFSET >> 6


class _Pictures:
    """The known latents of frames, and what was learned from them."""

    def __init__(self, height: int, width: int, channels: int, steps: Ints, far: int) -> None:
        near = NEAR_OF_FEW if channels <= FEW else NEAR
        self._near, self._far = min(near, channels - 1), min(far, channels - 1)
        self._height = height
        # Values and errors (2, F, n).  ``far`` channels without errors come before the first
        # channel, so that every channel has as many channels before it.
        layout = self._layout = Layout.by_channel(height, width, channels, self._far)
        self._known = np.zeros((2, len(steps), layout.size), np.float32)
        own = [layout.offset(*offset) for offset in OWN]
        others = [layout.offset(*o, -k) for k in range(1, self._near + 1) for o in BEFORE]
        others += [layout.offset(0, 0, -k) for k in range(self._near + 1, self._far + 1)]
        self._own = np.array(own)[:, None, None]
        self._all = np.array([*own, *others])[:, None, None]
        one = np.minimum(UNIT * STEP_UNITS // steps, VALUE_LIMIT)
        usual = np.minimum(UNIT * INITIAL_ERROR // steps, VALUE_LIMIT)
        self._one, self._usual = (x.astype(np.float32).reshape(-1, 1, 1) for x in (one, usual))
        self._softness = np.maximum(UNIT, self._usual)
        half, quarter, tenth = (1 << WEIGHT_BITS) // np.array([2, 4, 10])
        of_values = [half, half] + [0] * (len(OWN) - 2 + len(others) + 1)
        of_errors = [tenth] * len(OWN) + [0] * (2 * self._near + 1) + [quarter]
        self._of_values = _Regressions(len(steps), channels, np.array(of_values))
        self._of_errors = _Regressions(len(steps), channels, np.array(of_errors))
        self._waves = 0  # since the last refit

    def expect(self, wave: Wave) -> _Expectation:
        """Predict the wave's symbols."""
        places = self._layout.places(wave)
        # No place is outside.  numpy takes twice as long to check that as to clip.
        near = self._known[1].take(places + self._all, axis=1, mode="clip")
        own, others = len(OWN), near.shape[1] - len(OWN)
        frames, _, *shape = near.shape
        values = np.empty((frames, own + others + 2, *shape), np.float32)
        values[:, :own] = self._known[0].take(places + self._own, axis=1, mode="clip")
        values[:, own:-2] = near[:, own:]
        values[:, -2] = self._one
        np.abs(near, out=near)  # the signs are not needed any more
        errors = np.empty((frames, own + 2 * self._near + 3, *shape), np.float32)
        errors[:, :own] = near[:, :own]
        for k in range(self._near):
            at = own + k * len(BEFORE)
            errors[:, own + 2 * k] = near[:, at]
            errors[:, own + 2 * k + 1] = _sum(near[:, at + 1 : at + len(BEFORE)])
        errors[:, -3] = _sum(near[:, own + self._near * len(BEFORE) :])
        errors[:, -2] = self._usual
        mean = self._of_values.predict(values[:, :-1], wave.channels)
        magnitude = self._of_errors.predict(errors[:, :-1], wave.channels)
        magnitude = np.clip(magnitude, LEAST_MAGNITUDE << WEIGHT_BITS, VALUE_LIMIT << WEIGHT_BITS)
        return _Expectation(values, errors, mean, magnitude)

    def learn(self, wave: Wave, expected: _Expectation, symbols: Ints) -> None:
        """Learn from the wave's symbols (F, n)."""
        value = np.zeros(expected.mean.shape)
        value[:, wave.valid] = symbols * UNIT
        error = _limited(value - np.floor(expected.mean * 2.0**-WEIGHT_BITS + 0.5))
        value = _limited(value)
        kept = np.stack([value, error])[..., wave.valid]
        self._layout.keep(np.moveaxis(self._known, -1, 0), wave.places, np.moveaxis(kept, -1, 0))
        # An error says less at a place where a large error was expected.  So samples are divided by
        # the expected error plus a constant.  It is measured: docs/measurements.md#adaptive.
        magnitude = np.floor(expected.magnitude * 2.0**-WEIGHT_BITS)
        importance = np.floor(2.0 ** (SAMPLE_BITS + UNIT_BITS) / (magnitude + self._softness))
        importance = (importance * wave.valid * 2.0**-SAMPLE_BITS).astype(np.float32)
        expected.values[:, -1] = value
        expected.errors[:, -1] = np.abs(error)
        self._of_values.learn(expected.values, importance, wave.channels)
        self._of_errors.learn(expected.errors, importance, wave.channels)
        self._waves += 1

    def refit(self, time: int) -> None:
        """Compute new weights, if it is time for that."""
        usual = min(REFIT_WAVES, 1 + time // LEARNING_WAVES, REFIT_PLACES // self._height)
        if self._waves >= max(1, usual):
            kept = 1 << WEIGHT_BITS
            for _ in range(self._waves):
                kept -= kept >> DECAY
            for regressions in (self._of_values, self._of_errors):
                regressions.refit(kept / (1 << WEIGHT_BITS))
            self._waves = 0


# Without a limit, a payload of a few bytes could decode to any number of values.  So the payload's
# bytes limit the work, which is counted in values: WORK_PER_BYTE for each byte, and FREE_WORK.  A
# wave of a channel takes at least as long as 16 values.  Chosen: docs/measurements.md#adaptive.
FREE_WORK = 1 << 18
WAVE_WORK = 16


def work(height: int, width: int, channels: int) -> int:
    """The work to code latents (h, w, C): the number of values that take as long.

    Each channel has places in the waves of one channel, and adds its delay to the picture's waves.
    """
    return channels * max(height * width, WAVE_WORK * (waves(height, width, 1) + CHANNEL_DELAY))


def check_work(height: int, width: int, channels: int, size: int) -> None:
    """DamagedPayload if a payload of ``size`` bytes is too small for the work of its latents."""
    if work(height, width, channels) > FREE_WORK + WORK_PER_BYTE * size:
        msg = f"latents {(channels, height, width)} in {size} bytes are too many"
        raise DamagedPayload(msg)


class AdaptivePrior:
    """Predicts latents (h, w, C) of any kind and any step.  It needs no training."""

    def __init__(self, channels: int, far: int = FAR) -> None:
        """``far`` is how many of the earlier channels predict a value."""
        self.channels, self._far = channels, far

    def code(self, coder: Coder, height: int, width: int, step: int) -> Ints:
        """Code the integers of latents (height, width, C), and return them.

        The coder knows them as "latents".  ``step`` is the quantisation step in 1/1024 of the
        latents' unit, 1 to 65535.  Only the first expected errors depend on it.
        """
        frames = self.code_frames(Apart([coder]), height, width, [step])
        return np.asarray(frames[0])

    def code_frames(self, coder: FrameCoder, height: int, width: int, steps: Sequence[int]) -> Ints:
        """Code the integers (F, height, width, C) of frames with a step each, as `code` does."""
        units = checked_steps(height, width, steps)
        symbols = np.zeros((len(steps), height, width, self.channels), np.int64)
        pictures = _Pictures(height, width, self.channels, units, self._far)
        calibration = Calibration(len(steps), QUARTERS)
        for time in range(waves(height, width, self.channels)):
            wave = Wave.of(time, height, width, self.channels)
            if wave is None:
                continue
            expected = pictures.expect(wave)
            index = wave.places
            bins, eighths = expected.bins[:, wave.valid], expected.eighths[:, wave.valid]
            scale = calibration.scales(bins)
            mean = rounded(eighths, scale)
            found = coder.code_frames("latents", index, mean, scale)
            calibration.learn(bins, eighths, found)
            symbols[:, index[0], index[1], index[2]] = found
            pictures.learn(wave, expected, found)
            pictures.refit(time)
        return symbols
