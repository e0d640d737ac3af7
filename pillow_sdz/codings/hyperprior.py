"""The prior of latents with hyperlatents: integer networks that predict every symbol.

All weights and activations are integers; see `integers`.  docs/format.md specifies the prior.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..arrays import Ints
from ..catalogue import HIGHEST_QUALITY
from . import changes
from .integers import Affine, largest_magnitude
from .range_coder import SYMBOL_LIMIT, Coder, DamagedPayload

ACTIVATION_LIMIT = (1 << 12) - 1  # measured: docs/measurements.md#hyperprior
# Places that are computed at once.  Chosen: 16 MB for the widest layer.
BLOCK = 1024

# If the values around some places are less than this part of the volume, they are taken one by one,
# and not out of a copy of the volume with a border.  Chosen: the copy takes as long.
FEW = 1


def rectified(x: Ints) -> NDArray[np.float32]:
    """The values clipped to 0..ACTIVATION_LIMIT: the only non-linearity."""
    return np.clip(x, 0, ACTIVATION_LIMIT).astype(np.float32)


def _limited(x: Ints) -> NDArray[np.float32]:
    return np.clip(x, -ACTIVATION_LIMIT, ACTIVATION_LIMIT).astype(np.float32)


def _in_32_bits(x: Ints) -> NDArray[np.int32]:
    """Clipped to 32 bits.  The limits of means and scales are narrower."""
    return np.clip(x, -(1 << 31), (1 << 31) - 1).astype(np.int32)


def _blocks(count: int) -> Iterator[slice]:
    """Slices of at most BLOCK places.  They bound the memory for large pictures."""
    for start in range(0, count, BLOCK):
        yield slice(start, min(start + BLOCK, count))


def _neighbours(
    volume: NDArray[Any],
    rows: Ints,
    columns: Ints,
    taps: list[tuple[int, int]],
    layer: Affine,
    activation: Callable[[Ints], NDArray[np.float32]],
) -> NDArray[np.float32]:
    """A layer's outputs (n, outputs) at n places of a volume (h, w, C).

    Its inputs are the values at ``taps`` around each place, zero outside the volume.
    """
    out = np.empty((len(rows), layer.outputs), np.float32)
    if len(rows) * len(taps) < FEW * volume.shape[0] * volume.shape[1]:
        around = _around(volume, rows, columns, taps)
        kind = layer.exact_type(largest_magnitude(around))
        out[:] = activation(layer(around.astype(kind, copy=False)))
        return out
    reach = max(abs(dy) for dy, _ in taps)
    kind = layer.exact_type(largest_magnitude(volume))
    border = ((reach, reach), (reach, reach), (0, 0))
    padded: NDArray[Any] = np.pad(volume.astype(kind, copy=False), border)
    width = padded.shape[1]
    flat = padded.reshape(-1, padded.shape[2])
    places = (rows + reach) * width + columns + reach
    offsets = np.array([dy * width + dx for dy, dx in taps])
    for block in _blocks(len(rows)):
        around = flat[places[block, None] + offsets]
        out[block] = activation(layer(around.reshape(len(around), -1)))
    return out


def _around(
    volume: NDArray[Any], rows: Ints, columns: Ints, taps: list[tuple[int, int]]
) -> NDArray[Any]:
    """The values (n, taps * C) around n places of a volume (h, w, C), zero outside of it."""
    height, width, _ = volume.shape
    down, right = np.array(taps).T
    rows, columns = rows[:, None] + down, columns[:, None] + right
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    values: NDArray[Any] = volume[rows * inside, columns * inside] * inside[:, :, None]
    return values.reshape(len(rows), -1)


SQUARE = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
# The places of a 5x5 square that the first pass of the checkerboard has coded.
CHECKERBOARD = [(dy, dx) for dy in range(-2, 3) for dx in range(-2, 3) if (dy + dx) % 2]


# The four latents that one hyperlatent stands for.
PARITIES = [(0, 0), (0, 1), (1, 0), (1, 1)]


def quadrant(down: int, right: int) -> list[tuple[int, int]]:
    """The 2x2 hyperlatents nearest to one of the four latents, in a 3x3 square of them."""
    return [(dy, dx) for dy in (down - 1, down) for dx in (right - 1, right)]


class Coded(NamedTuple):
    """The integers of latents: symbols (h, w, C), and hyperlatents (ceil(h/2), ceil(w/2), Z).

    ``cells`` is the number of hyperlatents that were coded as changes, in all frames since the
    last one without changes.
    """

    symbols: Ints
    hyper: Ints
    cells: int = 0


class HyperPrior:
    """Codes hyperlatents at half the resolution, then the latents in a checkerboard of two passes.

    In each pass, the channels come in groups.  The distribution of a group is predicted from the
    hyperlatents and from the groups before it at the same place.  In the second pass, it is also
    predicted from the first pass around it.
    """

    def __init__(self, tensors: Mapping[str, NDArray[Any]]) -> None:
        self._groups = [int(g) for g in tensors["groups"]]
        self._hyper_scale = tensors["hyper_scale"].astype(np.int64)  # (2, Z)
        self._up = [Affine(tensors, f"up{i}", SYMBOL_LIMIT) for i in range(len(PARITIES))]
        self._features = Affine(tensors, "features", ACTIVATION_LIMIT)
        self._context = Affine(tensors, "context", SYMBOL_LIMIT)
        self._hidden, self._output, before = [], [], 0
        for i, group in enumerate(self._groups):
            limits = (ACTIVATION_LIMIT, ACTIVATION_LIMIT, HIGHEST_QUALITY, SYMBOL_LIMIT)
            self._hidden.append(Affine(tensors, f"hidden{i}", *limits[: 3 + (before > 0)]))
            self._output.append(Affine(tensors, f"output{i}", ACTIVATION_LIMIT))
            before += group
        self.channels = before
        self.hyper_channels = self._hyper_scale.shape[1]

    def hyper_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """The shape of the hyperlatents for latents (height, width)."""
        return (height + 1) // 2, (width + 1) // 2, self.hyper_channels

    def _features_of(
        self, hyper: Ints, cells: NDArray[np.bool_], rows: Ints, columns: Ints
    ) -> NDArray[np.float32]:
        """Turn hyperlatents (hz, wz, Z) into features (n, F) at n places in some ``cells``."""
        height, width, _ = hyper.shape
        padded = np.pad(cells, 1)
        near = np.zeros_like(cells)
        for down, right in SQUARE:
            near |= padded[1 + down : 1 + down + height, 1 + right : 1 + right + width]
        above, left = np.nonzero(near)
        up = np.zeros((2 * height, 2 * width, self._up[0].outputs), np.float32)
        for (down, right), layer in zip(PARITIES, self._up, strict=True):
            part = _neighbours(hyper, above, left, quadrant(down, right), layer, rectified)
            up[2 * above + down, 2 * left + right] = part
        return _neighbours(up, rows, columns, SQUARE, self._features, rectified)

    def code(
        self,
        coder: Coder,
        height: int,
        width: int,
        quality: int,
        before: Coded | None = None,
    ) -> Coded:
        """Code hyperlatents and latents (height, width, C), and return them.

        ``quality`` is the header's, in hundredths.  ``before`` has those of the same band in the
        frame before.  With it, a map of the cells that change is coded first, then these cells.
        The others stay as they are in ``before``.
        """
        hyper_shape = self.hyper_shape(height, width)
        if before is None:
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

        hyper_scale = (self._hyper_scale[0] + self._hyper_scale[1] * quality) >> 16
        rows, columns = np.nonzero(changed)
        scales = np.broadcast_to(hyper_scale, (len(rows), len(hyper_scale))).ravel()
        index: tuple[Any, ...] = (rows, columns, slice(None))
        found = coder.code("hyper", index, np.zeros(len(scales), np.int32), scales)
        hyper[index] = found.reshape(len(rows), -1)

        parity = np.indices((height, width)).sum(0) % 2
        inside = changed.repeat(2, 0).repeat(2, 1)[:height, :width]
        # The places of the first pass, then of the second.  A single latent has no first pass.
        passes = [np.nonzero(inside & (parity == first)) for first in (1, 0)]
        places = (np.concatenate(a) for a in zip(*passes, strict=True))
        features = self._features_of(hyper, changed, *places)
        start = 0
        for second, (rows, columns) in enumerate(passes):
            here = features[start : start + len(rows)]
            start += len(rows)
            context = np.zeros((len(rows), self._context.outputs), np.float32)
            if second:
                context = _neighbours(symbols, rows, columns, CHECKERBOARD, self._context, _limited)
            rate = np.full((1, 1), quality, np.float32)  # one row for all places
            coded = np.empty((len(rows), self.channels), np.float32)  # exact: below 2 ** 19
            before_group = 0
            for group, hidden, output in zip(self._groups, self._hidden, self._output, strict=True):
                mean = np.empty((len(rows), group), np.int32)
                scale = np.empty((len(rows), group), np.int32)
                for block in _blocks(len(rows)):
                    known = [here[block], context[block], rate]
                    if before_group:
                        known.append(coded[block, :before_group])
                    parameters = output(rectified(hidden(*known)))
                    mean[block], scale[block] = np.split(_in_32_bits(parameters), 2, axis=1)
                group_index = (rows, columns, slice(before_group, before_group + group))
                chosen = coder.code("latents", group_index, mean.ravel(), scale.ravel())
                symbols[group_index] = chosen.reshape(len(rows), group)
                coded[:, before_group : before_group + group] = symbols[group_index]
                before_group += group
        return Coded(symbols, hyper, cells)
