"""A trained prior in the order of the adaptive one: a small network predicts each channel.

The network of a channel sees what is known around a place, in its own channel and in all channels
before it.  All its numbers are integers whose sums are exact in float32, in any order, so every
machine computes the same.  The scales are calibrated while the latents are coded, as those of the
adaptive prior are.  docs/waves.md specifies the prior.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from ..arrays import Ints, Singles
from ..weights import Weights
from .calibration import ALL_BINS, Calibration
from .frame_coders import Apart, FrameCoder, checked_steps
from .integers import EXACT_SINGLE, LOG_UNITS, STEP_UNITS, logarithm, rounded
from .range_coder import Coder
from .waves import CHANNEL_DELAY, OWN, Layout, Offsets, Wave, waves

# Values are in 1/32 of the latents' unit, up to 16 units.  Chosen: FLUX.2's latents hardly exceed
# 10, and sums of 300 inputs stay below 2 ** 24.
FINER = STEP_UNITS // 32
VALUE_LIMIT = 511
# Logarithms of steps are in 1/32 octaves.  Steps of 1/16 to 16 are told apart.  Chosen.
LOG_BITS, LOG_LIMIT = 3, 4 * 32
HIDDEN_LIMIT = 2047  # of hidden layers.  Chosen: 12 of the 24 bits of a sum remain for weights.

# (row, column).  A network sees all channels here, as far as they are known, ...
AROUND: Offsets = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1)]
# ... and its own channel here, too.
FARTHER: Offsets = [offset for offset in OWN if offset not in AROUND]

LOWEST = 5 * LOG_UNITS + 32  # scale 0 is 2 ** -5 steps.  32 rounds to quarters of an octave.
AT_ONCE = 256  # places of a channel that are predicted at once: 0.3 MB of inputs.  Chosen.


def known_inputs(channels: int) -> NDArray[np.bool_]:
    """Which inputs (C, 9, C) a channel's network sees: those of earlier waves.

    It sees no channel after its own.
    """
    own, other = np.indices((channels, channels))
    time = np.array([x + 2 * y for y, x in AROUND])[:, None]
    known: NDArray[np.bool_] = time + CHANNEL_DELAY * (other - own)[:, None] < 0
    return known & (other <= own)[:, None]


def _exact(
    tensors: Mapping[str, NDArray[Any]], name: str, limits: list[int]
) -> tuple[Singles, Singles]:
    """The weights (C, inputs, outputs) and biases (C, 1, outputs) of a layer, in binary fractions.

    ``limits`` has the largest magnitude of each input.  ValueError if sums may not be exact.
    """
    weight = tensors[f"{name}.weight"].astype(np.float64)
    bias = tensors[f"{name}.bias"].astype(np.float64)
    if (np.abs(weight) @ np.array(limits, np.float64) + np.abs(bias)).max() >= EXACT_SINGLE:
        msg = f"sums of {name} may not be exact"
        raise ValueError(msg)
    unit = np.exp2(-tensors[f"{name}.shift"].astype(np.float64))
    weights = np.swapaxes(weight * unit[..., None], 1, 2).astype(np.float32, order="C")
    return weights, (bias * unit).astype(np.float32)[:, None]


class WavePrior:
    """Predicts latents (h, w, C) of the space that it was trained for, with any step."""

    def __init__(self, tensors: Mapping[str, NDArray[Any]]) -> None:
        self.channels, hidden, inputs = tensors["first.weight"].shape
        more = tensors["last.weight"].shape[2]
        limits = [VALUE_LIMIT] * (inputs - 1) + [LOG_LIMIT]
        first = np.concatenate(_exact(tensors, "first", limits), 1)
        linear = np.concatenate(_exact(tensors, "linear", limits), 1)
        of_inputs = np.concatenate([first, linear], 2)
        around = len(AROUND) * self.channels
        known = known_inputs(self.channels).reshape(self.channels, around, 1)
        self._of_around = of_inputs[:, :around] * known
        self._of_others = np.ascontiguousarray(of_inputs[:, around:])
        second = _exact(tensors, "second", [HIDDEN_LIMIT] * hidden)
        self._second = np.concatenate(second, 1)
        self._last, self._bias = _exact(tensors, "last", [HIDDEN_LIMIT] * more)

    @classmethod
    @cache
    def shipped(cls, file: Weights) -> WavePrior:
        """A prior that comes with this package, loaded once; OSError if it is damaged."""
        return cls(load_file(file.checked()))

    def code(self, coder: Coder, height: int, width: int, step: int) -> Ints:
        """Code the integers of latents (height, width, C), and return them.

        The coder knows them as "latents".  ``step`` is the quantisation step in 1/1024 of the
        latents' unit, 1 to 65535.
        """
        return np.asarray(self.code_frames(Apart([coder]), height, width, [step])[0])

    def code_frames(self, coder: FrameCoder, height: int, width: int, steps: Sequence[int]) -> Ints:
        """Code the integers (F, height, width, C) of frames with a step each, as `code` does."""
        units = checked_steps(height, width, steps)
        symbols = np.zeros((len(steps), height, width, self.channels), np.int64)
        pictures = _Pictures(self, height, width, units)
        calibration = Calibration(len(steps))
        for time in range(waves(height, width, self.channels)):
            wave = Wave.of(time, height, width, self.channels)
            if wave is None:
                continue
            eighths, bins = (x[:, wave.valid] for x in pictures.expect(wave))
            scale = calibration.scales(bins)
            index = wave.places
            found = coder.code_frames("latents", index, rounded(eighths, scale), scale)
            calibration.learn(bins, eighths, found)
            symbols[:, index[0], index[1], index[2]] = found
            pictures.note(wave, found)
        return symbols

    def predict(self, around: Singles, others: Singles, channels: slice) -> Ints:
        """Means, in 1/1024, and logarithms of scales, in 1/256 octaves (2, A, n).

        Inputs are ``around`` (A, n, 9 C) and ``others`` (A, n, 7): the values farther away, the
        logarithm of the step, and 1.
        """
        first = np.matmul(around, self._of_around[channels])
        first += np.matmul(others, self._of_others[channels])
        np.floor(first, out=first)
        linear = first[..., -1].astype(np.int64)
        np.clip(first, 0, HIDDEN_LIMIT, out=first)
        first[..., -1] = 1  # for the bias
        second = np.matmul(first, self._second[channels])
        np.floor(second, out=second)
        np.clip(second, 0, HIDDEN_LIMIT, out=second)
        last = np.floor(np.matmul(second, self._last[channels]) + self._bias[channels])
        found: Ints = last.transpose(2, 0, 1).astype(np.int64)
        found[0] += linear
        return found


class _Pictures:
    """The known values of frames."""

    def __init__(self, prior: WavePrior, height: int, width: int, steps: Ints) -> None:
        self._prior, self._steps = prior, steps[:, None, None]
        layout = self._layout = Layout.by_place(height, width, prior.channels)
        self._known = np.zeros((len(steps), layout.size), np.float32)
        self._logs = logarithm(steps.astype(np.float64)).astype(np.int64)
        self._around = np.array([layout.offset(*offset) for offset in AROUND]) // prior.channels
        self._farther = np.array([layout.offset(*offset) for offset in FARTHER])

    def expect(self, wave: Wave) -> tuple[Ints, Ints]:
        """The means (F, A, R), in eighths of a step, and the magnitudes for `Calibration`."""
        places = self._layout.places(wave)
        frames = len(self._known)
        found = np.empty((2, frames, *places.shape), np.int64)
        at_once = max(1, AT_ONCE // places.shape[1])
        for start in range(0, frames, at_once):
            part = slice(start, start + at_once)
            found[:, part] = self._predict(part, places, wave.channels).swapaxes(1, 2)
        mean, octaves = found
        mean = (16 * mean + self._steps) // (2 * self._steps)
        octaves += LOWEST - self._logs[:, None, None]
        return mean, np.clip(octaves >> 6, 0, ALL_BINS - 1)

    def _predict(self, frames: slice, places: Ints, channels: slice) -> Ints:
        """The outputs (2, A, F, R) of the networks for some frames."""
        known = self._known[frames]
        # (A, F, R, 1): where each frame's places are in all of them.
        at = places[:, None, :, None] + np.arange(len(known))[:, None, None] * self._layout.size
        active, count = len(at), len(known) * places.shape[1]
        # No place is outside.  numpy takes twice as long to check that as to clip.
        by_place = known.reshape(-1, self._prior.channels)
        of_place = at // self._prior.channels + self._around
        around = by_place.take(of_place, axis=0, mode="clip").reshape(active, count, -1)
        others = np.ones((*at.shape[:3], len(self._farther) + 2), np.float32)
        others[..., :-2] = known.reshape(-1).take(at + self._farther, mode="clip")
        others[..., -2] = self._logs[frames, None] >> LOG_BITS
        np.clip(others[..., -2], -LOG_LIMIT, LOG_LIMIT, out=others[..., -2])
        found = self._prior.predict(around, others.reshape(active, count, -1), channels)
        return found.reshape(2, active, len(known), -1)

    def note(self, wave: Wave, symbols: Ints) -> None:
        """Keep the wave's symbols (F, n)."""
        values = np.zeros((len(symbols), *wave.rows.shape), np.float32)
        rounded_values = symbols * self._steps[..., 0] + FINER // 2 >> FINER.bit_length() - 1
        values[:, wave.valid] = np.clip(rounded_values, -VALUE_LIMIT, VALUE_LIMIT)
        self._layout.keep(self._known, wave, values)
