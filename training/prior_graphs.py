"""Graphs of the layers that predict a stage (`pillow_sdz.codings.predicting`), in integers.

Their sums are exact, so they have the results of `in_numpy`, to the last bit.  Weights are inputs,
because each group of channels has its own.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from onnx import TensorProto

from pillow_sdz.codings.dense import BASE
from pillow_sdz.codings.groups import ACTIVATION_LIMIT, HIDDEN_LIMIT
from pillow_sdz.models.mini import predicting
from training.graph import Graph

Inputs = dict[str, tuple[int, tuple[Any, ...]]]

FLOAT = TensorProto.FLOAT


def _layer(name: str, outputs: str) -> Inputs:
    return {f"{name}_columns": (FLOAT, (name, outputs)), f"{name}_bias": (FLOAT, (outputs,))}


# The values that a layer of a stage sees, its weights, and its bias.  The hidden layer sees three
# kinds of values, each with its own part of the weights.
STAGE: Inputs = {
    "known": (FLOAT, ("n", "known")),
    "known_columns": (FLOAT, ("known", "hidden")),
    "hidden_bias": (FLOAT, ("hidden",)),
    **_layer("output", "parameters"),
    "sizes": (FLOAT, ("n", "magnitude")),
    **_layer("magnitude", "G"),
}
# Besides, there are the digits of the weights for ``levels``, the highest first.
AROUND: Inputs = {
    "levels": (TensorProto.UINT8, ("n", "square")),
    "around_unit": (FLOAT, ("a",)),
    "around_bias": (FLOAT, ("a",)),
    "around_columns": (FLOAT, ("a", "hidden")),
}
CONTEXT: Inputs = {
    "beside": (FLOAT, ("n", "context")),
    **_layer("context", "c"),
    "seen_columns": (FLOAT, ("c", "hidden")),
}


def build(g: Graph, digits: int, second: bool) -> bytes:
    """The graph of a stage.  ``digits`` are those of the weights for levels, if there are any."""

    def rectified(x: str, limit: int = ACTIVATION_LIMIT) -> str:
        return g.op("Clip", g.op("Floor", x), *(g.constant(n, np.float32) for n in (0, limit)))

    inputs = dict(STAGE)
    hidden = g.op("Gemm", "known", "known_columns", "hidden_bias")
    if digits:
        inputs |= AROUND
        total = ""
        for number in range(digits):
            name = f"digits{number}"
            inputs[name] = TensorProto.INT8, ("square", "a")
            sums = g.op("MatMulInteger", "levels", name)
            # If a sum of some digits overflows, the next one mends it.
            base = g.constant(BASE, np.int32)
            total = g.op("Add", g.op("Mul", total, base), sums) if total else sums
        total = g.op("Mul", g.op("Cast", total, to=FLOAT), "around_unit")
        near = rectified(g.op("Add", total, "around_bias"))
        hidden = g.op("Gemm", near, "around_columns", hidden)
    if second:
        inputs |= CONTEXT
        seen = rectified(g.op("Gemm", "beside", "context_columns", "context_bias"))
        hidden = g.op("Gemm", seen, "seen_columns", hidden)
    hidden = rectified(hidden, HIDDEN_LIMIT)
    parameters = g.op("Floor", g.op("Gemm", hidden, "output_columns", "output_bias"))
    magnitude = g.op("Floor", g.op("Gemm", "sizes", "magnitude_columns", "magnitude_bias"))
    g.output(magnitude, "magnitudes", FLOAT, ("n", "G"))
    return g.finish(parameters, inputs, FLOAT, ("n", "parameters"))


#: How each graph is built.
STAGES = {
    name: functools.partial(build, digits=digits, second=second)
    for (digits, second), name in predicting.GRAPHS.items()
}
