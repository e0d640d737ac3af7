"""The prior for latents without a trained prior: it learns while it codes.

Each channel has two linear regressions.  They are refitted by least squares while the latents are
coded (Li and Orchard 2001, "Edge-directed prediction for lossless compression of natural images").
One predicts each value from its neighbours, and from the errors of the channels before at this
place.  The other predicts the error of the first.  Encoder and decoder see the same symbols and
compute in integers, so both learn the same.

The places of one anti-diagonal wave, in all channels, do not depend on each other.  A photo has two
to three hundred waves, and each takes some dozens of calls of numpy.  docs/adaptive.md specifies
the prior.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..arrays import Floats, Ints
from .integers import LOG_UNITS, STEP_LIMIT, STEP_UNITS, logarithm
from .range_coder import Coder, DamagedPayload

# Constants without another origin are measured and rounded: docs/measurements.md#adaptive.
UNIT_BITS = 6  # values, errors and magnitudes are in 1/64 of a step
UNIT = 1 << UNIT_BITS
VALUE_LIMIT = (1 << 18) - 1  # 4096 steps: a wave's sums of 2 ** 15 products stay below 2 ** 53
WEIGHT_BITS = 16
SAMPLE_BITS = 20  # the factor of a sample is in 2 ** -20

Offsets = list[tuple[int, int]]

# (row, column).  In a wave's own channel, neighbours with column + 2 row < 0 are known.
OWN: Offsets = [(0, -1), (-1, 0), (-1, -1), (-1, 1), (0, -2), (-2, 0), (-1, -2), (-2, -1)]
# A channel is three waves behind the one before it, where column + 2 row < 3 is known.
BEFORE: Offsets = [(0, 0), (0, 1), (1, 0), (0, -1), (-1, 0)]
CHANNEL_DELAY = 3
NEAR = 3  # of this many channels before, all places of BEFORE are used
FAR = 15  # of this many channels before, the same place is used

PRIOR = 1 << 17  # the first weights count as much as 32 samples of size 1
FLOOR = 1 << 12  # added to the diagonal, one such sample: far above the errors of rounding
RELATIVE_FLOOR = 10  # 2 ** -10 of the diagonal is added as well: bounds the condition number
DECAY = 5  # a wave keeps 31/32 of what was learned before: photos change from place to place
REFIT_WAVES = 4  # waves from refit to refit; a refit costs as much as two waves of a small picture
LEARNING_WAVES = 32  # at first 1, after this many waves 2, after twice as many 3

LEAST_MAGNITUDE = 10  # in 1/64: no error is expected to be below 0.15 steps
INITIAL_ERROR = 3 * STEP_UNITS // 10  # in 1/1024 of the latents' unit
# From the logarithm of the magnitude to a scale.  Scale 0 is 2 ** -5 steps.  A magnitude is 140/256
# octaves above the scale (docs/measurements.md#adaptive).  `logarithm` is 15/256 too low on
# average.  16 rounds to eighths.
SCALE_OFFSET = 5 * LOG_UNITS - 140 + 15 + 16


class _Wave(NamedTuple):
    """Places that are coded at once, (n,) each, sorted by channel.

    ``bounds`` has each channel with places in the wave, and the slice of its places.
    """

    rows: Ints
    columns: Ints
    channels: Ints
    bounds: list[tuple[int, slice]]

    @classmethod
    def of(cls, time: int, height: int, width: int, channels: int) -> _Wave:
        """All places with column + 2 row + 3 channel = ``time``."""
        start = time - CHANNEL_DELAY * np.arange(channels)
        first = np.maximum(0, (start - width + 2) // 2)
        counts = np.maximum(0, np.minimum(height - 1, start // 2) + 1 - first)
        ends = np.cumsum(counts)
        channel = np.repeat(np.arange(channels), counts)
        rows = np.arange(ends[-1]) + (first + counts - ends)[channel]
        active = np.flatnonzero(counts).tolist()
        bounds = [(c, slice(int(ends[c] - counts[c]), int(ends[c]))) for c in active]
        return cls(rows, start[channel] - 2 * rows, channel, bounds)


class _Regressions:
    """Two linear regressions for each channel, in integers: weights (2, C, K) in 2 ** -16."""

    def __init__(self, channels: int, initial: Ints) -> None:
        """``initial`` has the first weights (2, K)."""
        inputs = initial.shape[1]
        self._weights = np.repeat(initial[:, None].astype(np.float64), channels, axis=1)
        moments = np.tile(np.diag(np.full(inputs + 1, PRIOR)), (2, 1, 1))
        moments[:, :-1, -1] = moments[:, -1, :-1] = PRIOR * initial >> WEIGHT_BITS
        self._moments = np.repeat(moments[:, None], channels, axis=1)
        # Channels whose weights are not those of their moments.  The first weights are not either.
        self._stale = set(range(channels))

    def predict(self, inputs: Floats, channels: Ints) -> Floats:
        """Predictions (2, n), in 2 ** -16 of their unit, from inputs (2, n, K)."""
        predicted: Floats = (inputs * self._weights[:, channels]).sum(2)
        return predicted

    def learn(self, samples: Floats, importance: Floats, wave: _Wave) -> None:
        """Learn from samples (2, n, K + 1): inputs, and what they should have predicted.

        Each sample is multiplied by its ``importance`` (n,), in 2 ** -20.
        """
        samples = np.floor(samples * importance[:, None] * 2.0**-SAMPLE_BITS)
        for c, part in wave.bounds:
            moments = self._moments[:, c]
            moments -= moments >> DECAY
            of_channel = samples[:, part]
            moments += (of_channel.transpose(0, 2, 1) @ of_channel).astype(np.int64)
            self._stale.add(c)

    def refit(self) -> None:
        """Compute the best weights for all that was learned.

        A wave has places of a few channels.  The others would get the weights that they have, so
        the time grows with the channels, and not with their square.
        """
        if not self._stale:
            return
        stale = sorted(self._stale)
        size = self._moments.shape[2]
        weights = solve(self._moments[:, stale].reshape(2 * len(stale), size, size))
        self._weights[:, stale] = weights.reshape(2, len(stale), -1)
        self._stale.clear()


def _shifted(x: Ints, by: Ints) -> Ints:
    """x * 2 ** by, rounded down."""
    return (x << np.maximum(by, 0)) >> np.maximum(-by, 0)


def solve(moments: Ints) -> Ints:
    """The weights (M, K), in 2 ** -16, from moments (M, K + 1, K + 1) with the output last.

    Gaussian elimination in 64-bit integers.  The matrix is positive, so no pivots are searched.
    """
    inputs = moments.shape[1] - 1
    a = moments.copy()
    diagonal = np.einsum("mii->mi", a)
    diagonal += (diagonal >> RELATIVE_FLOOR) + FLOOR
    # Each input is multiplied by a power of two, so that the diagonal is 2 ** 28 .. 2 ** 30.  Then
    # no element is larger, no pivot is below 2 ** 17, no weight above 2 ** 6, no sum above 2 ** 60.
    half = (np.frexp(diagonal.astype(np.float64))[1].astype(np.int64) + 1) // 2
    a = _shifted(a, 30 - half[:, :, None] - half[:, None, :])
    for i in range(inputs):
        factor = (a[:, i + 1 : inputs, i] << 24) // a[:, i, i, None]
        a[:, i + 1 : inputs, i + 1 :] -= factor[:, :, None] * a[:, i, None, i + 1 :] >> 24
    weights = a[:, :-1, -1] << WEIGHT_BITS
    for i in reversed(range(inputs)):
        weights[:, i] //= a[:, i, i]
        weights[:, :i] -= a[:, :i, i] * weights[:, i, None]
    return np.clip(_shifted(weights, half[:, -1:] - half[:, :-1]), -(1 << 20), 1 << 20)


def _limited(x: Floats) -> Floats:
    return np.minimum(np.maximum(x, -VALUE_LIMIT), VALUE_LIMIT)


class _Expectation(NamedTuple):
    """The regressions' inputs (2, n, K) and outputs (n,) for the places of a wave."""

    inputs: Floats
    mean: Floats  # in 2 ** -22 of a step
    magnitude: Floats  # the expected error of the mean, in the same unit

    @property
    def eighths(self) -> Ints:
        """The means in eighths of a step."""
        return np.floor(self.mean * 2.0**-19 + 0.5).astype(np.int64)

    @property
    def scale(self) -> Ints:
        """The indices of the scales."""
        octaves = logarithm(np.floor(self.magnitude * 2.0**-12)).astype(np.int64)
        return (octaves + SCALE_OFFSET) >> 5


class _Picture:
    """The known latents of one picture, and what was learned from them."""

    def __init__(self, height: int, width: int, channels: int, step: int) -> None:
        self._near, self._far = min(NEAR, channels - 1), min(FAR, channels - 1)
        # Values and errors.  In front of the first channel are ``far`` channels without errors, so
        # that every channel has as many before it.
        self._known = np.zeros((2, self._far + channels, height, width))
        one = min(UNIT * STEP_UNITS // step, VALUE_LIMIT)
        usual = min(UNIT * INITIAL_ERROR // step, VALUE_LIMIT)
        self._constants = np.array([[one], [usual]])
        self._softness = max(UNIT, usual)
        half, quarter, tenth = (1 << WEIGHT_BITS) // np.array([2, 4, 10])
        others = [0] * (len(BEFORE) * self._near + self._far - self._near)
        first = [[half, half] + [0] * (len(OWN) - 2), [tenth] * len(OWN)]
        self._regressions = _Regressions(
            channels, np.array([[*first[0], *others, 0], [*first[1], *others, quarter]])
        )

    def expect(self, wave: _Wave) -> _Expectation:
        """Predict the wave's symbols."""
        own, others = self._own(wave), self._others(wave)
        inputs = np.empty((2, len(others), len(OWN) + others.shape[1] + 1))
        inputs[:, :, : len(OWN)] = own
        inputs[:, :, len(OWN) : -1] = others
        inputs[:, :, -1] = self._constants
        np.abs(inputs[1], out=inputs[1])
        mean, magnitude = self._regressions.predict(inputs, wave.channels)
        magnitude = np.minimum(magnitude, VALUE_LIMIT << WEIGHT_BITS)
        magnitude = np.maximum(magnitude, LEAST_MAGNITUDE << WEIGHT_BITS)
        return _Expectation(inputs, mean, magnitude)

    def learn(self, wave: _Wave, expected: _Expectation, symbols: Ints) -> None:
        """Learn from the wave's symbols."""
        value = symbols.astype(np.float64) * UNIT
        error = _limited(value - np.floor(expected.mean * 2.0**-WEIGHT_BITS + 0.5))
        known = np.stack([_limited(value), error])
        self._known[:, wave.channels + self._far, wave.rows, wave.columns] = known
        # Where a large error was expected, an error says less: samples are divided by what was
        # expected, plus a constant.  The constant is measured: docs/measurements.md#adaptive.
        magnitude = np.floor(expected.magnitude * 2.0**-WEIGHT_BITS)
        importance = np.floor(2.0 ** (SAMPLE_BITS + UNIT_BITS) / (magnitude + self._softness))
        np.abs(known[1], out=known[1])
        samples = np.concatenate([expected.inputs, known[:, :, None]], axis=2)
        self._regressions.learn(samples, importance, wave)

    def refit(self) -> None:
        """Use what was learned."""
        self._regressions.refit()

    def _own(self, wave: _Wave) -> Floats:
        """Values and errors (2, n, K) at `OWN` around each place, or at the nearest known place."""
        down, right = np.array(OWN).T
        rows = np.maximum(wave.rows[:, None] + down, 0)
        columns = np.maximum(wave.columns[:, None] + right, 0)
        columns = np.minimum(columns, self._known.shape[3] - 1)
        ahead = (rows == wave.rows[:, None]) & (columns >= wave.columns[:, None])
        columns = np.where(ahead, wave.columns[:, None] - 1, columns)
        outside = columns < 0  # left of the first column: the place above is used
        rows, columns = np.where(outside, rows - 1, rows), np.maximum(columns, 0)
        known: Floats = self._known[:, wave.channels[:, None] + self._far, rows, columns]
        known[:, rows < 0] = 0
        return known

    def _others(self, wave: _Wave) -> Floats:
        """Errors (n, K) of the channels before, the nearest channel first."""
        errors = self._known[1]
        down, right = np.array(BEFORE).T
        rows = np.minimum(np.maximum(wave.rows[:, None] + down, 0), errors.shape[1] - 1)
        columns = np.minimum(np.maximum(wave.columns[:, None] + right, 0), errors.shape[2] - 1)
        channels = wave.channels[:, None] + self._far
        near = [errors[channels - k, rows, columns] for k in range(1, self._near + 1)]
        further = channels - np.arange(self._near + 1, self._far + 1)
        far = errors[further, wave.rows[:, None], wave.columns[:, None]]
        return np.concatenate([*near, far], axis=1)


def waves(height: int, width: int, channels: int) -> int:
    """How many waves latents (height, width, channels) have."""
    return width + 2 * (height - 1) + CHANNEL_DELAY * (channels - 1)


# A payload of a few bytes can decode to as many values as a header asks for.  So the payload's
# bytes limit the work, which is counted in values.  A wave of a channel takes at least as long as
# 16 values.  Chosen: docs/measurements.md#adaptive.
FREE_WORK = 1 << 18
WORK_PER_BYTE = 384
WAVE_WORK = 16


def work(height: int, width: int, channels: int) -> int:
    """The work to code latents (h, w, C): as long as so many values take.

    Each channel has places in the waves of one channel, and adds its delay to the picture's waves.
    """
    return channels * max(height * width, WAVE_WORK * (waves(height, width, 1) + CHANNEL_DELAY))


def check_work(height: int, width: int, channels: int, size: int) -> None:
    """DamagedPayload if latents (h, w, C) take too long for a payload of ``size`` bytes."""
    if work(height, width, channels) > FREE_WORK + WORK_PER_BYTE * size:
        msg = f"latents {(channels, height, width)} in {size} bytes are too many"
        raise DamagedPayload(msg)


class AdaptivePrior:
    """Predicts latents (h, w, C) of any kind and any step.  It needs no training."""

    def __init__(self, channels: int) -> None:
        self.channels = channels

    def code(self, coder: Coder, height: int, width: int, step: int) -> Ints:
        """Code the integers of latents (height, width, C), and return them.

        The coder knows them as "latents".  ``step`` is the quantisation step in 1/1024 of the
        latents' unit, 1 to 65535.  Only what is expected at the start depends on it.
        """
        if not (0 < step < STEP_LIMIT and height > 0 and width > 0):
            msg = f"cannot code latents of {height}x{width} with a step of {step}/{STEP_UNITS}"
            raise ValueError(msg)
        symbols = np.zeros((height, width, self.channels), np.int64)
        picture = _Picture(height, width, self.channels, step)
        for time in range(waves(height, width, self.channels)):
            wave = _Wave.of(time, height, width, self.channels)
            expected = picture.expect(wave)
            index = (wave.rows, wave.columns, wave.channels)
            symbols[index] = coder.code("latents", index, expected.eighths, expected.scale)
            picture.learn(wave, expected, symbols[index])
            if time % min(REFIT_WAVES, 1 + time // LEARNING_WAVES) == 0:
                picture.refit()
        return symbols
