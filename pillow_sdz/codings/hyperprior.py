"""The prior of latents with hyperlatents: integer networks that predict every symbol.

All weights and activations are integers; see `dense`.  docs/format.md specifies the prior.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..arrays import Ints
from . import changes, quality_map
from .dense import Dense
from .range_coder import Coder, DamagedPayload
from .rate_axis import APART, KNOTS, RateAxis

# The constants are measured or chosen: docs/measurements.md#hyperprior.

ACTIVATION_LIMIT = 511
HIDDEN_LIMIT = 4095  # of hidden layers, where rounding costs more
HYPER_LIMIT = 255  # hyperlatents are clipped to it before they enter the networks
# Magnitudes are clipped to it before they predict others, so that one does not spoil them.
LARGEST_MAGNITUDE = 60
# Predicted magnitudes are in 1/16384.
MAGNITUDE_BITS = 14
# A magnitude's exponent and the first bits after it choose its scale from a table.
MANTISSA_BITS = 5
SCALE_UNITS = 16  # of the table and of what is added to it, in an index of scales
# log2(1 + a magnitude) is in sixteenths.
LEVEL_UNITS = 16

# Places that are computed at once.  Chosen: 10 MB for the layer with the most inputs.
BLOCK = 1024

Floats = NDArray[np.float32]


def rectified(x: Floats, limit: int = ACTIVATION_LIMIT) -> Floats:
    """The values clipped to 0..limit: the only non-linearity."""
    return np.clip(x, 0, limit, out=x)


Taps = list[tuple[int, int]]

SQUARE: Taps = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
RING: Taps = [(dy, dx) for dy, dx in SQUARE if dy or dx]
BESIDE: Taps = [(dy, dx) for dy, dx in SQUARE if (dy + dx) % 2]
# The places of a 5x5 square that the first pass of the checkerboard has coded.
CHECKERBOARD: Taps = [(dy, dx) for dy in range(-2, 3) for dx in range(-2, 3) if (dy + dx) % 2]
REACH = 2  # the farthest of all taps

# The four latents that one hyperlatent stands for.
PARITIES: Taps = [(0, 0), (0, 1), (1, 0), (1, 1)]


def quadrant(down: int, right: int) -> Taps:
    """The 2x2 hyperlatents nearest to one of the four latents, in a 3x3 square of them."""
    return [(dy, dx) for dy in (down - 1, down) for dx in (right - 1, right)]


class Volume:
    """Values (h, w, C) that are 0 outside, and are read around places."""

    def __init__(self, height: int, width: int, channels: int) -> None:
        self._width = width + 2 * REACH
        self.flat = np.zeros(((height + 2 * REACH) * self._width, channels), np.float32)
        padded = self.flat.reshape(height + 2 * REACH, self._width, channels)
        self.values = padded[REACH:-REACH, REACH:-REACH]
        self._padded = padded

    def at(self, rows: Ints, columns: Ints) -> Ints:
        """The places as indices into `flat`."""
        return (rows + REACH) * self._width + columns + REACH

    def around(self, places: Ints, taps: Taps, first: int, last: int) -> Floats:
        """The channels first..last at all taps around places: (n, taps * channels)."""
        offsets = np.array([dy * self._width + dx for dy, dx in taps])
        found: Floats = self.flat[:, first:last][places[:, None] + offsets]
        return found.reshape(len(places), -1)

    def sums_at(self, rows: Ints, columns: Ints, taps: Taps, first: int, last: int) -> Floats:
        """The sums of the taps around n places: (n, channels)."""
        found = self.around(self.at(rows, columns), taps, first, last)
        total: Floats = found.reshape(len(rows), len(taps), -1).sum(1)
        return total

    def sums(self, taps: Taps, first: int, last: int) -> Floats:
        """The sums of the taps around all places: (h, w, channels)."""
        height, width, _ = self.values.shape
        total: Floats = np.zeros((height, width, last - first), np.float32)
        for dy, dx in taps:
            top, left = REACH + dy, REACH + dx
            total += self._padded[top : top + height, left : left + width, first:last]
        return total


class Coded(NamedTuple):
    """The integers of latents: symbols (h, w, C), and hyperlatents (ceil(h/2), ceil(w/2), Z).

    ``cells`` is the number of hyperlatents that were coded as changes, in all frames since the
    last one without changes.  ``offsets`` is the map of `quality_map`, or None.
    """

    symbols: Ints
    hyper: Ints
    cells: int = 0
    offsets: Ints | None = None


class HyperPrior:
    """Codes hyperlatents at half the resolution, then the latents, group by group of channels.

    The places of a group are coded in a checkerboard of two passes.  Their distribution is
    predicted from the hyperlatents, from the groups before at the same place and around it, from
    the rate, and in the second pass from the first pass around it.  The groups from ``base`` on,
    the tail, are coded only where the rate is high; elsewhere they are 0.
    """

    def __init__(self, tensors: Mapping[str, NDArray[Any]], axis: RateAxis) -> None:
        self.axis = axis
        self._starts = [0, *itertools.accumulate(int(g) for g in tensors["groups"])]
        self.channels = self._starts[-1]
        base, self._tail_from = (int(x) for x in tensors["tail"])
        self._base_groups = self._starts.index(base)
        self._hyper_scale = tensors["hyper_scale"].astype(np.int64)  # (2, Z)
        self.hyper_channels = self._hyper_scale.shape[1]
        self._largest = tensors["largest"].astype(np.float32)  # (C,): inputs are clipped to these
        self._levels = tensors["levels"].astype(np.float32)
        self._scales = tensors["scales"].astype(np.int32)
        largest = tensors["largest"].astype(np.int64)
        magnitude = np.minimum(largest, LARGEST_MAGNITUDE)
        level = tensors["levels"].astype(np.int64)[largest]

        def layer(name: str, *limits: Any) -> Dense:
            return Dense(tensors, name, np.concatenate([np.atleast_1d(x) for x in limits]))

        def activations(count: int) -> NDArray[np.int64]:
            return np.full(count, ACTIVATION_LIMIT)

        hyper = np.full(len(SQUARE) * self.hyper_channels, HYPER_LIMIT)
        self._synthesis = layer("synthesis", hyper)
        near = activations(4 * self._synthesis.outputs)
        self._up = [layer(f"up{i}", near) for i in range(len(PARITIES))]
        features = activations(self._up[0].outputs)
        knots = np.full(KNOTS, APART)
        self._context, self._taps, self._seen = [], [], []
        self._around: list[Dense | None] = []
        self._magnitude, self._hidden, self._output = [], [], []
        for i, (start, end) in enumerate(itertools.pairwise(self._starts)):
            self._seen.append(0 if start < base else start)
            inputs = end - self._seen[i]
            taps = tensors[f"context{i}.weight"].shape[1] // inputs
            self._taps.append(CHECKERBOARD if taps == len(CHECKERBOARD) else BESIDE)
            self._context.append(layer(f"context{i}", np.tile(largest[self._seen[i] : end], taps)))
            around = layer(f"around{i}", np.tile(level[:start], len(SQUARE))) if start else None
            self._around.append(around)
            known, own = magnitude[:start], magnitude[start:end]
            self._magnitude.append(
                [
                    layer(f"magnitude{i}.{second}", known, 8 * known, knots, *[4 * own] * second)
                    for second in (0, 1)
                ]
            )
            inside = activations((around.outputs if around else 0) + self._context[i].outputs)
            self._hidden.append(layer(f"hidden{i}", features, knots, largest[:start], inside))
            hidden = np.full(self._hidden[i].outputs, HIDDEN_LIMIT)
            self._output.append(layer(f"output{i}", hidden))

    def hyper_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """The shape of the hyperlatents for latents (height, width)."""
        return (height + 1) // 2, (width + 1) // 2, self.hyper_channels

    def code(
        self,
        coder: Coder,
        height: int,
        width: int,
        quality: int,
        before: Coded | None = None,
    ) -> Coded:
        """Code hyperlatents and latents (height, width, C), and return them.

        ``quality`` is the header's, in hundredths.  A map of how the cells' differ is coded first.
        ``before`` has the integers of the same band in the frame before.  With it, a map of the
        cells that change is coded instead, then these cells.  All else stays as in ``before``.
        """
        hyper_shape = self.hyper_shape(height, width)
        if before is None:
            offsets = quality_map.code(coder, *hyper_shape[:2])
            changed, cells = np.ones(hyper_shape[:2], bool), 0
            symbols = np.zeros((height, width, self.channels), np.int32)
            hyper = np.zeros(hyper_shape, np.int32)
        else:
            changed = changes.code(coder, *hyper_shape[:2])
            if not changed.any():
                return before
            cells = before.cells + int(changed.sum())
            if cells > changes.most_cells(*hyper_shape[:2]):
                msg = "more cells change in a row of DIFF than the limit"
                raise DamagedPayload(msg)
            symbols, hyper = before.symbols.copy(), before.hyper.copy()
            offsets = before.offsets

        qualities = quality_map.qualities(quality, offsets)
        rates = np.broadcast_to(self.axis.places(qualities), hyper_shape[:2])
        rows, columns = np.nonzero(changed)
        scales = (self._hyper_scale[0] + self._hyper_scale[1] * rates[rows, columns, None]) >> 16
        index: tuple[Any, ...] = (rows, columns, slice(None))
        found = coder.code("hyper", index, np.zeros(scales.size, np.int32), scales.ravel())
        hyper[index] = found.reshape(len(rows), -1)
        self._code_latents(coder, symbols, self._features(hyper, changed), changed, rates)
        return Coded(symbols, hyper, cells, offsets)

    def _features(self, hyper: Ints, cells: NDArray[np.bool_]) -> Floats:
        """Turn hyperlatents (hz, wz, Z) into features (2 hz, 2 wz, F), right in some ``cells``."""
        height, width, channels = hyper.shape
        volume = Volume(height, width, channels)
        volume.values[:] = np.clip(hyper, -HYPER_LIMIT, HYPER_LIMIT)
        near = dilated(cells)
        inside = Volume(height, width, self._synthesis.outputs)
        for rows, columns in _blocks(near):
            around = volume.around(volume.at(rows, columns), SQUARE, 0, channels)
            inside.values[rows, columns] = rectified(self._synthesis(around))
        features = np.zeros((2 * height, 2 * width, self._up[0].outputs), np.float32)
        for rows, columns in _blocks(cells):
            places = inside.at(rows, columns)
            for (down, right), layer in zip(PARITIES, self._up, strict=True):
                around = inside.around(places, quadrant(down, right), 0, self._synthesis.outputs)
                features[2 * rows + down, 2 * columns + right] = rectified(layer(around))
        return features

    def _code_latents(
        self,
        coder: Coder,
        symbols: Ints,
        features: Floats,
        changed: NDArray[np.bool_],
        rates: Ints,
    ) -> None:
        height, width, _ = symbols.shape

        def of_latents(cells: NDArray[Any]) -> NDArray[Any]:
            return cells.repeat(2, 0).repeat(2, 1)[:height, :width]

        parity = np.indices((height, width)).sum(0) % 2
        knots = of_latents(self.axis.knots(rates))
        everywhere = of_latents(changed)
        tail = everywhere & of_latents(rates >= self._tail_from)
        clipped = Volume(height, width, self.channels)
        magnitudes = Volume(height, width, self.channels)
        levels = Volume(height, width, self.channels)
        ring = np.empty((height, width, self.channels), np.float32)
        # What is near the cells that change, as no tap reaches farther; all of it if that is all.
        near = of_latents(dilated(changed))
        noted: tuple[Any, ...] = np.nonzero(near)
        if near.all():
            noted = (slice(None), slice(None))
        for i, (start, end) in enumerate(itertools.pairwise(self._starts)):
            here = everywhere if i < self._base_groups else tail
            if not here.any():
                break
            if start:
                now = slice(self._starts[i - 1], start)
                self._note(symbols, (*noted, now), clipped, magnitudes, levels)
                if near.all():
                    ring[:, :, now] = magnitudes.sums(RING, now.start, now.stop)
                else:
                    down, right = np.nonzero(everywhere)
                    found = magnitudes.sums_at(down, right, RING, now.start, now.stop)
                    ring[down, right, now] = found
            for second in (0, 1):
                if second:
                    self._note(symbols, (*noted, slice(start, end)), clipped, magnitudes, None)
                rows, columns = np.nonzero(here & (parity != second))
                group = (len(rows), end - start)
                mean, scale = np.empty(group, np.int32), np.empty(group, np.int32)
                for first in range(0, len(rows), BLOCK):
                    block = slice(first, first + BLOCK)
                    at = rows[block], columns[block]
                    places = clipped.at(*at)
                    known = [features[at], knots[at], clipped.flat[places, :start]]
                    around = self._around[i]
                    if around is not None:
                        seen = levels.around(places, SQUARE, 0, start)
                        known.append(rectified(around(seen)))
                    sizes = [magnitudes.flat[places, :start], ring[*at, :start], knots[at]]
                    if second:
                        seen = clipped.around(places, self._taps[i], self._seen[i], end)
                        known.append(rectified(self._context[i](seen)))
                        sizes.append(magnitudes.sums_at(*at, BESIDE, start, end))
                    inside = rectified(self._hidden[i](np.concatenate(known, 1)), HIDDEN_LIMIT)
                    parameters = self._output[i](inside)
                    predicted = self._magnitude[i][second](np.concatenate(sizes, 1))
                    mean[block] = parameters[:, : end - start]
                    log_scale = self._scale_of(predicted) + parameters[:, end - start :]
                    scale[block] = (log_scale.astype(np.int32) + SCALE_UNITS // 2) >> 4
                index = (rows, columns, slice(start, end))
                chosen = coder.code("latents", index, mean.ravel(), scale.ravel())
                symbols[index] = chosen.reshape(group)

    def _note(
        self,
        symbols: Ints,
        where: tuple[Any, ...],
        clipped: Volume,
        magnitudes: Volume,
        levels: Volume | None,
    ) -> None:
        """Take note of some symbols, as later ones are predicted from them.

        ``where`` are the rows, the columns, and a slice of channels.
        """
        largest = self._largest[where[2]]
        values = np.clip(symbols[where], -largest, largest)
        clipped.values[where] = values
        sizes = np.abs(values, out=values)
        if levels is not None:
            levels.values[where] = self._levels[sizes.astype(np.intp)]
        magnitudes.values[where] = np.minimum(sizes, LARGEST_MAGNITUDE)

    def _scale_of(self, magnitudes: Floats) -> Ints:
        """The scales of distributions whose mean magnitudes are given, in `SCALE_UNITS`."""
        # A float32 of at least 1 has 23 bits of mantissa below its exponent, 127 + n.
        bits = np.maximum(magnitudes, 1).view(np.int32) >> (23 - MANTISSA_BITS)
        scales: Ints = self._scales[bits - (127 << MANTISSA_BITS)]
        return scales


def dilated(cells: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The chosen cells (h, w), and those beside them."""
    height, width = cells.shape
    padded = np.pad(cells, 1)
    near = np.zeros_like(cells)
    for down, right in SQUARE:
        near |= padded[1 + down : 1 + down + height, 1 + right : 1 + right + width]
    return near


def _blocks(cells: NDArray[np.bool_]) -> Iterator[tuple[Ints, Ints]]:
    """The rows and columns of the chosen cells, at most BLOCK at once."""
    rows, columns = np.nonzero(cells)
    for start in range(0, len(rows), BLOCK):
        yield rows[start : start + BLOCK], columns[start : start + BLOCK]
