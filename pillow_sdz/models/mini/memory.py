"""How much of a picture is computed at once, so that `options.MEMORY_BUDGET` is kept."""

from __future__ import annotations

import math

from ... import options
from .network import CHANNELS, DECODER_MARGIN

# Latents along a side of what is encoded or decoded at once, within the memory budget.  Measured,
# on 12 megapixels: smaller tiles spend more on their margins, larger ones on fresh memory for each
# activation.
LARGEST_TILE = 112
SMALLEST_TILE = 2 * DECODER_MARGIN
# Bytes that each latent of a tile takes, its margin included: to be decoded or encoded with a CNN
# in float32; in bfloat16 it is a little less.  Then what the model itself and the integers of
# bands take, and what is left between them.  Measured (benchmarks.memory).
DECODER_MEMORY, ENCODER_MEMORY = 24_000, 36_000
FIXED_MEMORY = 150_000_000


def tile_side(memory: int, margin: int, columns: int = 0) -> int:
    """How many latents along a side fit the memory budget at once, so many bytes for each.

    ``columns`` are those of the latents that are decoded for a row of tiles.
    """
    # The positive root of memory n^2 + row n - budget, with n the side and its margins.
    row = columns * CHANNELS * 4
    budget = max(0, options.MEMORY_BUDGET - FIXED_MEMORY)
    side = (math.isqrt(row * row + 4 * memory * budget) - row) // (2 * memory)
    return min(max(side - 2 * margin, SMALLEST_TILE), LARGEST_TILE)
