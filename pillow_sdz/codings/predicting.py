"""How a group of channels is predicted: what its layers need, and their results in numpy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from ..arrays import Ints, Singles
from .dense import Product
from .groups import HIDDEN_LIMIT, Group, rectified
from .known import Known
from .places import SQUARE
from .rate_axis import KNOTS


class Stage(NamedTuple):
    """Some places of a pass over a group of channels.

    ``numbers`` (n,) are the places, and ``given`` (n, k) has the features and the knots there.
    ``second`` is 1 in the second pass, else 0.
    """

    group: Group
    known: Known
    numbers: Ints
    given: Singles
    second: int

    def of(self, block: slice) -> Self:
        """Some of the places."""
        return self._replace(numbers=self.numbers[block], given=self.given[block])

    def inputs(self) -> tuple[Singles, Singles]:
        """What the hidden layer and the linear prediction of magnitudes see at the places."""
        known, start, numbers = self.known, self.group.start, self.numbers
        sizes = [v.flat[numbers, :start] for v in (known.magnitudes, known.rings)]
        sizes.append(self.given[:, -KNOTS:])
        if self.second:
            sizes.append(known.beside(numbers, slice(start, self.group.end)))
        return _joined([self.given, known.clipped.flat[numbers, :start]]), _joined(sizes)


#: Predicts a stage.  Returns the means and corrections of the scales (n, 2 G), and the magnitudes
#: (n, G), for a group of G channels.
Predict = Callable[[Stage], tuple[Singles, Singles]]


def in_numpy(stage: Stage, product: Product = np.matmul) -> tuple[Singles, Singles]:
    """The reference of `Predict`."""
    group, known, numbers = stage.group, stage.known, stage.numbers
    seen, sizes = stage.inputs()
    inputs = [seen]
    if group.around is not None:
        near, found = known.grid.compact(known.grid.around(numbers, SQUARE))
        levels = known.levels.at(near, slice(0, group.start))
        inputs.append(rectified(group.around.around(levels, found, product)))
    if stage.second:
        first, found = known.grid.compact(known.grid.around(numbers, group.taps))
        symbols = known.clipped.at(first, slice(group.seen, group.end))
        inputs.append(rectified(group.context.around(symbols, found, product)))
    inside = rectified(group.hidden(_joined(inputs), product), HIDDEN_LIMIT)
    return group.output(inside, product), group.magnitude[stage.second](sizes, product)


def _joined(parts: list[NDArray[Any]]) -> Singles:
    """Inputs (n, k) of one layer, side by side."""
    found: Singles = np.concatenate(parts, 1, dtype=np.float32)
    return found
