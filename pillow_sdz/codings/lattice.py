"""The trained prior for latents without hyperlatents: a lattice that gets finer by halves.

A small integer network predicts every value from values around it that are already coded, on all
sides.  The values of one pass do not depend on each other, so all frames together take about forty
stages.  The order is the order of hierarchical interpolation (Burt and Adelson's pyramid without a
filter; FLIF's Adam-infinity interlacing, Sneyers and Wuille 2016).  The networks are channel-wise
contexts (Minnen and Singh 2020).  docs/lattice.md specifies the prior.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from ..arrays import Ints, Singles
from ..weights import Weights
from .frame_coders import Apart, FrameCoder, checked_steps
from .integers import STEP_UNITS, Affine, logarithm, logarithm_of_singles, rounded
from .lattice_network import FINER, INPUT_LIMIT, UNITS, Network
from .range_coder import MEAN_UNITS, Coder

VALUE_LIMIT = 1 << 20  # of values, in 1/256: 4096 units, so four of them have an exact sum
BASE_LIMIT = (1 << 15) - 1  # of what the base's layers take, in 1/1024: 32 units
LOG_LIMIT = 1 << 14  # no logarithm of a step is larger
ACTIVITY_FLOOR = UNITS // 32  # chosen: bounds the logarithm if all neighbours are equal

BASE_SPACING = 16  # chosen: docs/measurements.md#lattice
SPACINGS = (8, 4, 2, 1)
REACH = 3  # of the taps, in spacings
BLOCK = 8192  # places that are computed at once: 3 MB of inputs.  Chosen.


def _mirrored(offsets: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Each offset with all combinations of signs, the positive ones first."""
    return [
        (dy * sy, dx * sx)
        for dy, dx in offsets
        for sy in ((1, -1) if dy else (1,))
        for sx in ((1, -1) if dx else (1,))
    ]


class Pass(NamedTuple):
    """Which places of a lattice a pass codes, and which places around them it uses.

    Places and offsets are (row, column), in spacings.  Places repeat with a period of 2.
    """

    name: str
    places: list[tuple[int, int]]
    known: list[tuple[int, int]]  # taps in all channels; the first four are the nearest
    before: list[tuple[int, int]]  # more taps in the channels before; the first is the place itself


PASSES = (
    Pass(
        "centre",
        [(1, 1)],
        _mirrored([(1, 1), (1, 3), (3, 1)]),
        _mirrored([(0, 0), (0, 2), (2, 0)]),
    ),
    Pass(
        "between",
        [(0, 1), (1, 0)],
        _mirrored([(0, 1), (1, 0), (1, 2), (2, 1), (0, 3), (3, 0)]),
        _mirrored([(0, 0), (1, 1), (0, 2), (2, 0)]),
    ),
)


class _Piece(NamedTuple):
    """A part of a pass that is computed at once: some rows of one of its sublattices."""

    place: tuple[int, int]
    start: int  # in rows of the sublattice
    stop: int
    columns: int


def _pieces(places: list[tuple[int, int]], frames: int, height: int, width: int) -> list[_Piece]:
    pieces = []
    for y, x in places:
        rows, columns = (height - y + 1) // 2, (width - x + 1) // 2
        if rows and columns:
            at_once = max(1, BLOCK // (columns * frames))
            for start in range(0, rows, at_once):
                pieces.append(_Piece((y, x), start, min(rows, start + at_once), columns))
    return pieces


def _mirror(length: int) -> Ints:
    """The rows (or columns) that stand for -REACH..length - 1 + REACH.

    They are mirrored about the first and the last row, so each keeps its parity.
    """
    period = max(1, 2 * (length - 1))
    rows = np.abs(np.arange(-REACH, length + REACH)) % period
    return np.minimum(rows, period - rows) if length > 1 else rows


class _Planes:
    """A copy of the values of a lattice (C, F, h, w), with a border.

    Every second row and column is kept apart, so that the values of a tap lie side by side.
    """

    def __init__(self, lattice: Singles) -> None:
        rows, columns = _mirror(lattice.shape[2]), _mirror(lattice.shape[3])
        self._parts = [
            [lattice[:, :, rows[y::2, None], columns[x::2]] for x in range(2)] for y in range(2)
        ]

    def tap(self, piece: _Piece, offset: tuple[int, int]) -> Singles:
        """The values (C, F, rows, columns) at an offset from the places of a piece."""
        top, left = (REACH + p + d for p, d in zip(piece.place, offset, strict=True))
        start, rows = top // 2 + piece.start, piece.stop - piece.start
        return self._parts[top % 2][left % 2][
            :, :, start : start + rows, left // 2 : left // 2 + piece.columns
        ]


class _Context:
    """The inputs (k, n) of the networks at the places of a piece.

    First come, in this order: the differences from the local means at each known tap of each
    channel, the local means, the activities, the logarithm of the step, and 1.  Then come, for each
    earlier channel, the differences at the other taps, and the surprise.
    """

    def __init__(self, kind: Pass, planes: _Planes, piece: _Piece, steps: Ints) -> None:
        near = planes.tap(piece, kind.known[0])
        channels, *places = near.shape
        self._kind, self._piece, self._places, self._done = kind, piece, places, 0
        taps, depth = len(kind.known), len(kind.before) + 1
        known = (taps + 2) * channels + 2
        inputs = np.empty((known + (channels - 1) * depth, *places), np.float32)
        self._start, self._depth = known, depth
        self._floor = ((steps >> 4) + ACTIVITY_FLOOR).astype(np.float32).reshape(-1, 1, 1)
        self._inputs = inputs
        mean = near + 2
        for offset in kind.known[1:4]:
            mean += planes.tap(piece, offset)
        mean *= 0.25
        self.mean: Singles = np.floor(mean, out=mean)
        differences = inputs[: taps * channels].reshape(taps, channels, *places)
        for i, offset in enumerate(kind.known):
            np.subtract(planes.tap(piece, offset), mean, out=differences[i])
        activity = np.abs(differences[:4]).sum(0) + self._floor
        inputs[known - channels - 2 : known - 2] = logarithm_of_singles(activity, UNITS)
        inputs[taps * channels : (taps + 1) * channels] = mean
        inputs[known - 2] = logarithm_of_singles(steps.astype(np.float32), STEP_UNITS).reshape(
            -1, 1, 1
        )
        inputs[known - 1] = 1
        _limit(inputs[:known])

    def inputs(self, c: int, after: list[_Planes]) -> Singles:
        """The inputs for channel c.  ``after`` has the planes of the channels coded before it."""
        while self._done < c:
            start = self._start + self._done * self._depth
            part = self._inputs[start : start + self._depth]
            for i, offset in enumerate(self._kind.before):
                tap = after[self._done].tap(self._piece, offset)[0]
                np.subtract(tap, self.mean[self._done], out=part[i])
            part[-1] = logarithm_of_singles(np.abs(part[0]) + self._floor, UNITS)
            _limit(part)
            self._done += 1
        count = self._start + c * self._depth
        return self._inputs[:count].reshape(count, -1)


def _limit(inputs: Singles) -> None:
    np.clip(inputs, -INPUT_LIMIT, INPUT_LIMIT, out=inputs)


def _order(kind: Pass, channels: int, c: int) -> Ints:
    """Where the inputs of `_Context` for channel c stand in the file, and the bias."""
    taps, others = len(kind.known), len(kind.before)
    values = channels * (taps + 1) + c * others
    known = np.arange(channels * taps).reshape(channels, taps).T.ravel()
    means = np.arange(channels * taps, channels * (taps + 1))
    activities = values + np.arange(channels)
    log_step = values + channels + c
    order = [
        known,
        means,
        activities,
        np.array([log_step, log_step + 1]),
    ]  # without the spacings
    for b in range(c):
        start = channels * (taps + 1) + b * others
        order += [np.arange(start, start + others), np.array([values + channels + b])]
    return np.concatenate(order)


class LatticePrior:
    """Predicts latents (h, w, C) of any step, without hyperlatents."""

    def __init__(self, tensors: Mapping[str, NDArray[Any]]) -> None:
        self.channels = int(tensors["channels"][0])
        self._base = [
            Affine(tensors, f"base{c}", LOG_LIMIT, *([BASE_LIMIT] if c else []))
            for c in range(self.channels)
        ]
        self._networks = {
            (kind.name, c): Network(
                tensors, f"{kind.name}{c}", _order(kind, self.channels, c), len(SPACINGS)
            )
            for kind in PASSES
            for c in range(self.channels)
        }

    @classmethod
    @cache
    def shipped(cls, file: Weights) -> LatticePrior:
        """A prior that comes with this package, loaded once; OSError if it is damaged."""
        return cls(load_file(file.checked()))

    def code(self, coder: Coder, height: int, width: int, step: int) -> Ints:
        """Code the integers of latents (height, width, C), and return them.

        The coder knows them as "latents".  ``step`` is the quantisation step in 1/1024 of the
        latents' unit, 1 to 65535.
        """
        frames = self.code_frames(Apart([coder]), height, width, [step])
        return np.asarray(frames[0])

    def code_frames(self, coder: FrameCoder, height: int, width: int, steps: Sequence[int]) -> Ints:
        """Code the integers (F, height, width, C) of frames with a step each, as `code` does."""
        units = checked_steps(height, width, steps)
        symbols = np.zeros((len(steps), height, width, self.channels), np.int64)
        values = np.zeros((self.channels, len(steps), height, width), np.float32)
        self._code_base(coder, symbols, values, units)
        for number, spacing in enumerate(SPACINGS):
            for kind in PASSES:
                self._code_pass(coder, symbols, values, kind, number, spacing, units)
        return symbols

    def _code_base(self, coder: FrameCoder, symbols: Ints, values: Singles, steps: Ints) -> None:
        frames, height, width, _ = symbols.shape
        rows, columns = np.indices((height, width))[:, ::BASE_SPACING, ::BASE_SPACING].reshape(
            2, -1
        )
        places = len(rows)
        log_step = np.repeat(logarithm(steps.astype(np.float64)), places)[:, None]
        for c, layer in enumerate(self._base):
            known = symbols[:, rows, columns, :c] * steps[:, None, None]
            known = np.clip(known, -BASE_LIMIT, BASE_LIMIT).astype(np.float64)
            before = known.reshape(len(log_step), c)
            output = (layer(log_step, before) if c else layer(log_step)).reshape(frames, places, 2)
            scale = output[:, :, 1] + 1 >> 1 << 1
            _code_channel(coder, symbols, values, (rows, columns, c), output[:, :, 0], scale, steps)

    def _code_pass(
        self,
        coder: FrameCoder,
        symbols: Ints,
        values: Singles,
        kind: Pass,
        number: int,
        spacing: int,
        steps: Ints,
    ) -> None:
        lattice = values[:, :, ::spacing, ::spacing]
        frames = len(steps)
        pieces = _pieces(kind.places, frames, *lattice.shape[2:])
        if not pieces:
            return
        rows, columns = np.concatenate(
            [
                np.mgrid[p.start : p.stop, : p.columns].reshape(2, -1) * 2
                + np.array(p.place)[:, None]
                for p in pieces
            ],
            axis=1,
        )
        planes = _Planes(lattice)
        after: list[_Planes] = []
        # The contexts of usual pictures are kept.  Those of large pictures are computed again.
        kept = len(pieces) if frames * len(rows) <= 4 * BLOCK else 1
        context = lru_cache(kept)(lambda piece: _Context(kind, planes, piece, steps))
        for c in range(self.channels):
            network = self._networks[kind.name, c]
            outputs = []
            for piece in pieces:
                known = context(piece)
                output = network(known.inputs(c, after), number)
                output[0] += known.mean[c].ravel()
                outputs.append(output.reshape(2, frames, -1).astype(np.int64))
            mean, scale = np.concatenate(outputs, axis=2)
            index = (rows * spacing, columns * spacing, c)
            _code_channel(coder, symbols, values, index, mean * FINER, 2 * scale, steps)
            after.append(_Planes(lattice[c : c + 1]))


def _code_channel(
    coder: FrameCoder,
    symbols: Ints,
    values: Singles,
    index: tuple[Ints, Ints, int],
    mean: Ints,
    scale: Ints,
    steps: Ints,
) -> None:
    """Code places of a channel with means (F, n) in 1/1024."""
    rows, columns, c = index
    step = steps[:, None]
    # The mean in eighths of a step, rounded half up.
    mean = (2 * MEAN_UNITS * mean + step) // (2 * step)
    found = coder.code_frames("latents", index, rounded(mean, scale), scale)
    symbols[:, rows, columns, c] = found
    values[c][:, rows, columns] = np.clip(found * step >> 2, -VALUE_LIMIT, VALUE_LIMIT)
