"""Predicts the stages of `mini`'s prior on ONNX Runtime, one call for each."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...arrays import Ints, Singles
from ...codings.dense import Dense
from ...codings.places import SQUARE
from ...codings.predicting import Stage
from ..runtime import Network

#: The graphs for the first group, which has nothing around, and for groups whose weights for what
#: is around have two or three digits: for each of them in the first and in the second pass.
GRAPHS = {
    (digits, second): f"prior_{digits}_{'second' if second else 'first'}"
    for digits in (0, 2, 3)
    for second in (False, True)
}


@functools.cache
def _network(digits: int, second: bool) -> Network:
    return Network(GRAPHS[digits, second], {})


def predict(stage: Stage) -> tuple[Singles, Singles]:
    """As `pillow_sdz.codings.predicting.in_numpy`, with the same results."""
    group, known, numbers = stage.group, stage.known, stage.numbers
    columns, digits = group.hidden.columns, 0
    seen, sizes = stage.inputs()
    done = seen.shape[1]
    inputs: dict[str, NDArray[Any]] = {
        "known": seen,
        "known_columns": columns[:done],
        "hidden_bias": group.hidden.bias,
        **_layer("output", group.output),
        "sizes": sizes,
        **_layer("magnitude", group.magnitude[stage.second]),
    }
    if group.around is not None:
        around, digits = group.around, len(group.around.digits)
        levels = known.levels.flat[:, : group.start]
        inputs |= {
            "levels": _at(np.ascontiguousarray(levels), known.grid.around(numbers, SQUARE)),
            "around_unit": around.unit,
            "around_bias": around.bias,
            "around_columns": columns[done : done + around.outputs],
        }
        inputs |= {f"digits{i}": digit for i, digit in enumerate(around.digits)}
        done += around.outputs
    if stage.second:
        symbols = known.clipped.flat[:, group.seen : group.end].astype(np.float32)
        inputs |= {
            "beside": _at(symbols, known.grid.around(numbers, group.taps)),
            **_layer("context", group.context),
            "seen_columns": columns[done:],
        }
    network = _network(digits, bool(stage.second))
    parameters, magnitudes = network.several("result", "magnitudes", precise=False, **inputs)
    return parameters, magnitudes


def _layer(name: str, layer: Dense) -> dict[str, Singles]:
    return {f"{name}_columns": layer.columns, f"{name}_bias": layer.bias}


def _at(values: NDArray[Any], places: Ints) -> NDArray[Any]:
    """The values (N, c) at places (n, taps), tap by tap: (n, taps * c)."""
    # With its default mode, `take` makes one more copy.
    found = values.take(places, axis=0, mode="clip")
    return found.reshape(len(places), -1)
