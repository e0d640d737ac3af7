"""The integer networks that predict the distribution of every symbol.

All weights and activations are integers; products are summed in floating point, which is
exact because every partial sum stays below 2 ** 53 (or 2 ** 24, where float32 will do),
whatever the order of summation.  So the same file decodes to the same integers with any
BLAS, on any machine, with any threads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .entropy import SYMBOL_LIMIT, Coder, Ints

ACTIVATION_LIMIT = (1 << 12) - 1  # wider ones save under 0.1 % (training.export), and cost time
EXACT = 1 << 53  # float64 holds every integer up to here
EXACT_SINGLE = 1 << 24  # and float32 up to here
BLOCK = 4096  # places evaluated at once: 60 MB for the widest layer.  Chosen.


class Affine:
    """y = (sum over inputs of (W_i x_i) * m_i + b + 2 ** (s - 1)) >> s, all integers.

    ``W_i`` is int8 (outputs, inputs); ``m_i`` int32 and ``b`` int64, one per output, turn
    the units of the inputs into those of the output.  ``limits`` bound each input's values;
    ValueError where, within them, a sum may reach 2 ** 53.
    """

    def __init__(self, tensors: Mapping[str, NDArray[Any]], name: str, *limits: int) -> None:
        self._shift = int(tensors[f"{name}.shift"][0])
        bias = tensors[f"{name}.bias"].astype(np.int64) + (1 << (self._shift - 1))
        self.outputs = len(bias)
        self._bias = bias.astype(np.float64)
        self._weights: list[dict[type, NDArray[Any]]] = []
        self._multipliers: list[NDArray[np.float64]] = []
        self._totals: list[int] = []
        self._limits = limits
        largest = np.abs(bias).astype(object)
        for i, limit in enumerate(limits):
            weight = np.ascontiguousarray(tensors[f"{name}.weight{i}"].T, dtype=np.float64)
            multiplier = tensors[f"{name}.multiplier{i}"].astype(np.float64)
            total = np.abs(weight).sum(0).astype(np.int64).astype(object)
            largest += total * limit * np.maximum(1, np.abs(multiplier).astype(np.int64))
            self._weights.append({np.float64: weight, np.float32: weight.astype(np.float32)})
            self._multipliers.append(multiplier)
            self._totals.append(int(total.max()))
        if largest.max() >= EXACT:
            msg = f"sums of {name} may not be exact"
            raise ValueError(msg)

    def exact_type(self, limit: int, number: int = 0) -> type:
        """The narrowest type whose sums are exact for values of input ``number`` up to a limit.

        float32 is twice as fast; both give the same integers.
        """
        return np.float32 if self._totals[number] * limit < EXACT_SINGLE else np.float64

    def __call__(self, *inputs: NDArray[Any]) -> Ints:
        """Inputs (n, k_i) or (1, k_i), floats that hold integers, to outputs (n, k)."""
        total = np.empty((len(inputs[0]), self.outputs))
        total[:] = self._bias
        for i, (x, weights) in enumerate(zip(inputs, self._weights, strict=True)):
            # By the input's limit where that will do; a look at its values costs time too.
            kind = self.exact_type(self._limits[i], i)
            if kind is np.float64 and x.dtype == np.float32:
                kind = self.exact_type(_largest(x), i)
            total += (x.astype(kind, copy=False) @ weights[kind]) * self._multipliers[i]
        total *= 2.0**-self._shift  # exact, and so is what is cut off of it
        return np.floor(total, out=total).astype(np.int64)


def _largest(values: NDArray[Any]) -> int:
    return int(max(values.max(initial=0), -values.min(initial=0)))


def rectified(x: Ints) -> NDArray[np.float32]:
    """Clipped to 0..ACTIVATION_LIMIT: the only non-linearity."""
    return np.clip(x, 0, ACTIVATION_LIMIT).astype(np.float32)


def _blocks(count: int) -> Iterator[slice]:
    """Slices of at most BLOCK places: memory stays bounded however large the picture."""
    for start in range(0, count, BLOCK):
        yield slice(start, start + BLOCK)


def _neighbours(
    volume: NDArray[Any], rows: Ints, columns: Ints, taps: list[tuple[int, int]], layer: Affine
) -> Ints:
    """A layer applied to the values around places of a volume (h, w, C); zeros outside of it."""
    reach = max(abs(dy) for dy, _ in taps)
    kind = layer.exact_type(_largest(volume))
    border = ((reach, reach), (reach, reach), (0, 0))
    padded: NDArray[Any] = np.pad(volume.astype(kind, copy=False), border)
    width = padded.shape[1]
    flat = padded.reshape(-1, padded.shape[2])
    places = (rows + reach) * width + columns + reach
    offsets = np.array([dy * width + dx for dy, dx in taps])
    out = []
    for block in _blocks(len(rows)):
        around = flat[places[block, None] + offsets]
        out.append(layer(around.reshape(len(around), -1)))
    return np.concatenate(out)


SQUARE = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
# Of a 5x5 square, the places that the first pass of a checkerboard has coded.
CHECKERBOARD = [(dy, dx) for dy in range(-2, 3) for dx in range(-2, 3) if (dy + dx) % 2]


# The four places that a place at half the resolution stands for.
PARITIES = [(0, 0), (0, 1), (1, 0), (1, 1)]


def quadrant(down: int, right: int) -> list[tuple[int, int]]:
    """Of a 3x3 square at half the resolution, the 2x2 places nearest to one of the four."""
    return [(dy, dx) for dy in (down - 1, down) for dx in (right - 1, right)]


class HyperPrior:
    """Hyperlatents at half the resolution, then a checkerboard of two passes.

    In each pass the channels come in groups; a group's distribution is predicted from the
    hyperlatents, in the second pass from the first pass around it, and from the groups
    before it at the same place.
    """

    def __init__(self, tensors: Mapping[str, NDArray[Any]]) -> None:
        self._groups = [int(g) for g in tensors["groups"]]
        self._hyper_scale = tensors["hyper_scale"].astype(np.int64)  # (2, Z)
        self._up = [Affine(tensors, f"up{i}", SYMBOL_LIMIT) for i in range(len(PARITIES))]
        self._features = Affine(tensors, "features", ACTIVATION_LIMIT)
        self._context = Affine(tensors, "context", SYMBOL_LIMIT)
        self._hidden, self._output, before = [], [], 0
        for i, group in enumerate(self._groups):
            limits = (ACTIVATION_LIMIT, ACTIVATION_LIMIT, 10000, SYMBOL_LIMIT)
            self._hidden.append(Affine(tensors, f"hidden{i}", *limits[: 3 + (before > 0)]))
            self._output.append(Affine(tensors, f"output{i}", ACTIVATION_LIMIT))
            before += group
        self.channels = before
        self.hyper_channels = self._hyper_scale.shape[1]

    def hyper_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Shape of the hyperlatents of latents (height, width)."""
        return (height + 1) // 2, (width + 1) // 2, self.hyper_channels

    def _features_of(self, hyper: Ints) -> NDArray[np.float32]:
        """Hyperlatents (hz, wz, Z) to features (2 hz, 2 wz, F)."""
        height, width, _ = hyper.shape
        rows, columns = (a.ravel() for a in np.indices((height, width)))
        up = np.empty((2 * height, 2 * width, self._up[0].outputs), np.float32)
        for (down, right), layer in zip(PARITIES, self._up, strict=True):
            part = _neighbours(hyper, rows, columns, quadrant(down, right), layer)
            up[down::2, right::2] = rectified(part).reshape(height, width, -1)
        rows, columns = (a.ravel() for a in np.indices(up.shape[:2]))
        features = rectified(_neighbours(up, rows, columns, SQUARE, self._features))
        return features.reshape(2 * height, 2 * width, -1)

    def code(self, coder: Coder, height: int, width: int, quality: int) -> Ints:
        """Code the hyperlatents and the latents; the latents (height, width, C) come back.

        ``quality`` is the header's, in hundredths.
        """
        hyper_shape = self.hyper_shape(height, width)
        hyper_scale = (self._hyper_scale[0] + self._hyper_scale[1] * quality) >> 16
        count = hyper_shape[0] * hyper_shape[1]
        scales = np.broadcast_to(hyper_scale, (count, len(hyper_scale))).ravel()
        everywhere = (slice(None), slice(None), slice(None))
        hyper = coder.code("hyper", everywhere, np.zeros(len(scales), np.int64), scales)
        features = self._features_of(hyper.reshape(hyper_shape))

        symbols = np.zeros((height, width, self.channels), np.int64)
        parity = np.indices((height, width)).sum(0) % 2
        for second in (False, True):
            rows, columns = np.nonzero(parity == (0 if second else 1))
            if not len(rows):  # a single latent has no first pass
                continue
            context = np.zeros((len(rows), self._context.outputs), np.float32)
            if second:
                around = _neighbours(symbols, rows, columns, CHECKERBOARD, self._context)
                context += np.clip(around, -ACTIVATION_LIMIT, ACTIVATION_LIMIT).astype(np.float32)
            here = features[rows, columns]
            coded = np.zeros((len(rows), self.channels), np.float32)  # exact: below 2 ** 19
            before = 0
            for group, hidden, output in zip(self._groups, self._hidden, self._output, strict=True):
                parameters = []
                rate = np.full((1, 1), quality, np.float32)  # one row for all places
                for block in _blocks(len(rows)):
                    known = [here[block], context[block], rate]
                    if before:
                        known.append(coded[block, :before])
                    parameters.append(output(rectified(hidden(*known))))
                mean, scale = np.split(np.concatenate(parameters), 2, axis=1)
                index = (rows, columns, slice(before, before + group))
                chosen = coder.code("latents", index, mean.ravel(), scale.ravel())
                symbols[index] = chosen.reshape(len(rows), group)
                coded[:, before : before + group] = symbols[index]
                before += group
        return symbols
