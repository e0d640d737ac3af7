"""Cuts a picture's latents into tiles, and encodes or decodes one after another."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .. import progress
from ..arrays import Area, Latents, Pixels, Samples
from .running import undisturbed


class Sides(NamedTuple):
    """On which sides the picture goes on beyond a tile.  Only there the tile has a margin."""

    top: bool
    bottom: bool
    left: bool
    right: bool

    def trim(self, samples: Tensor, by: int) -> Tensor:
        """Samples (B, C, H, W) without the outermost ``by`` of the margin.

        The layers that are left need a smaller margin.  A network that trims between its stages
        computes little that is not kept.
        """
        top, bottom, left, right = (by * side for side in self)
        height, width = samples.shape[-2:]
        return samples[..., top : height - bottom, left : width - right]


WHOLE = Sides(False, False, False, False)


class Tile(NamedTuple):
    """The area that a tile is computed from, with its margin, and its own area; in latents."""

    needed: Area
    place: Area
    sides: Sides


def encode(
    pixels: Samples,
    encoder: Callable[[Tensor, Sides], Tensor],
    *,
    channels: int,
    factor: int,
    side: int,
    margin: int,
) -> Latents:
    """Pixels (H, W, 3) to latents (ceil(H/factor), ceil(W/factor), channels), tile by tile.

    ``encoder`` turns levels (1, 3, factor h, factor w) in 0..255 into latents (1, C, h, w), and
    trims the margins of these.  It may change the levels.
    """
    rows, columns = (-(-n // factor) for n in pixels.shape[:2])
    latents = np.empty((rows, columns, channels), np.float32)
    cut = tiles(everything(rows, columns), rows, columns, side, margin)
    for tile in progress.told("encoding", list(cut)):
        needed = scaled(tile.needed, factor)
        part = pixels[needed]
        # Beyond the right and the bottom edge, the last pixels are repeated.
        missing = [n.stop - n.start - length for n, length in zip(needed, part.shape, strict=False)]
        part = np.pad(part, ((0, missing[0]), (0, missing[1]), (0, 0)), mode="edge")
        with undisturbed(), torch.inference_mode():
            levels = torch.from_numpy(part).permute(2, 0, 1)[None].float()
            out = encoder(levels, tile.sides)[0]
        latents[tile.place] = out.permute(1, 2, 0).numpy()
    return latents


def decode(
    latents: Samples,
    decoder: Callable[[Tensor, Sides], Tensor],
    *,
    factor: int,
    side: int,
    margin: int,
    area: Area | None = None,
) -> Iterator[tuple[Area, Pixels]]:
    """Latents (h, w, C) to pixels (factor h, factor w, 3): each tile's place and pixels.

    ``area`` is the needed part of the latents; tiles may reach beyond it.  ``decoder`` turns
    latents (1, C, h, w) into levels, and trims their margins.  Its result is rounded and clipped to
    0..255 in place.
    """
    rows, columns, _ = latents.shape
    cut = tiles(area or everything(rows, columns), rows, columns, side, margin)
    for tile in progress.told("decoding", list(cut)):
        part = torch.from_numpy(latents[tile.needed])
        with undisturbed(), torch.inference_mode():
            levels = decoder(part.permute(2, 0, 1)[None], tile.sides)[0]
            out = levels.round_().clamp_(0, 255).to(torch.uint8)
            pixels: Pixels = out.permute(1, 2, 0).contiguous().numpy()
        yield scaled(tile.place, factor), pixels


def assembled(pieces: Iterable[tuple[Area, Pixels]], latents: Samples, factor: int) -> Pixels:
    """The pieces that `decode` makes of all latents, as one picture."""
    rows, columns = latents.shape[:2]
    pixels = np.empty((factor * rows, factor * columns, 3), np.uint8)
    for place, piece in pieces:
        pixels[place] = piece
    return pixels


def everything(rows: int, columns: int) -> Area:
    """The area of a whole picture."""
    return slice(0, rows), slice(0, columns)


def tiles(area: Area, rows: int, columns: int, side: int, margin: int) -> Iterator[Tile]:
    """Tiles of at most ``side`` x ``side``, with margins on the sides where the picture goes on.

    Together they cover the area.  If the rest of the picture beyond the area is narrower than a
    margin, they cover it too.  If the margin is the network's reach, there are no seams.  ``side``
    is at least twice the margin.
    """
    for top, bottom in _cuts(_widened(area[0], rows, margin), side):
        for left, right in _cuts(_widened(area[1], columns, margin), side):
            sides = Sides(top > 0, bottom < rows, left > 0, right < columns)
            needed = (
                slice(top - margin * sides.top, bottom + margin * sides.bottom),
                slice(left - margin * sides.left, right + margin * sides.right),
            )
            yield Tile(needed, (slice(top, bottom), slice(left, right)), sides)


def _widened(part: slice, length: int, margin: int) -> tuple[int, int]:
    start, stop = part.start, part.stop
    return (0 if start < margin else start), (length if stop > length - margin else stop)


def _cuts(whole: tuple[int, int], side: int) -> Iterator[tuple[int, int]]:
    """As few parts as possible, of about equal length: none is shorter than half of ``side``."""
    start, stop = whole
    length = stop - start
    parts = -(-length // side)
    yield from itertools.pairwise(start + length * n // parts for n in range(parts + 1))


def scaled(area: Area, factor: int) -> Area:
    """An area of latents in pixels."""
    rows, columns = area
    return (
        slice(rows.start * factor, rows.stop * factor),
        slice(columns.start * factor, columns.stop * factor),
    )
