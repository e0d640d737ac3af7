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
from .calibration import Bins, Calibration
from .frame_coders import Apart, FrameCoder, checked_steps
from .integers import EXACT_SINGLE, LOG_UNITS, STEP_UNITS, logarithm, rounded
from .range_coder import NORMAL, SCALES, Coder
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

EIGHTHS = Bins(8, SCALES, normal=True)  # of an octave
LOWEST = 5 * LOG_UNITS + 16  # bin 0 is 2 ** -5 steps.  16 rounds to eighths of an octave.
# Channels that are predicted at once.  They get the inputs that any of them uses.  More channels
# would get more inputs that only some of them use, and more rows that only some of them have.
GROUP = 4  # chosen
AT_ONCE = 512  # places of a channel that are predicted at once: 1 MB of inputs.  Chosen.


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
        known = known_inputs(self.channels)[:, None]
        of_around = of_inputs[:, :, :count].reshape(*of_inputs.shape[:2], *known.shape[2:]) * known
        self._first = []
        for start in range(0, self.channels, GROUP):
            group = slice(start, min(start + GROUP, self.channels))
            around = of_around[group, ..., : group.stop].reshape(group.stop - start, hidden + 1, -1)
            self._first.append(np.concatenate([around, of_inputs[group, :, count:]], 2))
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
        symbols = np.zeros((len(steps), height, width, self.channels), np.int64)
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
            expected = (some.expect(time, wave, index) for some in pictures)
            eighths, bins = np.concatenate([*expected], 1)
            scale = calibration.scales(bins)
            mean = rounded(eighths, scale)
            scale += NORMAL * (bins < EIGHTHS.calibrated)
            found = coder.code_frames("latents", index, mean, scale)
            calibration.learn(bins, eighths, found)
            symbols[:, index[0], index[1], index[2]] = found
            for number, some in enumerate(pictures):
                some.note(index, found[number * at_once : (number + 1) * at_once])
        return symbols

    def predict(self, inputs: Singles, channels: slice, found: Singles) -> None:
        """Put means, in 1/1024, and logarithms of scales, in 1/256 octaves, into ``found``.

        It is (3, A, n).  A mean is the sum of its first and its last part.  Channels are of one
        group.  ``inputs`` (A, 9 k + 7, n) are the values around of the first k channels, those
        farther away, the logarithm of the step, and 1.
        """
        group = channels.start // GROUP
        part = slice(channels.start - group * GROUP, channels.stop - group * GROUP)
        first = np.matmul(self._first[group][part], inputs)
        np.floor(first, out=first)
        found[2] = first[:, -1]
        np.maximum(first, 0, out=first)
        np.minimum(first, HIDDEN_LIMIT, out=first)
        first[:, -1] = 1  # for the bias
        second = np.matmul(self._second[channels], first)
        np.floor(second, out=second)
        np.maximum(second, 0, out=second)
        np.minimum(second, HIDDEN_LIMIT, out=second)
        last = np.matmul(self._last[channels], second)
        last += self._bias[channels]
        np.floor(last.swapaxes(0, 1), out=found[:2])


class _Pictures:
    """The known values of some frames."""

    def __init__(self, prior: WavePrior, height: int, width: int, steps: Ints) -> None:
        self._prior, self._steps = prior, steps[:, None]
        self._layout = Layout.by_wave(height, width, prior.channels)
        self._known = np.zeros((self._layout.size, len(steps)), np.float32)
        self._logs = logarithm(steps.astype(np.float64)).astype(np.int64)[:, None]
        self._of_step = np.clip(self._logs[:, 0] >> LOG_BITS, -LOG_LIMIT, LOG_LIMIT)

    def expect(self, time: int, wave: Wave, places: tuple[Ints, Ints, Ints]) -> Ints:
        """The means, in eighths of a step, and the magnitudes for `Calibration` (2, F, n).

        ``places`` are those of the wave.
        """
        first, last = wave.rows[:, 0], wave.rows.max(1)
        top, start = int(first.min()), wave.channels.start
        frames, rows = len(self._steps), int(last.max()) + 1 - top
        found = np.empty((3, len(first), rows * frames), np.float32)
        for begin in range(start // GROUP * GROUP, wave.channels.stop, GROUP):
            channels = slice(max(begin, start), min(begin + GROUP, wave.channels.stop))
            of_wave = slice(channels.start - start, channels.stop - start)
            of_rows = slice(int(first[of_wave].min()), int(last[of_wave].max()) + 1)
            inputs = self._inputs(time, of_rows, channels)
            to = slice((of_rows.start - top) * frames, (of_rows.stop - top) * frames)
            self._prior.predict(inputs, channels, found[:, of_wave, to])
        at = (places[2] - start) * rows + places[0] - top
        taken = found.reshape(3, -1, frames).take(at, axis=1).swapaxes(1, 2)
        mean, octaves, linear = taken.astype(np.int64, order="C")
        mean += linear
        mean = (16 * mean + self._steps) // (2 * self._steps)
        octaves += LOWEST - self._logs
        return np.stack([mean, np.clip(octaves >> 5, 0, EIGHTHS.number - 1)])

    def _inputs(self, time: int, rows: slice, channels: slice) -> Singles:
        """The inputs (A, 9 k + 7, R F) of the networks of a group for some rows of a wave.

        A channel may lack some of the rows.  What is found there has no meaning.
        """
        known, layout, frames = self._known, self._layout, len(self._steps)
        active, count = channels.stop - channels.start, rows.stop - rows.start
        group = channels.start // GROUP
        used = min((group + 1) * GROUP, self._prior.channels)  # no later channel counts
        column = time - CHANNEL_DELAY * channels.start - 2 * rows.start
        first = layout.first + rows.start * layout.row + column * layout.column

        def view(shape: tuple[int, ...], start: int, steps: tuple[int, ...]) -> Singles:
            """Known values.  After ``shape`` and ``steps``, there are those of all rows."""
            unit = known.itemsize
            strides = *(unit * frames * step for step in steps), unit
            start *= unit * frames
            return np.ndarray((*shape, count * frames), known.dtype, known, start, strides)

        inputs = np.empty((active, 9 * used + len(FARTHER) + 2, count * frames), np.float32)
        shape = active, 3, 3, used
        corner = first + layout.offset(*AROUND[0])
        earlier = -CHANNEL_DELAY * layout.column  # from a channel to the next one
        steps = earlier, layout.row, layout.column, layout.channel
        inputs[:, : 9 * used].reshape(*shape, -1)[:] = view(shape, corner, steps)
        own = first + channels.start * layout.channel
        for number, offset in enumerate(FARTHER, 9 * used):
            start = own + layout.offset(*offset)
            inputs[:, number] = view((active,), start, (earlier + layout.channel,))
        inputs[:, -2].reshape(active, count, frames)[:] = self._of_step
        inputs[:, -1] = 1
        return inputs

    def note(self, places: tuple[Ints, Ints, Ints], symbols: Ints) -> None:
        """Keep the symbols (F, n) of places."""
        values = symbols * self._steps + FINER // 2 >> FINER.bit_length() - 1
        values = np.clip(values, -VALUE_LIMIT, VALUE_LIMIT).astype(np.float32)
        self._layout.keep(self._known, places, values.T)
