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
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray
from safetensors.numpy import load_file

from ..arrays import Ints, Singles
from ..weights import Weights
from .calibration import Bins, Calibration
from .frame_coders import Apart, FrameCoder, checked_steps
from .integers import EXACT_SINGLE, LOG_UNITS, STEP_UNITS, logarithm, rounded
from .range_coder import NORMAL, SCALES, Coder
from .waves import CHANNEL_DELAY, OWN, Layout, Offsets, Wave, waves

# Values are in 1/32 of the latents' unit, up to 16 units.  Chosen: FLUX.2's latents hardly exceed
# 10, and sums of 300 inputs stay below 2 ** 24.
FINER = STEP_UNITS // 32
VALUE_LIMIT = 511
# With any step, larger symbols are beyond the limit of values.  Their products fit into 32 bits.
SYMBOL_LIMIT = FINER * (VALUE_LIMIT + 1)
# Logarithms of steps are in 1/32 octaves.  Steps of 1/16 to 16 are told apart.  Chosen.
LOG_BITS, LOG_LIMIT = 3, 4 * 32
HIDDEN_LIMIT = 2047  # of hidden layers.  Chosen: 12 of the 24 bits of a sum remain for weights.
HIDDEN_RANGE = np.float32(0), np.float32(HIDDEN_LIMIT)

# (row, column).  A network sees all channels here, as far as they are known, ...
AROUND: Offsets = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1)]
# ... and its own channel here, too.
FARTHER: Offsets = [offset for offset in OWN if offset not in AROUND]

EIGHTHS = Bins(8, SCALES, normal=True)  # of an octave
LOWEST = 5 * LOG_UNITS + 16  # bin 0 is 2 ** -5 steps.  16 rounds to eighths of an octave.
AT_ONCE = 1024  # places of a channel that are predicted at once.  Measured.


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
    """The weights (C, outputs, inputs) and biases (C, outputs, 1) of a layer, in binary fractions.

    ``limits`` has the largest magnitude of each input.  ValueError if sums may not be exact.
    """
    weight = tensors[f"{name}.weight"].astype(np.float64)
    bias = tensors[f"{name}.bias"].astype(np.float64)
    if (np.abs(weight) @ np.array(limits, np.float64) + np.abs(bias)).max() >= EXACT_SINGLE:
        msg = f"sums of {name} may not be exact"
        raise ValueError(msg)
    unit = np.exp2(-tensors[f"{name}.shift"].astype(np.float64))
    return (weight * unit[..., None]).astype(np.float32), (bias * unit).astype(np.float32)[
        ..., None
    ]


class WavePrior:
    """Predicts latents (h, w, C) of the space that it was trained for, with any step."""

    def __init__(self, tensors: Mapping[str, NDArray[Any]]) -> None:
        self.channels, hidden, inputs = tensors["first.weight"].shape
        more = tensors["last.weight"].shape[2]
        limits = [VALUE_LIMIT] * (inputs - 1) + [LOG_LIMIT]
        first = np.concatenate(_exact(tensors, "first", limits), 2)
        linear = np.concatenate(_exact(tensors, "linear", limits), 2)
        of_inputs = np.concatenate([first, linear], 1)
        count = len(AROUND) * self.channels
        known = known_inputs(self.channels).reshape(self.channels, -1)
        of_inputs[:, :, :count] *= known[:, None]
        # For each channel, the inputs that it uses.  The last two are the step, and 1 for the bias.
        self.used = [np.flatnonzero(weights[:, :-2].any(0)) for weights in of_inputs]
        self._first = [
            np.concatenate([weights[:, used], weights[:, -2:]], 1)
            for weights, used in zip(of_inputs, self.used, strict=True)
        ]
        second = _exact(tensors, "second", [HIDDEN_LIMIT] * hidden)
        self._second = np.concatenate(second, 2)
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
        # The frames of a place lie side by side, because a wave has places far apart.
        symbols = np.zeros((height * width * self.channels, len(steps)), np.int32)
        at_once = max(1, AT_ONCE // min(height, width // 2 + 1))
        pictures = [
            _Pictures(self, height, width, units[start : start + at_once])
            for start in range(0, len(units), at_once)
        ]
        calibration = Calibration(len(steps), EIGHTHS)
        for time in range(waves(height, width, self.channels)):
            wave = Wave.of(time, height, width, self.channels)
            if wave is None:
                continue
            index = wave.places
            expected = [some.expect(time, wave, index) for some in pictures]
            eighths, bins = expected[0] if len(expected) == 1 else np.concatenate(expected, 1)
            scale = calibration.scales(bins).astype(np.int32)
            mean = rounded(eighths, scale)
            scale += np.int32(NORMAL) * (bins < EIGHTHS.calibrated)
            found = coder.code_frames("latents", index, mean, scale).astype(np.int32, copy=False)
            calibration.learn(bins, eighths, found)
            by_place = found.T.copy()
            symbols[(index[0] * width + index[1]) * self.channels + index[2]] = by_place
            for number, some in enumerate(pictures):
                some.note(index, by_place[:, number * at_once : (number + 1) * at_once])
        frames = symbols.T.astype(np.int64, order="C")
        return frames.reshape(len(steps), height, width, self.channels)

    def predict(self, inputs: Singles, channel: int, found: Singles) -> None:
        """Put means, in 1/1024, and logarithms of scales, in 1/256 octaves, into ``found``.

        It is (3, n).  A mean is the sum of its first and its last part.  ``inputs`` (k + 2, n) are
        the k values that the channel uses, the logarithm of the step, and 1.
        """
        first = self._first[channel] @ inputs
        np.floor(first, out=first)
        found[2] = first[-1]
        first.clip(*HIDDEN_RANGE, out=first)
        first[-1] = 1  # for the bias
        second = self._second[channel] @ first
        np.floor(second, out=second)
        second.clip(*HIDDEN_RANGE, out=second)
        last = self._last[channel] @ second
        last += self._bias[channel]
        np.floor(last, out=found[:2])


class _Pictures:
    """The known values of some frames."""

    def __init__(self, prior: WavePrior, height: int, width: int, steps: Ints) -> None:
        self._prior, self._steps = prior, steps[:, None].astype(np.int32)
        self._layout = Layout.by_wave(height, width, prior.channels)
        # After the values, there are as many rows of the two inputs that are the same everywhere.
        self._known = np.zeros((self._layout.size + 2 * height, len(steps)), np.float32)
        self._logs = logarithm(steps.astype(np.float64)).astype(np.int32)[:, None]
        constants = self._known[self._layout.size :]
        constants[:height] = np.clip(self._logs[:, 0] >> LOG_BITS, -LOG_LIMIT, LOG_LIMIT)
        constants[height:] = 1
        self._inputs = [self._places(channel, used) for channel, used in enumerate(prior.used)]
        # All runs of rows in what is known.  They overlap.
        size, frames = self._known.shape
        self._runs = [
            as_strided(self._known, (size - rows + 1, rows * frames), (frames * unit, unit))
            for unit in [self._known.itemsize]
            for rows in range(1, height + 1)
        ]

    def _places(self, channel: int, used: Ints) -> Ints:
        """How far a channel's inputs are from its place, in what is known."""
        layout, channels = self._layout, self._prior.channels
        around = [layout.offset(*o, b - channel) for o in AROUND for b in range(channels)]
        farther = [layout.offset(*o) for o in FARTHER]
        return np.array(around + farther)[used]

    def expect(self, time: int, wave: Wave, places: tuple[Ints, Ints, Ints]) -> Ints:
        """The means, in eighths of a step, and the magnitudes for `Calibration` (2, F, n).

        ``places`` are those of the wave.
        """
        first, last = wave.rows[:, 0], wave.rows.max(1)
        top, start = int(first.min()), wave.channels.start
        frames, rows = len(self._steps), int(last.max()) + 1 - top
        found = np.empty((3, len(first), rows * frames), np.float32)
        for number, (of_channel, begin, end) in enumerate(
            zip(range(start, wave.channels.stop), first.tolist(), last.tolist(), strict=True)
        ):
            inputs = self._found(time, slice(begin, end + 1), of_channel)
            to = slice((begin - top) * frames, (end + 1 - top) * frames)
            self._prior.predict(inputs, of_channel, found[:, number, to])
        at = (places[2] - start) * rows + places[0] - top
        taken = found.reshape(3, -1, frames).take(at, axis=1, mode="clip").swapaxes(1, 2)
        # A mean is below 2 ** 25, so 32 bits are enough for all of this.
        mean, octaves, linear = taken.astype(np.int32, order="C")
        mean += linear
        mean *= 16
        mean += self._steps
        mean //= 2 * self._steps
        octaves += LOWEST - self._logs
        octaves >>= 5
        np.clip(octaves, 0, EIGHTHS.number - 1, out=octaves)
        return np.stack([mean, octaves])

    def _found(self, time: int, rows: slice, channel: int) -> Singles:
        """The inputs (k + 2, R F) of the network of a channel for its rows of a wave."""
        layout = self._layout
        column = time - CHANNEL_DELAY * channel - 2 * rows.start
        place = layout.first + channel * layout.channel
        place += rows.start * layout.row + column * layout.column
        offsets = self._inputs[channel]
        at = np.empty(len(offsets) + 2, np.int64)
        np.add(offsets, place, out=at[:-2])
        at[-2:] = layout.size, layout.size + layout.height
        found: Singles = self._runs[rows.stop - rows.start - 1][at]
        return found

    def note(self, places: tuple[Ints, Ints, Ints], symbols: Ints) -> None:
        """Keep the symbols (n, F) of places."""
        values = np.clip(symbols, -SYMBOL_LIMIT, SYMBOL_LIMIT)
        values *= self._steps[:, 0]
        values += FINER // 2
        values >>= FINER.bit_length() - 1
        np.clip(values, -VALUE_LIMIT, VALUE_LIMIT, out=values)
        self._layout.keep(self._known, places, values.astype(np.float32))
