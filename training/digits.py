"""Products of latents in digits of 8 bits, in graphs.

Latents have up to three digits; `pillow_sdz.models.mini.digits` says which.  Digits are from -64 to
64, and 64 stands for 0.  So two products with weights in 8 bits have a sum that fits into 16 bits,
which CPUs without VNNI need.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
from onnx import TensorProto

from pillow_sdz.models import runtime
from pillow_sdz.models.mini.digits import HIGH, LARGEST, UNIT
from training.graph import END, MICROSOFT, Graph, Order

#: The inputs of a graph that has digits.
INPUTS = {
    "latents": (TensorProto.FLOAT, ("h", "w", "c")),
    "channels": (TensorProto.INT64, ("c",)),
    "counts": (TensorProto.INT64, (3,)),
    "unit": (TensorProto.FLOAT, ()),
    "limits": (TensorProto.FLOAT, ("l",)),
    "finer": (TensorProto.FLOAT, ("fh", "fw")),
}


class Digits(NamedTuple):
    """Latents (h, w, c) in integers of 8 bits.

    ``low`` has the low digits of all channels, then the high digits of the first ones, then the
    rests.  The numbers of the three kinds of channels are ``channels``.  ``high`` has the high
    digits of the channels ``large``.
    """

    low: str
    channels: tuple[str, str, str]
    high: str
    large: str


def digits(g: Graph) -> Digits:
    """The digits of the graph's input."""
    zero, high, unit = g.constant(LARGEST, np.uint8), g.constant(HIGH, np.float32), "unit"
    first, large, rests = (g.op("Gather", "counts", g.constant([i], np.int64)) for i in range(3))

    def part(x: str, start: str, stop: str, axis: int = 2) -> str:
        return g.op("Slice", x, start, stop, g.constant([axis], np.int64))

    start, end = g.constant([0], np.int64), g.constant([END], np.int64)
    of_large = part("latents", start, large)
    is_large = g.op("Greater", g.op("Abs", of_large), "limits")
    largest = g.op("Mul", of_large, g.op("Cast", is_large, to=TensorProto.FLOAT))
    highs = g.op("QuantizeLinear", largest, high, zero)
    beside = g.op("Sub", of_large, g.op("DequantizeLinear", highs, high, zero))
    others = part("latents", large, end)
    lows = [g.op("QuantizeLinear", x, unit, zero) for x in (beside, others)]
    more = g.op("Max", g.op("Sub", rests, large), start)  # in most files 0

    def with_rests(x: str, y: str) -> str:
        return g.op("Concat", part(x, start, rests), part(y, start, more), axis=2)

    exact, rounded = with_rests(beside, others), with_rests(*lows)
    rest = g.op("Sub", exact, g.op("DequantizeLinear", rounded, unit, zero))
    rest = g.op("Mul", rest, g.op("Unsqueeze", "finer", g.constant([2], np.int64)))
    rest = g.op("QuantizeLinear", rest, g.constant(UNIT, np.float32), zero)
    return Digits(
        g.op("Concat", *lows, part(highs, start, first), rest, axis=2),
        ("channels", part("channels", start, first, 0), part("channels", start, rests, 0)),
        highs,
        part("channels", start, large, 0),
    )


def conv(g: Graph, x: Digits, name: str, *, trimmed: int, order: Order = None) -> str:
    """A convolution of digits, as `Graph.conv_of`, with the channels last: (h', w', outputs).

    ``order`` is that of the outputs.
    """
    outputs, inputs, side, _ = g.dims(f"{name}.weight")
    bias = [g.weight(f"{name}.bias", (outputs,))] if f"{name}.bias" in g.tensors else []
    scale = g.ordered(g.weight(f"{name}.high_scale", (outputs,)), order, 0)
    few = min(inputs, runtime.PRECISE_CHANNELS)
    high, low = (
        g.ordered(g.weight(f"{name}.{part}", (side**2, known, outputs), TensorProto.INT8), order, 2)
        for part, known in (("high", inputs), ("low", few))
    )
    every, firsts, rests = x.channels
    # One sum has one unit.  High digits times low weights, and rests times high weights, have
    # another one.  It is the finer one, so these weights are rounded.
    ratio = g.op("Div", "unit", g.constant(UNIT, np.float32))
    one, none = g.constant(1, np.float32), g.constant(0, np.int8)
    kernels = [g.op("Gather", high, every, axis=1)]
    for weight, channels in ((low, firsts), (high, rests)):
        of_these = g.op("Gather", weight, channels, axis=1)
        wide = g.op("DequantizeLinear", of_these, one, none)
        kernels.append(g.op("QuantizeLinear", wide, ratio, none))
    kernel = g.op("Concat", *kernels, axis=1)
    shape = g.constant([-1, outputs], np.int64)

    def product(x: str, kernel: str, unit: str, *bias: str) -> tuple[str, str]:
        columns = around(g, g.trim(x, "sides", trimmed, (0, 1)), side)
        size, columns = g.op("Shape", columns, end=2), g.op("Flatten", columns, axis=2)
        kernel = g.op("Reshape", kernel, shape)
        given = [columns, kernel, unit, scale, g.constant(LARGEST, np.uint8), "", *bias]
        return g.op("MatMulIntegerToFloat", *given, domain=MICROSOFT), size

    total, size = product(x.low, kernel, "unit", *bias)
    kernel = g.op("Gather", high, x.large, axis=1)
    more, _ = product(x.high, kernel, g.constant(HIGH, np.float32))
    size = g.op("Concat", size, g.constant([outputs], np.int64), axis=0)
    return g.op("Reshape", g.op("Add", total, more), size)


def around(g: Graph, x: str, side: int, pad: int = 1) -> str:
    """The digits (h, w, n) at the places around each place: (h', w', side * side * n)."""
    pads = g.constant([pad, pad, 0] * 2, np.int64)
    x = g.op("Pad", x, pads, g.constant(LARGEST, np.uint8))
    axes = g.constant([0, 1], np.int64)
    parts = []
    for at in itertools.product(range(side), repeat=2):
        start = g.constant(at, np.int64)
        stop = g.constant([n - side + 1 or END for n in at], np.int64)
        parts.append(g.op("Slice", x, start, stop, axes))
    return g.op("Concat", *parts, axis=2)
