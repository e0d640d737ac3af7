"""The trained prior for latents without hyperlatents: a lattice that gets finer by halves.

A small integer network (`integers.Affine`) predicts every value from the values around it, on all
sides, that are coded already.  The values of one pass do not depend on each other, so a photo takes
some forty calls of numpy and constriction.  The order is that of hierarchical interpolation (Burt
and Adelson's pyramid without a filter; FLIF's Adam-infinity interlacing, Sneyers and Wuille 2016).
The networks are channel-wise contexts (Minnen and Singh 2020).  docs/lattice.md specifies the
prior.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from ..arrays import Floats, Ints
from ..weights import Weights
from .integers import LOG_UNITS, STEP_LIMIT, STEP_UNITS, Affine, logarithm
from .range_coder import MEAN_UNITS, Coder

VALUE_LIMIT = (1 << 15) - 1  # of inputs: 32 units.  Chosen: latents hardly exceed 10.
ACTIVATION_LIMIT = (1 << 15) - 1  # of hidden layers.  Measured: docs/measurements.md#lattice.
LOG_LIMIT = 1 << 14  # no logarithm of an int64 in these units is larger
ACTIVITY_FLOOR = STEP_UNITS // 32  # chosen: bounds the logarithm if all neighbours are equal

BASE_SPACING = 16  # chosen: docs/measurements.md#lattice
SPACINGS = (8, 4, 2, 1)
REACH = 3  # of the taps, in spacings
BLOCK = 4096  # places that are computed at once.  Chosen, as in `hyperprior`.


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


def _clipped(x: Floats) -> Floats:
    return np.clip(x, -VALUE_LIMIT, VALUE_LIMIT)


def _rectified(x: Ints) -> Floats:
    return np.clip(x, 0, ACTIVATION_LIMIT).astype(np.float64)


class _Piece(NamedTuple):
    """A part of a pass that is computed at once: some rows of one of its sublattices."""

    place: tuple[int, int]
    start: int  # in rows of the sublattice
    stop: int
    columns: int

    def around(self, padded: Floats, taps: list[tuple[int, int]]) -> Floats:
        """Values (C, T, n) of padded lattices (C, h, w), at T offsets from n places."""
        rows = self.stop - self.start
        values = np.empty((len(padded), len(taps), rows, self.columns))
        for i, (dy, dx) in enumerate(taps):
            top = REACH + self.place[0] + dy + 2 * self.start
            left = REACH + self.place[1] + dx
            values[:, i] = padded[:, top : top + 2 * rows : 2, left : left + 2 * self.columns : 2]
        return values.reshape(len(padded), len(taps), -1)


def _pieces(places: list[tuple[int, int]], height: int, width: int) -> list[_Piece]:
    pieces = []
    for y, x in places:
        rows, columns = (height - y + 1) // 2, (width - x + 1) // 2
        if rows and columns:
            at_once = max(1, BLOCK // columns)
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


def _padded(symbols: Ints, step: int) -> Floats:
    """The values (C, h + 2 REACH, w + 2 REACH) of a lattice of symbols (h, w, C), mirrored."""
    rows, columns = _mirror(symbols.shape[0]), _mirror(symbols.shape[1])
    planes = symbols.transpose(2, 0, 1)[:, rows[:, None], columns]
    return planes.astype(np.float64) * step


class _Known(NamedTuple):
    """What all channels of a pass know of the n places of a piece."""

    mean: Floats  # (C, n): the mean of the four nearest values
    values: Floats  # (C T + C, n): the taps' differences from the mean, and the means
    activity: Floats  # (C, n): logarithms of how much the nearest values differ


class LatticePrior:
    """Predicts latents (h, w, C) of any step, without hyperlatents."""

    def __init__(self, tensors: Mapping[str, NDArray[Any]]) -> None:
        self.channels = int(tensors["channels"][0])
        values, logs = VALUE_LIMIT, LOG_LIMIT
        self._base: list[Affine] = []
        self._layers: dict[tuple[str, int], tuple[Affine, Affine, Affine]] = {}
        for c in range(self.channels):
            self._base.append(Affine(tensors, f"base{c}", *((logs, values) if c else (logs,))))
            for kind in PASSES:
                name = f"{kind.name}{c}"
                self._layers[kind.name, c] = (
                    Affine(tensors, f"{name}.first", values, logs),
                    Affine(tensors, f"{name}.second", ACTIVATION_LIMIT),
                    Affine(tensors, f"{name}.output", ACTIVATION_LIMIT, values, logs),
                )

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
        if not (0 < step < STEP_LIMIT and height > 0 and width > 0):
            msg = f"cannot code latents of {height}x{width} with a step of {step}/{STEP_UNITS}"
            raise ValueError(msg)
        symbols = np.zeros((height, width, self.channels), np.int64)
        self._code_base(coder, symbols, step)
        for spacing in SPACINGS:
            lattice = symbols[::spacing, ::spacing]
            for kind in PASSES:
                self._code_pass(coder, symbols, lattice, kind, spacing, step)
        return symbols

    def _code_base(self, coder: Coder, symbols: Ints, step: int) -> None:
        height, width, _ = symbols.shape
        rows, columns = np.indices((height, width))[:, ::BASE_SPACING, ::BASE_SPACING].reshape(
            2, -1
        )
        log_step = np.broadcast_to(logarithm(np.array([[float(step)]])), (len(rows), 1))
        for c, layer in enumerate(self._base):
            before = _clipped(symbols[rows, columns, :c].astype(np.float64) * step)
            output = layer(log_step, before) if c else layer(log_step)
            self._code_channel(coder, symbols, (rows, columns, c), output, step)

    def _code_pass(
        self, coder: Coder, symbols: Ints, lattice: Ints, kind: Pass, spacing: int, step: int
    ) -> None:
        """Code one pass; ``lattice`` is a view of ``symbols`` with the pass's spacing."""
        pieces = _pieces(kind.places, *lattice.shape[:2])
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
        padded = _padded(lattice, step)
        current = padded.copy()
        # What the channels share is kept for usual pictures, and computed again for large ones.
        pieces_kept = len(pieces) if len(rows) <= 4 * BLOCK else 1
        known = lru_cache(pieces_kept)(lambda piece: self._known(kind, padded, piece, step))
        constant = np.array([float(step)] + [LOG_UNITS * float(s == spacing) for s in SPACINGS])
        constant[:1] = logarithm(constant[:1])
        for c in range(self.channels):
            if c:
                current[c - 1 : c] = _padded(lattice[:, :, c - 1 : c], step)
            output = [
                self._output(kind, c, current, piece, known(piece), constant, step)
                for piece in pieces
            ]
            index = (rows * spacing, columns * spacing, c)
            self._code_channel(coder, symbols, index, np.concatenate(output), step)

    def _known(self, kind: Pass, padded: Floats, piece: _Piece, step: int) -> _Known:
        around = piece.around(padded, kind.known)
        mean = np.floor((around[:, :4].sum(1) + 2) / 4)
        around -= mean[:, None]
        activity = logarithm(np.abs(around[:, :4]).sum(1) + ((step >> 2) + ACTIVITY_FLOOR))
        values = np.concatenate([around.reshape(-1, mean.shape[1]), mean])
        return _Known(mean, _clipped(values), activity)

    def _output(
        self,
        kind: Pass,
        c: int,
        current: Floats,
        piece: _Piece,
        known: _Known,
        constant: Floats,
        step: int,
    ) -> Ints:
        """Means in 1/1024 and indices of scales, together (n, 2), for channel c."""
        count = known.mean.shape[1]
        values, logs = [known.values], [known.activity]
        if c:
            before = piece.around(current[:c], kind.before) - known.mean[:c, None]
            surprise = np.abs(before[:, 0]) + ((step >> 2) + ACTIVITY_FLOOR)
            values.append(_clipped(before.reshape(-1, count)))
            logs.append(logarithm(surprise))
        logs.append(np.broadcast_to(constant[:, None], (len(constant), count)))
        # Transposed views are enough: the products need no copies.
        x, log = np.concatenate(values).T, np.concatenate(logs).T
        first, second, last = self._layers[kind.name, c]
        output = last(_rectified(second(_rectified(first(x, log)))), x, log)
        output[:, 0] += known.mean[c].astype(np.int64)
        return output

    @staticmethod
    def _code_channel(
        coder: Coder, symbols: Ints, index: tuple[Ints, Ints, int], output: Ints, step: int
    ) -> None:
        # In eighths of a step, rounded half up.
        mean = (2 * MEAN_UNITS * output[:, 0] + step) // (2 * step)
        symbols[index] = coder.code("latents", index, mean, output[:, 1])
