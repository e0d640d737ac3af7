"""Cutting a picture's latents into tiles that are encoded or decoded one after another."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Area = tuple[slice, slice]  # rows and columns


class Sides(NamedTuple):
    """On which sides of a tile the picture goes on: there, and only there, it has a margin."""

    top: bool
    bottom: bool
    left: bool
    right: bool

    def trim(self, samples: Tensor, by: int) -> Tensor:
        """Samples (B, C, H, W) without the outermost ``by`` of the margin.

        Deeper layers see less far, so that a network that trims between its stages computes
        little more than what is kept.
        """
        top, bottom, left, right = (by * side for side in self)
        height, width = samples.shape[-2:]
        return samples[..., top : height - bottom, left : width - right]


WHOLE = Sides(False, False, False, False)


class Tile(NamedTuple):
    """What a tile is computed from, with its margin, and where it belongs; in latents."""

    needed: Area
    place: Area
    sides: Sides


def encode(
    pixels: NDArray[np.uint8],
    encoder: Callable[[Tensor, Sides], Tensor],
    *,
    channels: int,
    factor: int,
    side: int,
    margin: int,
) -> NDArray[np.float32]:
    """Pixels (H, W, 3) to latents (ceil(H/factor), ceil(W/factor), channels), tile by tile.

    ``encoder`` makes latents (1, C, h, w) of levels (1, 3, factor h, factor w) in 0..255, which it
    may change, and trims them: h and w are then smaller by the margins.
    """
    height, width = (-n % factor for n in pixels.shape[:2])
    pixels = np.pad(pixels, ((0, height), (0, width), (0, 0)), mode="edge")
    rows, columns = (n // factor for n in pixels.shape[:2])
    latents = np.empty((rows, columns, channels), np.float32)
    for tile in tiles(rows, columns, side, margin):
        part = torch.from_numpy(pixels[scaled(tile.needed, factor)].copy())
        with torch.inference_mode():
            out = encoder(part.permute(2, 0, 1)[None].float(), tile.sides)[0]
        latents[tile.place] = out.permute(1, 2, 0).numpy()
    return latents


def decode(
    latents: NDArray[np.float32],
    decoder: Callable[[Tensor, Sides], Tensor],
    *,
    factor: int,
    side: int,
    margin: int,
) -> NDArray[np.uint8]:
    """Latents (h, w, C) to pixels (factor h, factor w, 3), tile by tile.

    ``decoder`` makes levels of latents (1, C, h, w) and trims them.  What it returns is its
    caller's, to be rounded and clipped to 0..255 in place.
    """
    rows, columns, _ = latents.shape
    pixels = np.empty((rows * factor, columns * factor, 3), np.uint8)
    for tile in tiles(rows, columns, side, margin):
        part = torch.from_numpy(latents[tile.needed])
        with torch.inference_mode():
            levels = decoder(part.permute(2, 0, 1)[None], tile.sides)[0]
            out = levels.round_().clamp_(0, 255).to(torch.uint8)
        pixels[scaled(tile.place, factor)] = out.permute(1, 2, 0).numpy()
    return pixels


def tiles(rows: int, columns: int, side: int, margin: int) -> Iterator[Tile]:
    """Tiles of at most ``side`` x ``side``, each computed with a margin where another one follows.

    Where the margin is the networks' reach, there is no seam.  ``side`` is at least twice it.
    """
    for top, bottom in _cuts(rows, side):
        for left, right in _cuts(columns, side):
            sides = Sides(top > 0, bottom < rows, left > 0, right < columns)
            needed = (
                slice(top - margin * sides.top, bottom + margin * sides.bottom),
                slice(left - margin * sides.left, right + margin * sides.right),
            )
            yield Tile(needed, (slice(top, bottom), slice(left, right)), sides)


def _cuts(length: int, side: int) -> Iterator[tuple[int, int]]:
    """As few parts as there may be, about equally long: none is shorter than half of ``side``."""
    parts = -(-length // side)
    yield from itertools.pairwise(length * n // parts for n in range(parts + 1))


def scaled(area: Area, factor: int) -> Area:
    """An area of latents in pixels."""
    rows, columns = area
    return (
        slice(rows.start * factor, rows.stop * factor),
        slice(columns.start * factor, columns.stop * factor),
    )
