"""Cutting a picture's latents into tiles that are encoded or decoded one after another."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Area = tuple[slice, slice]  # rows and columns


class Tile(NamedTuple):
    """What is computed for a tile, which part of the result is kept, and where that belongs.

    ``needed`` and ``place`` are in the picture, ``kept`` is within ``needed``; in latents.
    """

    needed: Area
    kept: Area
    place: Area


def encode(
    pixels: NDArray[np.uint8],
    encoder: Callable[[Tensor], Tensor],
    *,
    channels: int,
    factor: int,
    side: int,
    margin: int,
) -> NDArray[np.float32]:
    """Pixels (H, W, 3) to latents (ceil(H/factor), ceil(W/factor), channels), tile by tile.

    ``encoder`` makes latents (1, C, h, w) of levels (1, 3, factor h, factor w) in 0..255.
    """
    height, width = (-n % factor for n in pixels.shape[:2])
    pixels = np.pad(pixels, ((0, height), (0, width), (0, 0)), mode="edge")
    rows, columns = (n // factor for n in pixels.shape[:2])
    latents = np.empty((rows, columns, channels), np.float32)
    for tile in tiles(rows, columns, side, margin):
        part = torch.from_numpy(pixels[scaled(tile.needed, factor)].copy())
        out = encoder(part.permute(2, 0, 1)[None].float())[0].permute(1, 2, 0).numpy()
        latents[tile.place] = out[tile.kept]
    return latents


def decode(
    latents: NDArray[np.float32],
    decoder: Callable[[Tensor], Tensor],
    *,
    factor: int,
    side: int,
    margin: int,
) -> NDArray[np.uint8]:
    """Latents (h, w, C) to pixels (factor h, factor w, 3), tile by tile.

    ``decoder`` makes levels in 0..255, not yet rounded, of latents (1, C, h, w).
    """
    rows, columns, _ = latents.shape
    pixels = np.empty((rows * factor, columns * factor, 3), np.uint8)
    for tile in tiles(rows, columns, side, margin):
        part = torch.from_numpy(latents[tile.needed])
        levels = torch.round(decoder(part.permute(2, 0, 1)[None])[0]).to(torch.uint8)
        out = levels.permute(1, 2, 0).numpy()
        pixels[scaled(tile.place, factor)] = out[scaled(tile.kept, factor)]
    return pixels


def tiles(rows: int, columns: int, side: int, margin: int) -> Iterator[Tile]:
    """Tiles of at most ``side`` x ``side``, each computed with a margin around it.

    Where the margin is the networks' reach, there is no seam.
    """
    for rows_needed, rows_kept, rows_placed in _cuts(rows, side, margin):
        for columns_needed, columns_kept, columns_placed in _cuts(columns, side, margin):
            yield Tile(
                (rows_needed, columns_needed),
                (rows_kept, columns_kept),
                (rows_placed, columns_placed),
            )


def _cuts(length: int, side: int, margin: int) -> Iterator[tuple[slice, slice, slice]]:
    for start in range(0, length, side):
        stop = min(start + side, length)
        first, last = max(0, start - margin), min(length, stop + margin)
        yield slice(first, last), slice(start - first, stop - first), slice(start, stop)


def scaled(area: Area, factor: int) -> Area:
    """An area of latents in pixels."""
    rows, columns = area
    return (
        slice(rows.start * factor, rows.stop * factor),
        slice(columns.start * factor, columns.stop * factor),
    )
