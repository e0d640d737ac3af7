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
from training.graph import TO_FIRST, Graph


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
    for number in reversed(range(shape.DEPTHS_DECODER[0])):
        block = f"at4.{number}"
        passed = _passed(g, f"decoder.{block}", 4 * m4)
        hidden = g.op("Mul", g.conv(y, f"adjoint.{block}.second", exact=True), passed)
        y = g.op("Add", y, g.conv(hidden, f"adjoint.{block}.first", exact=True))
    y = g.conv(g.unshuffle(y, 2, n4), "adjoint.up4", exact=True)
    y = g.conv(g.unshuffle(y, 2, n8), "adjoint.up8", exact=True)
    y = g.conv_to(y, "adjoint.enter", "changed", pad=1)
    pads = g.constant([0, 0, borders.HALF, borders.HALF] * 2, np.int64)
    blocks = g.unshuffle(g.op("Pad", g.borders(error, 1), pads), shape.FACTOR)
    y = g.op("Add", y, g.conv_to(blocks, "adjoint.linear", "changed", pad=0))
    return g.last(g.trim(y, "sides", shape.ADJOINT_MARGIN))


def _passed(g: Graph, block: str, trimmed: int) -> str:
    """1 where a block's ReLU is above 0, else 0: (1, C, h, w), without ``trimmed`` places."""
    hidden = g.hidden[block]
    zero = g.constant(0, np.uint8 if g.int8 else np.float32)
    found = g.op("Cast", g.op("Greater", hidden, zero), to=TensorProto.FLOAT)
    if g.int8:
        found = g.op("Transpose", found, perm=TO_FIRST)
    return g.trim(found, "sides", trimmed)
