"""The types of arrays that pass between the rooms of this package, and of areas in them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.signedinteger[Any]]
Floats = NDArray[np.float64]
Singles = NDArray[np.float32]
Bools = NDArray[np.bool_]

#: Latents (h, w, C), scaled and shifted as diffusers' pipelines return them.
Latents = NDArray[np.float32]
#: Pixels (H, W, 3), sRGB.
Pixels = NDArray[np.uint8]

CELL = 2  # latents along a side of a cell
#: A header's quantisation, or that of each cell of latents (h, w): (ceil(h/2), ceil(w/2)).
Quantisation = int | NDArray[np.int32]

Area = tuple[slice, slice]  # rows and columns
Box = tuple[int, int, int, int]  # left, top, right, bottom


class Mapped(NamedTuple):
    """The quantisation of a picture, and a function from an area of latents to theirs.

    The function returns one for all of the area, or one for each latent (h, w).
    """

    picture: int
    of: Callable[[Area], int | NDArray[np.int32]]


class Samples(Protocol):
    """An array (H, W, C), or an object that computes an area of it when it is sliced."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, area: Area, /) -> NDArray[Any]: ...
