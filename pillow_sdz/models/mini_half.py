"""`mini` for pictures of half the width and height: better than `mini` where bits are few.

A filter makes the smaller picture.  A filter and a small CNN make it larger again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image
from safetensors.numpy import load_file

from .. import catalogue, weights
from ..arrays import Area, Latents, Mapped, Pixels, Quantisation, Samples
from ..catalogue import ModelSpec
from ..codings.hyperprior import Part
from ..codings.looking import Look
from ..codings.rate_axis import LAST
from . import runtime, tiles
from .mini import Mini, MiniPerceptual
from .mini.memory import tile_side
from .mini.shape import FACTOR
from .network import Network, Qualities
from .tiles import Tile

# To halve a picture, Lanczos's filter looks at 6 pixels on each side, and so many must be even.
REACH = 6
# The shape of the CNN: channels at half the resolution of the smaller picture, and blocks.  Chosen.
WIDTH, DEPTH = 48, 4
AROUND = 7  # pixels along a side of the square whose mean is subtracted from a pixel.  Chosen.
# The CNN looks at 23 pixels of the smaller picture on each side: 3 for that mean, and 2 for each
# convolution.  A tile that is enlarged has this margin, in latents.
MARGIN = 2
MEMORY = 100_000  # bytes that the CNN takes for each latent of a tile, margin included.  Measured.


class Half:
    """Pixels (H, W, 3) <-> `mini`'s latents (ceil(H/32), ceil(W/32), C) of a smaller picture.

    A quantisation is as in `Mini`.
    """

    factor = 2 * FACTOR

    def __init__(self, mini: Mini, decoder: Mini | MiniPerceptual) -> None:
        self._mini, self._decoder = mini, decoder
        self.prior, self.gain, self.seen = mini.prior, mini.gain, mini.seen
        tensors = load_file(weights.MINI_HALF.checked())
        self._enlarger = runtime.Network("mini_half_enlarger", tensors)

    def part(self, scale: int) -> Part:
        """What the prior codes of a picture that is decoded at 1/scale of its size."""
        return self._mini.part(max(scale // 2, 1))

    def encode(self, pixels: Samples, quantisation: Quantisation) -> Latents:
        """The latents of pixels."""
        return self._mini.encode(Halved(pixels), quantisation)

    def refine(
        self,
        pixels: Samples | None,
        steps: Latents,
        quantisation: Quantisation,
        effort: int,
    ) -> tuple[Latents, Latents]:
        """As `Mini.refine`."""
        smaller = None if pixels is None else Halved(pixels)
        return self._mini.refine(smaller, steps, quantisation, effort)

    def decode(
        self,
        latents: Samples,
        quantisation: Qualities,
        *,
        area: Area | None = None,
        scale: int = 1,
    ) -> Iterator[tuple[Area, Pixels]]:
        """The pixels of latents, as `models.network.Network` says."""
        if scale > 1:
            return self._decoder.decode(latents, quantisation, area=area, scale=scale // 2)
        return self._enlarged(latents, quantisation, area)

    def look(
        self, pixels: Samples, latents: Samples, quantisation: Qualities
    ) -> Iterator[tuple[Area, Look]]:
        """As `Mini.look`: of the smaller picture."""
        return self._mini.look(Halved(pixels), latents, quantisation)

    def _enlarged(
        self, latents: Samples, quantisation: Qualities, area: Area | None
    ) -> Iterator[tuple[Area, Pixels]]:
        height, width, _ = latents.shape
        needed = _with_margins(area or tiles.everything(height, width), (height, width))
        (down, right), smaller = self._small(latents, quantisation, needed)

        picture = quantisation.picture if isinstance(quantisation, Mapped) else quantisation
        place = np.array(self._mini.axis.places(picture) / LAST, np.float32)

        def part(tile: Tile) -> tuple[Tile, Pixels]:
            rows, columns = tiles.scaled(tile.needed, FACTOR)
            here = slice(rows.start - down, rows.stop - down)
            return tile, smaller[here, columns.start - right : columns.stop - right]

        def enlarged(given: tuple[Tile, Pixels]) -> Pixels:
            tile, pixels = given
            larger = twice(pixels)
            return self._enlarger(pixels=pixels, larger=larger, place=place, sides=tile.trimmed)

        yield from tiles.decode(
            latents.shape,
            part,
            enlarged,
            factor=self.factor,
            side=lambda workers: tile_side(MEMORY, MARGIN, workers=workers),
            margin=MARGIN,
            area=area,
        )

    def _small(
        self, latents: Samples, quantisation: Qualities, area: Area
    ) -> tuple[tuple[int, int], Pixels]:
        """The pixels of an area at half their size, and where they begin."""
        down, right = tiles.scaled(area, FACTOR)
        found = np.empty((*tiles.shape((down, right)), 3), np.uint8)
        for (rows, columns), pixels in self._decoder.decode(latents, quantisation, area=area):
            top, left = max(rows.start, down.start), max(columns.start, right.start)
            inside = pixels[top - rows.start :, left - columns.start :]
            there = found[top - down.start :, left - right.start :]
            height, width = np.minimum(inside.shape, there.shape)[:2]
            there[:height, :width] = inside[:height, :width]
        return (down.start, right.start), found


class Halved:
    """Pixels (H, W, 3) at half of their height and width, which are computed when it is sliced."""

    def __init__(self, pixels: Samples) -> None:
        self._pixels = pixels
        height, width, _ = pixels.shape
        self.shape = -(-height // 2), -(-width // 2), 3

    def __getitem__(self, area: Area) -> Pixels:
        rows, columns = (
            slice(*side.indices(length)[:2]) for side, length in zip(area, self.shape, strict=False)
        )
        tall, wide = (
            slice(max(2 * side.start - REACH, 0), 2 * side.stop + REACH) for side in (rows, columns)
        )
        part = self._pixels[tall, wide]
        even = np.pad(part, ((0, len(part) % 2), (0, part.shape[1] % 2), (0, 0)), mode="edge")
        image = Image.fromarray(even)
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS)
        top, left = rows.start - tall.start // 2, columns.start - wide.start // 2
        height, width = tiles.shape((rows, columns))
        return np.asarray(image)[top : top + height, left : left + width]


def twice(pixels: Pixels) -> Pixels:
    """Pixels (h, w, 3) at twice their height and width, by the filter alone."""
    image = Image.fromarray(pixels)
    return np.asarray(image.resize((2 * image.width, 2 * image.height), Image.Resampling.BICUBIC))


def _with_margins(area: Area, size: tuple[int, int]) -> Area:
    """An area of latents, and those that its pixels are enlarged from."""
    rows, columns = (
        slice(max(side.start - MARGIN, 0), min(side.stop + MARGIN, length))
        for side, length in zip(area, size, strict=True)
    )
    return rows, columns


def load(other: Callable[[ModelSpec], Network]) -> Half:
    """The model with `mini`'s weights; a `models.network.Loader`."""
    mini = other(catalogue.MINI)
    assert isinstance(mini, Mini)
    return Half(mini, mini)


def load_perceptual(other: Callable[[ModelSpec], Network]) -> Half:
    """As `load`, with `mini`'s second decoder."""
    mini, decoder = other(catalogue.MINI), other(catalogue.MINI_PERCEPTUAL)
    assert isinstance(mini, Mini)
    assert isinstance(decoder, MiniPerceptual)
    return Half(mini, decoder)
