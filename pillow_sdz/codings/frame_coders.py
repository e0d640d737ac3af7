"""Several frames coded together: a prior works on all of them at once.

Each frame has a payload of its own.  The frames only share calls of numpy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from ..arrays import Ints
from .integers import STEP_LIMIT, STEP_UNITS
from .range_coder import Coder, Prediction, SymbolDecoder, Tables, read_residuals, symbols_of


class FrameCoder(Protocol):
    """Codes one stage of symbols of F frames.  Each frame has as many, at the same places."""

    def code_frames(self, volume: str, index: tuple[Any, ...], mean: Ints, scale: Ints) -> Ints:
        """The symbols (F, n) that ``index`` selects of ``volume``, as `Coder.code` has them.

        ``mean`` and ``scale`` are (F, n).
        """
        ...


class Apart:
    """A `FrameCoder` that has a `Coder` for each frame."""

    def __init__(self, coders: Sequence[Coder]) -> None:
        self._coders = coders

    def code_frames(self, volume: str, index: tuple[Any, ...], mean: Ints, scale: Ints) -> Ints:
        return np.stack(
            [
                coder.code(volume, index, *row)
                for coder, *row in zip(self._coders, mean, scale, strict=True)
            ]
        )


class FrameDecoders:
    """A `FrameCoder` that reads a payload for each frame."""

    def __init__(self, payloads: Sequence[bytes]) -> None:
        self._tables = Tables.shipped()
        self.decoders = [SymbolDecoder(self._tables, payload) for payload in payloads]

    def code_frames(self, volume: str, index: tuple[Any, ...], mean: Ints, scale: Ints) -> Ints:
        prediction = Prediction.of(mean, scale)
        table = prediction.table
        words = [decoder.words for decoder in self.decoders]
        residual, escaped = read_residuals(words, self._tables, table)
        frames, places = np.divmod(escaped, table.shape[1])
        for i, decoder in enumerate(self.decoders):
            decoder.read_escapes(residual[i], table[i], places[frames == i])
        return symbols_of(residual, prediction)

    def finish(self) -> None:
        """DamagedPayload if a payload holds more than what has been read."""
        for decoder in self.decoders:
            decoder.finish()


def checked_steps(height: int, width: int, steps: Sequence[int]) -> Ints:
    """The steps (F,) of frames; ValueError if they, or the size, are out of range."""
    if not (steps and 0 < min(steps) <= max(steps) < STEP_LIMIT and height > 0 and width > 0):
        some = ", ".join(map(str, sorted(set(steps))))
        msg = f"cannot code latents of {height}x{width} with a step of {some}, in 1/{STEP_UNITS}"
        raise ValueError(msg)
    return np.array(steps, np.int64)
