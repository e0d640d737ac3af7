"""An encoder decodes what it is about to write, looks at it, and writes something better.

Cells that look worse than the rest get a higher quality (`allocation`).  All latents change by one
step of gradient descent on the squared error of the pixels: what is lost by rounding one latent,
the latents around it can give back in part (Campos et al., "Content Adaptive Optimization for
Neural Image Compression", CVPR workshops 2019, with many steps).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ..arrays import CELL, Area, Latents, Mapped, Pixels, Quantisation, Samples
from ..spaces import HIGHEST_QUALITY
from . import allocation, quality_map
from .coding import Frame
from .places import doubled

# An encoder looks once for each range of this many hundredths of quality, in the middle of the
# range.  Chosen: a search over qualities then looks seldom, and latents are rounded nearly as they
# will be, because steps change by 1.4 % at most.
LOOKED_AT = 50
# From this quality on, in hundredths, an encoder does not look: it would gain little for the time.
# Measured: docs/measurements.md#looking.
LOOKS_BELOW = 7000


class Look(NamedTuple):
    """A tile's original pixels (H, W, 3), those that a reader sees, and how latents may change.

    ``change`` (h, w, n) is that of the first n channels, in the latents' unit: the step of gradient
    descent.  The pixels end where the picture ends.  A latent has ``side`` of them along a side:
    fewer than `Looking.factor` if the model encodes a smaller picture.
    """

    original: Pixels
    shown: Pixels
    change: Latents
    side: int


class Looking(Protocol):
    """A network that can look at its own result.  Qualities are in hundredths."""

    @property
    def factor(self) -> int:
        """Pixels along a side of a latent."""
        ...

    def gain(self, quality: Quantisation, height: int = 1, width: int = 1) -> NDArray[np.float32]:
        """How many steps a unit of latent has, (C,) or (height, width, C)."""
        ...

    def look(
        self, pixels: Samples, latents: Samples, quality: int | Mapped
    ) -> Iterator[tuple[Area, Look]]:
        """What a reader will see, tile by tile: the tile's place in the latents, and the look.

        ``latents`` (h, w, C) are rounded.
        """
        ...


def looked_at(quality: int) -> int:
    """The quality at which an encoder looks at its result, if it is to encode at ``quality``."""
    return min(quality // LOOKED_AT * LOOKED_AT + LOOKED_AT // 2, HIGHEST_QUALITY)


def looked(network: Looking, frame: Frame, quality: int, *, changes: bool) -> Frame:
    """The frame with a map that gives more to the cells that would look worst without it.

    ``quality`` is the header's, in hundredths; see `looked_at`.  The map is added to the map that
    the frame has.  With ``changes``, the frame has better latents, too.  A frame stays as it is if
    its pixels are not known, or if the quality is high.
    """
    latents, pixels, offsets = frame[:3]
    if pixels is None or quality >= LOOKS_BELOW:
        return frame
    height, width, _ = latents.shape
    quality = looked_at(quality)
    cells = quality_map.qualities(quality, offsets)
    rounded = allocation.Rounded(latents, network.gain(cells, height, width))

    def of_latents(area: Area) -> NDArray[np.int32]:
        rows, columns = (np.arange(part.start, part.stop) // CELL for part in area)
        return np.asarray(cells)[rows[:, None], columns]

    known = cells if isinstance(cells, int) else Mapped(quality, of_latents)
    size = [-(-n // 2) for n in pixels.shape[:2]]
    original, shown = (np.empty(size, np.uint8) for _ in range(2))
    better = latents.copy() if changes else latents
    half = network.factor // 2  # samples of a latent, along a side
    for place, look in network.look(pixels, rounded, known):
        for plane, levels in ((original, look.original), (shown, look.shown)):
            samples = allocation.luma(levels, look.side // half)
            top, left = (half * part.start for part in place)
            plane[top : top + len(samples), left : left + samples.shape[1]] = samples
        if changes:
            better[place][..., : look.change.shape[2]] += look.change
    highest = min(quality + quality_map.UNIT, HIGHEST_QUALITY)
    gains = (network.gain(q) for q in (highest, highest - quality_map.UNIT))
    step = float(np.subtract(*map(np.log, gains)).mean())
    magnitudes = rounded.magnitudes()
    if frame.unseen is not None:
        magnitudes[doubled(frame.unseen, height, width)] = 0
    found = allocation.offsets(original, shown, magnitudes, step, CELL * half)
    if offsets is not None:
        found = np.clip(found + offsets, -quality_map.LIMIT, quality_map.LIMIT)
    mapped = found.astype(np.int32) if found.any() else offsets
    return frame._replace(latents=better, offsets=mapped)
