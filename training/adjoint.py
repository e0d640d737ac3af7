"""What to change in latents, so that the decoded picture has less error: a graph.

The squared error has a gradient by the latents, which is the adjoint of the decoder's derivative,
applied to the error of each pixel.  Here the error goes back through the decoder: its linear path,
the last convolution, all blocks at 1/4 of the resolution, and the layers between the stages.  The
blocks at 1/8 and 1/16 are left out.  They take more time than they are worth
(docs/measurements.md#looking).
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from pillow_sdz.models.mini import borders, shape
from pillow_sdz.models.mini.digits import LARGEST
from pillow_sdz.models.runtime import LARGEST_INT8
from training import digits
from training.graph import MICROSOFT, TO_FIRST, TO_LAST, Graph

# The least unit is that of this largest value.  Chosen: it is far below a grey level.
LEAST = 1e-6
HALF_OF_UINT8 = 128  # stands for 0


def change(g: Graph, shown: str, gate: str, *, trimmed: int, m4: int) -> str:
    """What to add to latents (h, w, C), multiplied by a step's length, for channels ``changed``.

    ``shown`` (H, W, 3) are the decoded levels, without ``trimmed`` latents of the margins.  The
    blocks at 1/4 have margins of ``m4`` latents more than these.
    """
    n4, n8, _ = shape.WIDTHS
    pixels = g.trim("pixels", "sides", shape.FACTOR * trimmed, (0, 1))
    error = g.op("Sub", *(g.op("Cast", x, to=TensorProto.FLOAT) for x in (pixels, shown)))
    error = g.first(g.op("Div", error, g.constant(255, np.float32)))
    y = g.op("Mul", g.unshuffle(error, 4), gate)
    y = g.conv(y, "adjoint.leave", exact=True)
    y = (_blocks_in_8_bits if g.int8 else _blocks)(g, y, 4 * m4)
    y = g.conv(g.unshuffle(y, 2, n4), "adjoint.up4", exact=True)
    y = g.conv(g.unshuffle(y, 2, n8), "adjoint.up8", exact=True)
    pads = g.constant([0, 0, borders.HALF, borders.HALF] * 2, np.int64)
    blocks = g.unshuffle(g.op("Pad", g.borders(error, 1), pads), shape.FACTOR)
    to_latents = _of_digit if g.int8 else _of_floats
    y = to_latents(g, y, "adjoint.enter", pad=1)
    y = g.op("Add", y, to_latents(g, blocks, "adjoint.linear", pad=0))
    return g.trim(y, "sides", shape.ADJOINT_MARGIN, (0, 1))


def _of_floats(g: Graph, x: str, name: str, *, pad: int) -> str:
    """A convolution of (1, C, h, w) to the ``changed`` latents (h', w', n)."""
    return g.last(g.conv_to(x, name, "changed", pad=pad))


def _of_digit(g: Graph, x: str, name: str, *, pad: int) -> str:
    """The same with one digit of 8 bits, whose unit is as fine as the largest value allows."""
    outputs, inputs, side, _ = g.dims(f"{name}.weight")
    x = g.last(x)
    unit = _unit(g, x, LARGEST)
    zero = g.constant(LARGEST, np.uint8)
    x = g.op("QuantizeLinear", x, unit, zero)
    columns = digits.around(g, x, side, pad)
    count = g.op("Shape", "changed")  # these are the first channels
    kernel = g.weight(f"{name}.high", (side**2, inputs, outputs), TensorProto.INT8)
    kernel = g.op("Slice", kernel, g.constant([0], np.int64), count, g.constant([2], np.int64))
    kernel = g.op("Reshape", kernel, g.constant([side**2 * inputs, -1], np.int64))
    scale = g.op("Gather", g.weight(f"{name}.high_scale", (outputs,)), "changed")
    size = g.op("Concat", g.op("Shape", columns, end=2), g.constant([-1], np.int64), axis=0)
    given = [
        g.op("Flatten", columns, axis=2),
        kernel,
        unit,
        scale,
        g.constant(LARGEST, np.uint8),
    ]
    y = g.op("MatMulIntegerToFloat", *given, domain=MICROSOFT)
    return g.op("Reshape", y, size)


def _blocks(g: Graph, y: str, trimmed: int) -> str:
    """Back through the blocks at 1/4, from the last to the first: (1, C, h, w)."""
    for block in _names():
        hidden = g.trim(g.hidden[f"decoder.{block}"], "sides", trimmed)
        passed = g.op("Greater", hidden, g.constant(0, np.float32))
        passed = g.op("Cast", passed, to=TensorProto.FLOAT)
        inside = g.op("Mul", g.conv(y, f"adjoint.{block}.second", exact=True), passed)
        y = g.op("Add", y, g.conv(inside, f"adjoint.{block}.first", exact=True))
    return y


def _blocks_in_8_bits(g: Graph, y: str, trimmed: int) -> str:
    """The same with convolutions in 8 bits.  Their units follow the largest value at the block."""
    y = g.op("Transpose", y, perm=TO_LAST)
    for block in _names():
        hidden = g.trim(g.hidden[f"decoder.{block}"], "sides", trimmed, (1, 2))
        passed = g.op("Greater", hidden, g.constant(0, np.uint8))
        passed = g.op("Cast", passed, to=TensorProto.FLOAT)
        unit = _unit(g, y, LARGEST_INT8)
        inside, unit = _conv(g, y, unit, f"adjoint.{block}.second")
        inside, _ = _conv(g, g.op("Mul", inside, passed), unit, f"adjoint.{block}.first")
        y = g.op("Add", y, inside)
    return g.op("Transpose", y, perm=TO_FIRST)


def _conv(g: Graph, x: str, unit: str, layer: str) -> tuple[str, str]:
    """A convolution of (1, h, w, C), rounded to this unit; and the unit of its result."""
    zero = g.constant(HALF_OF_UINT8, np.uint8)
    dims = g.dims(f"{layer}.weight")
    weight = g.weight(f"{layer}.weight", dims, TensorProto.INT8)
    scale = g.weight(f"{layer}.weight_scale", dims[:1])
    none = g.constant(np.zeros(dims[0]), np.int8)
    larger = g.op("Mul", unit, g.weight(f"{layer}.growth", ()))
    x = g.op("QuantizeLinear", x, unit, zero)
    given = [x, unit, zero, weight, scale, none, larger, zero]
    y = g.op("QLinearConv", *given, domain=MICROSOFT, channels_last=1, pads=[1] * 4)
    return g.op("DequantizeLinear", y, larger, zero), larger


def _names() -> list[str]:
    """The blocks at 1/4, the last one first."""
    return [f"at4.{number}" for number in reversed(range(shape.DEPTHS_DECODER[0]))]


def _unit(g: Graph, x: str, largest: int) -> str:
    """What 1 of integers is worth, if ``largest`` stands for the largest magnitude in x."""
    most = g.op("ReduceMax", g.op("Abs", x), keepdims=0)
    most = g.op("Max", most, g.constant(LEAST, np.float32))
    return g.op("Div", most, g.constant(largest, np.float32))
