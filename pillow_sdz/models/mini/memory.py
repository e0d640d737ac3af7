"""The size of the tiles that keep to `options.MEMORY_BUDGET`."""

from __future__ import annotations

import math

from ... import options
from .shape import CHANNELS, DECODER_MARGIN

# The measurements: docs/measurements.md#memory.

# The most latents along a side of a tile.  Measured.
LARGEST_TILE = 112
SMALLEST_TILE = 2 * DECODER_MARGIN
# Bytes that decoding and encoding take for each latent of a tile, margin included.  Measured.
DECODER_MEMORY, ENCODER_MEMORY, LOOK_MEMORY = 17_000, 22_000, 28_000
# Bytes for the model itself, the integers of bands, and unused memory between them.  Measured too.
FIXED_MEMORY = 140_000_000


def tile_side(memory: int, margin: int, columns: int = 0, *, workers: int = 1) -> int:
    """How many latents along a side a tile may have, if each takes ``memory`` bytes.

    ``columns`` is the width of the latents, if all latents of a row of tiles are in memory.
    ``workers`` tiles are computed at once.
    """
    memory *= workers
    # The side n, with its margins, is the positive root of memory n^2 + row n - budget.
    row = columns * CHANNELS * 4
    budget = max(0, options.MEMORY_BUDGET - FIXED_MEMORY)
    side = (math.isqrt(row * row + 4 * memory * budget) - row) // (2 * memory)
    # A picture is cut into parts of half a side or more, and none may be shorter than the margin.
    return min(max(side - 2 * margin, SMALLEST_TILE, 2 * margin), LARGEST_TILE)
