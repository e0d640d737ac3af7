"""The decoder of `mini` in 8 bits.

Convolutions in 8 bits have the channels last.  All of this network has them there, so that little
is moved between its layers.  Layers whose results are shuffled have their outputs in the order of
the pixels, so that a shuffle moves whole rows.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pillow_sdz.models.mini import borders, shape
from training import digits
from training.graph import Graph, Order


def decoder(g: Graph, scale: int) -> str:
    """The levels (H, W, 3) of `training.graphs.mini_decoder`."""
    d16, (d8, d4, (m, m8, m4)) = shape.DEPTHS_DECODER[2], shape.DECODERS[scale]
    side, rate = shape.FACTOR // scale, Rate(g)
    latents = digits.digits(g)
    y = digits.conv(g, latents, "decoder.enter", trimmed=0)
    y = rate.added(y, "decoder.rate.0", 0, 1)
    y = g.trim(blocks(g, y, "decoder.at16", d16), "sides", m - m8, (0, 1))
    y = rate.added(enlarged(g, y, "decoder.up8"), "decoder.rate.1", m - m8, 2)
    y = g.trim(blocks(g, y, "decoder.at8", d8), "sides", 2 * (m8 - m4), (0, 1))
    if d4:
        y = rate.added(enlarged(g, y, "decoder.up4"), "decoder.rate.2", m - m4, 4)
        y = blocks(g, y, "decoder.at4", d4, last=True)
    leave, gate, spread = "decoder.leave", "decoder.gate", 4
    if scale > 1:
        leave, gate, spread = f"{scale}.head", f"{scale}.gate", 2
    places = side // spread  # of the last stage for each latent along a side
    y = rate.times(leaving(g, y, leave, spread, places * m4), gate, m, places, spread)
    y = g.op("Transpose", y, perm=[1, 0, 2, 3])  # rows of pixels
    linear = "decoder.linear" if scale == 1 else f"{scale}.linear"
    order = by_pixel(g.dims(f"{linear}.weight")[0], side)
    image = digits.conv(g, latents, linear, trimmed=m - 1, order=order)
    image = within_borders(g, shuffled(g, image, side), scale)
    size = g.op("Shape", image)
    y = g.op("Add", image, g.op("Reshape", y, size))
    y = g.op("Add", y, g.constant(0.5, np.float32))
    # This rounds and limits.
    return g.op("QuantizeLinear", y, g.constant(1 / 255, np.float32), g.constant(0, np.uint8))


class Rate:
    """What depends on the rate: on the weights of the knots (h, w, KNOTS); h and w may be 1."""

    def __init__(self, g: Graph) -> None:
        self._g = g
        one = g.constant([1], np.int64)
        longer = g.op("Min", g.op("Sub", g.op("Shape", "rate", end=2), one), one)  # (2,), 0 or 1
        each = g.op("Gather", longer, g.constant([0, 0, 1, 1], np.int64))
        self._sides = g.op("Mul", "sides", each)

    def added(self, x: str, name: str, trimmed: int, factor: int) -> str:
        """x (h, w, c), with factor x factor places for each latent, and what a layer adds to it."""
        g, outputs = self._g, self._g.dims(f"{name}.weight")[0]
        weight = g.op("Tile", matrix(g, name), g.constant([1, factor], np.int64))
        values = g.op("MatMul", g.trim("rate", self._sides, trimmed, (0, 1)), weight)
        values = g.op("Unsqueeze", values, g.constant([1], np.int64))
        y = g.op("Add", self._by_latent(x, [], factor, outputs), values)
        return g.op("Reshape", y, g.op("Shape", x))

    def times(self, x: str, name: str, trimmed: int, factor: int, side: int) -> str:
        """x (side, h, w, side * 3), with factor x factor places for each latent, times a gate."""
        g, dims = self._g, self._g.dims(f"{name}.weight")
        weight = g.ordered(g.weight(f"{name}.weight", dims), by_pixel(dims[1], side), 1)
        weight = g.op("Reshape", weight, g.constant([dims[0], side, side * 3], np.int64))
        weight = g.op("Transpose", weight, perm=[1, 0, 2])
        weight = g.op("Tile", weight, g.constant([1, 1, factor], np.int64))
        weight = g.op("Unsqueeze", weight, g.constant([1], np.int64))
        values = g.op("MatMul", g.trim("rate", self._sides, trimmed, (0, 1)), weight)
        values = g.op("Unsqueeze", values, g.constant([2], np.int64))
        y = g.op("Mul", self._by_latent(x, [side], factor, side * 3), values)
        return g.op("Reshape", y, g.op("Shape", x))

    def _by_latent(self, x: str, before: list[int], factor: int, channels: int) -> str:
        """x (..., factor * h, factor * w, channels) as (..., h, factor, w, factor * channels).

        So a latent's places are factor rows, in each of which they lie side by side.
        """
        g, axis = self._g, len(before) + 1
        width = g.op("Shape", x, start=axis, end=axis + 1)
        width = g.op("Div", width, g.constant([factor], np.int64))
        first = g.constant([*before, -1, factor], np.int64)
        last = g.constant([factor * channels], np.int64)
        return g.op("Reshape", x, g.op("Concat", first, width, last, axis=0))


def by_pixel(outputs: int, side: int) -> NDArray[np.int64]:
    """The order (row, column, channel) of outputs that are side x side pixels."""
    return np.arange(outputs).reshape(-1, side, side).transpose(1, 2, 0).ravel()


def shuffled(g: Graph, x: str, side: int, channels: int = 3) -> str:
    """x (h, w, (side, side, channels)) as a map (side * h, side * w, channels)."""
    y = g.op("Reshape", x, g.constant([0, 0, side, side * channels], np.int64))
    y = g.op("Transpose", y, perm=[0, 2, 1, 3])
    size = g.op("Mul", g.op("Shape", x, end=2), g.constant([side], np.int64))
    size = g.op("Concat", size, g.constant([channels], np.int64), axis=0)
    return g.op("Reshape", y, size)


def matrix(g: Graph, name: str, order: Order = None) -> str:
    """The weight of a 1x1 convolution: (inputs, outputs)."""
    dims = g.dims(f"{name}.weight")
    weight = g.ordered(g.weight(f"{name}.weight", dims), order, 0)
    weight = g.op("Reshape", weight, g.constant(dims[:2], np.int64))
    return g.op("Transpose", weight, perm=[1, 0])


def enlarged(g: Graph, x: str, name: str) -> str:
    """A 1x1 convolution of x (h, w, C), shuffled by 2."""
    outputs, inputs, _, _ = g.dims(f"{name}.weight")
    order = by_pixel(outputs, 2)
    bias = g.ordered(g.weight(f"{name}.bias", (outputs,)), order, 0)
    flat = g.op("Reshape", x, g.constant([-1, inputs], np.int64))
    y = g.op("Gemm", flat, matrix(g, name, order), bias)
    size = g.op("Concat", g.op("Shape", x, end=2), g.constant([outputs], np.int64), axis=0)
    return shuffled(g, g.op("Reshape", y, size), 2, outputs // 4)


def blocks(g: Graph, x: str, name: str, depth: int, *, last: bool = False) -> str:
    """As `Graph.blocks`, of x (h, w, C)."""
    y = g.op("Unsqueeze", x, g.constant([0], np.int64))
    y = g.blocks(y, name, depth, last=last, channels_last=True)
    return g.op("Squeeze", y, g.constant([0], np.int64))


def leaving(g: Graph, x: str, name: str, side: int, trimmed: int) -> str:
    """The last convolution, of x (h, w, C), in float32: (side, h, w, side * 3).

    These are the rows of pixels of each place.  ``trimmed`` places of the margins are cut off.
    """
    dims = g.dims(f"{name}.weight")
    order = by_pixel(dims[0], side)
    weight = g.ordered(g.weight(f"{name}.weight", dims), order, 0)
    bias = g.ordered(g.weight(f"{name}.bias", dims[:1]), order, 0)
    y = g.trim(g.op("Conv", g.first(x), weight, bias, pads=[1] * 4), "sides", trimmed)
    size = g.op("Concat", g.constant([side, side * 3], np.int64), g.op("Shape", y, start=2), axis=0)
    return g.op("Transpose", g.op("Reshape", y, size), perm=[0, 2, 3, 1])


def within_borders(g: Graph, x: str, scale: int) -> str:
    """The same as `Graph.borders` of x (H, W, 3), after half a latent is cut off on each side.

    Margins of one latent are trimmed, too.
    """
    side, first = shape.FACTOR // scale, borders.inside(scale)
    length = g.op("Sub", g.op("Shape", x, end=2), g.constant([side] * 2, np.int64))
    start, last = (
        g.op("Mul", g.op("Gather", "sides", g.constant(at, np.int64)), g.constant([side], np.int64))
        for at in ([0, 2], [1, 3])
    )
    stop = g.op("Sub", length, last)
    half = g.constant([side // 2], np.int64)
    part = g.op("Add", start, half), g.op("Add", stop, half), g.constant([0, 1], np.int64)
    y = g.op("Flatten", g.op("Slice", x, *part), axis=1)
    for axis in (0, 1):
        at, zero = g.constant([axis], np.int64), g.constant([0], np.int64)
        ones = g.op("Gather", length, at)
        ones = g.op("Sub", ones, g.constant([2 * len(first)], np.int64))
        part = g.op("Gather", start, at), g.op("Gather", stop, at), zero
        factors = g.op("Slice", g.along(first, ones), *part)
        factors = g.op("Unsqueeze", factors, g.constant([1], np.int64))
        if axis:  # one for each of the three values of a pixel
            factors = g.op("Tile", factors, g.constant([1, 3], np.int64))
            factors = g.op("Reshape", factors, g.constant([1, -1], np.int64))
        y = g.op("Mul", y, factors)
    return g.op("Reshape", y, g.constant([0, -1, 3], np.int64))
