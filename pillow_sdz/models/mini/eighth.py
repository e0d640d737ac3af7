"""Decodes `mini`'s pictures at 1/8 of their size, in numpy alone.

Each pixel is a linear function of the latents around it.  One part is the decoder's linear path,
reduced.  The other part replaces the CNN: kernels for the base, multiplied by the gate.  Least
squares fitted these kernels to the reduced pictures of the decoder (training/reduced.py).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...arrays import Pixels
from ...threads import one_blas_thread
from .. import tiles
from . import borders
from .shape import BASE, CHANNELS, FACTOR, TAIL_FROM
from .tensors import Tensors, knots, reduced_gate, reduced_linear
from .tile_inputs import TileInputs

SCALE = 8
SIDE = FACTOR // SCALE  # pixels of a latent, along a side
OUTPUTS = 3 * SIDE * SIDE
KERNEL = 3  # latents that a pixel sees, along a side


class Eighth:
    """The decoder.  ``tensors`` are `mini`'s, and ``heads`` has the fitted kernels."""

    def __init__(self, tensors: Tensors, heads: Tensors) -> None:
        kernel = np.zeros((2 * OUTPUTS, CHANNELS, KERNEL, KERNEL), np.float32)
        kernel[:OUTPUTS] = linear_kernel(tensors["decoder.linear.weight"])
        kernel[OUTPUTS:, :BASE] = heads["8.head.weight"]
        self._matrix = kernel.transpose(1, 2, 3, 0).reshape(CHANNELS, -1)
        self._bias = heads["8.head.bias"].astype(np.float32)
        self._gate = reduced_gate(tensors["decoder.gate.weight"], SCALE)

    def __call__(self, tile: TileInputs, *, precise: bool) -> Pixels:
        """As `Decoder`.  All of it is in float32, so it is always ``precise``."""
        latents, _, places, sides = tile
        rows, columns, channels = latents.shape
        if not (places >= TAIL_FROM).any():
            channels = min(channels, BASE)
        # What each latent adds to the places around it.  It is moved to these places below.
        with one_blas_thread():
            products = latents[..., :channels].reshape(-1, channels) @ self._matrix[:channels]
            gate = knots(places) @ self._gate
        products = products.reshape(rows, columns, KERNEL, KERNEL, 2 * OUTPUTS)
        around = np.zeros((rows + 2, columns + 2, 2 * OUTPUTS), np.float32)
        for dy in range(KERNEL):
            for dx in range(KERNEL):
                around[2 - dy : 2 - dy + rows, 2 - dx : 2 - dx + columns] += products[:, :, dy, dx]
        linear, added = np.split(around[1:-1, 1:-1], 2, 2)
        factors = (borders.along(SIDE * length, SCALE) for length in (rows, columns))
        picture = _pixels(linear) * np.outer(*factors)[:, :, None]
        picture += _pixels((added + self._bias) * gate)
        top, bottom, left, right = SIDE * sides
        kept = picture[top : SIDE * rows - bottom, left : SIDE * columns - right]
        return tiles.levels((kept + np.float32(0.5)) * 255)


def linear_kernel(weight: NDArray[np.float16]) -> NDArray[np.float32]:
    """The linear path's kernels (768, C, 2, 2), reduced: (OUTPUTS, C, KERNEL, KERNEL).

    The given kernels are for blocks between latents.  A latent shares a quarter of its pixels with
    each of four blocks.
    """
    channels = weight.shape[1]
    blocks = reduced_linear(weight, SCALE).reshape(3, SIDE, SIDE, channels, 2, 2)
    kernel = np.zeros((3, SIDE, SIDE, channels, KERNEL, KERNEL), np.float32)
    for down in range(SIDE):
        for right in range(SIDE):
            # The upper pixels of a latent are the lower ones of the block above it.
            window = slice(down, down + 2), slice(right, right + 2)
            kernel[:, down, right, :, *window] = blocks[:, 1 - down, 1 - right]
    return kernel.reshape(OUTPUTS, channels, KERNEL, KERNEL)


def _pixels(outputs: NDArray[np.float32]) -> NDArray[np.float32]:
    """(h, w, OUTPUTS) as pixels (SIDE h, SIDE w, 3)."""
    rows, columns, _ = outputs.shape
    wide = outputs.reshape(rows, columns, 3, SIDE, SIDE).transpose(0, 3, 1, 4, 2)
    return wide.reshape(SIDE * rows, SIDE * columns, 3)
