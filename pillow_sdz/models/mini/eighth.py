"""Decodes `mini`'s pictures at 1/8 of their size, in numpy alone.

A pixel is a linear function of the latents around it.  Its inputs are the latents, and the latents
times their place on the rate axis.  It was fitted by least squares to the reduced pictures of the
decoder (training/reduced.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from numpy.typing import NDArray

from ...arrays import Area, Ints, Pixels, Samples

SIDE = 2  # pixels of a latent, along a side
MARGIN = 1  # latents that it sees beyond a tile


def decode(
    latents: Samples, tensors: Mapping[str, NDArray[Any]], places: Ints, area: Area | None
) -> Iterator[tuple[Area, Pixels]]:
    """As `Mini.decode`, with a scale of 8; ``places`` are those on the rate axis."""
    raise NotImplementedError
