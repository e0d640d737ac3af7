"""Decodes `mini`'s pictures at 1/8 of their size, in numpy alone.

A pixel is a linear function of the latents around it.  Its inputs are the latents, and the latents
times their place on the rate axis.  It was fitted by least squares to the reduced pictures of the
decoder (training/reduced.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...arrays import Area, Pixels, Samples
from .. import tiles
from .memory import DECODER_MEMORY, tile_side

SIDE = 2  # pixels of a latent, along a side
MARGIN = 1  # latents that it sees beyond a tile


def decode(
    latents: Samples, tensors: Mapping[str, NDArray[Any]], place: np.float32, area: Area | None
) -> Iterator[tuple[Area, Pixels]]:
    """As `Mini.decode`, with a scale of 8; ``place`` is that on the rate axis, in [0, 1]."""
    plain, times_rate = np.split(tensors["8.head.weight"].astype(np.float32), 2, 1)
    kernel = plain + (2 * place - 1) * times_rate  # (12, C, 3, 3)
    outputs, inputs, height, width = kernel.shape
    matrix = kernel.transpose(1, 2, 3, 0).reshape(inputs, -1)
    bias = tensors["8.head.bias"].astype(np.float32)

    def levels(part: NDArray[np.float32], sides: NDArray[np.int64]) -> Pixels:
        rows, columns = part.shape[:2]
        # What each latent adds to the places around it, before it is moved there.
        products = (part.reshape(-1, inputs) @ matrix).reshape(
            rows, columns, height, width, outputs
        )
        around = np.zeros((rows + 2, columns + 2, outputs), np.float32)
        for dy in range(height):
            for dx in range(width):
                around[2 - dy : 2 - dy + rows, 2 - dx : 2 - dx + columns] += products[:, :, dy, dx]
        top, bottom, left, right = 1 + sides * MARGIN
        kept = around[top : rows + 2 - bottom, left : columns + 2 - right] + bias
        wide = kept.reshape(*kept.shape[:2], 3, SIDE, SIDE).transpose(0, 3, 1, 4, 2)
        picture = wide.reshape(SIDE * kept.shape[0], SIDE * kept.shape[1], 3)
        return tiles.levels((picture + np.float32(0.5)) * 255)

    columns = latents.shape[1]
    return tiles.decode(
        latents,
        levels,
        area=area,
        factor=SIDE,
        side=lambda workers: tile_side(DECODER_MEMORY, MARGIN, columns, workers=workers),
        margin=MARGIN,
    )
