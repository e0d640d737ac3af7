"""The embedded autoencoder `sd-mini`: Stable Diffusion 1's latents in miniature.

Latents have four channels at an eighth of the resolution.  On photos, they have zero mean and unit
variance, as a pipeline's scaled latents.  The U-Net lies beside the autoencoder's weights, in
diffusers' layout.  training/README.md says how both were trained.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from safetensors.numpy import load_file

from .. import options, weights
from ..arrays import Area, Latents, Pixels, Quantisation, Samples
from . import runtime, tiles
from .network import Qualities

FACTOR = 8
CHANNELS = 4
# Chosen: 2.5 million weights, half of the 10 MB that autoencoder and U-Net may have in float16.
ENCODER_WIDTHS, ENCODER_DEPTHS = (48, 96), (3, 4)  # at 1/4 and 1/8 of the resolution
DECODER_WIDTHS, DECODER_DEPTHS = (48, 112), (5, 6)

# The most latents along a side of a tile.  Chosen: 4 megapixels.
TILE = 256
# Decoding and encoding take this many bytes for each latent of a tile and its margin.  FIXED_MEMORY
# is for the model itself, the integers, and the memory that the U-Net does not give back.  Measured
# on 4 megapixels, and rounded up.
DECODER_MEMORY, ENCODER_MEMORY = 4_100, 5_500
FIXED_MEMORY = 150_000_000
# How many latents beyond a tile the decoder sees: all of it, and its part from the stage at 1/4 of
# the resolution on.  Each 3x3 convolution reaches one place further.
DECODER_MARGIN, DECODER_MARGIN_4 = 19, 6
# The same for the encoder: all of it, and its part from the stage at 1/8 on.
ENCODER_MARGIN, ENCODER_MARGIN_8 = 13, 9


def tile_side(memory: int, margin: int, workers: int) -> int:
    """How many latents along a side a tile may have, to fit `options.MEMORY_BUDGET`.

    Each latent takes ``memory`` bytes, and ``workers`` tiles are computed at once.
    """
    places = (options.MEMORY_BUDGET - FIXED_MEMORY) // (memory * workers)
    return min(max(math.isqrt(places) - 2 * margin, 2 * margin), TILE)


class SdMini:
    """`sd-mini`, loaded: pixels <-> latents of unit variance, in numpy arrays."""

    def __init__(self, path: Path) -> None:
        tensors = load_file(path)
        self._encoder = runtime.Network("sd_mini_encoder", tensors)
        # This runs in float32.  In 8 bits, latents beyond the usual ranges leave spots
        # (docs/speed.md).
        self._decoder = runtime.Network("sd_mini_decoder", tensors)

    def encode(self, pixels: Samples, quantisation: Quantisation = 0) -> Latents:
        """Pixels (H, W, 3) to latents (ceil(H/8), ceil(W/8), 4)."""
        return tiles.encode(
            pixels,
            lambda part, tile: self._encoder(pixels=part, sides=tile.trimmed),
            channels=CHANNELS,
            factor=FACTOR,
            side=lambda workers: tile_side(ENCODER_MEMORY, ENCODER_MARGIN, workers),
            margin=ENCODER_MARGIN,
        )

    def decode(
        self,
        latents: Samples,
        quantisation: Qualities = 0,
        *,
        area: Area | None = None,
        scale: int = 1,
    ) -> Iterator[tuple[Area, Pixels]]:
        """Latents (h, w, 4) to pixels (8 h, 8 w, 3), tile by tile: each tile's place and pixels."""
        return tiles.decode(
            latents.shape,
            lambda tile: (latents[tile.needed], tile.trimmed),
            lambda inputs: self._decoder(latents=inputs[0], sides=inputs[1]),
            area=area,
            factor=FACTOR,
            side=lambda workers: tile_side(DECODER_MEMORY, DECODER_MARGIN, workers),
            margin=DECODER_MARGIN,
        )


def load(_: object) -> SdMini:
    """The model with the weights of this package; a `models.network.Loader`."""
    return SdMini(weights.SD_MINI.checked())
