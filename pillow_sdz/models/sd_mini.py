"""The embedded autoencoder `sd-mini`: Stable Diffusion 1's latents in miniature.

Latents have four channels at an eighth of the resolution.  On photos, they have zero mean and unit
variance, as a pipeline's scaled latents.  The U-Net lies beside the autoencoder's weights, in
diffusers' layout.  training/README.md says how both were trained.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from .. import options, weights
from ..arrays import Area, Latents, Pixels, Samples
from . import tiles
from .blocks import blocks
from .running import built, undisturbed
from .tiles import WHOLE, Sides

FACTOR = 8
CHANNELS = 4
# Chosen: 2.5 million weights, half of the 10 MB that autoencoder and U-Net may have in float16.
ENCODER_WIDTHS, ENCODER_DEPTHS = (48, 96), (3, 4)  # at 1/4 and 1/8 of the resolution
DECODER_WIDTHS, DECODER_DEPTHS = (48, 112), (5, 6)

# Latents along a side of what is encoded or decoded at once, at most.  Chosen: 4 megapixels.
TILE = 256
# Bytes that each latent of a tile takes, its margin included, to be decoded or encoded, and what
# the model itself, the integers and what the U-Net leaves of the heap take.  Measured on 4
# megapixels, and rounded up.
DECODER_MEMORY, ENCODER_MEMORY = 4_100, 5_500
FIXED_MEMORY = 150_000_000
# How many latents beyond a tile are looked at, by all of the decoder, and from its stage at 1/4
# of the resolution on; a 3x3 convolution reaches one place further.
DECODER_MARGIN, DECODER_MARGIN_4 = 19, 6
# The same for the encoder: all of it, and its part from the stage at 1/8 on.
ENCODER_MARGIN, ENCODER_MARGIN_8 = 13, 9


class Encoder(nn.Module):
    """Images (B, 3, H, W) in [-1, 1], H and W multiples of 8, to latents (B, 4, H/8, W/8)."""

    def __init__(self) -> None:
        super().__init__()
        (n4, n8), (d4, d8) = ENCODER_WIDTHS, ENCODER_DEPTHS
        self.enter = nn.Conv2d(48, n4, 3, padding=1)
        self.at4 = blocks(n4, d4)
        self.down8 = nn.Conv2d(n4, n8, 4, stride=2, padding=1)
        self.at8 = blocks(n8, d8)
        self.leave = nn.Conv2d(n8, CHANNELS, 3, padding=1)

    def forward(self, images: Tensor, sides: Sides = WHOLE) -> Tensor:
        """The latents of a tile, without its margin of `ENCODER_MARGIN`."""
        y = self.at4(self.enter(F.pixel_unshuffle(images, 4)))
        y = sides.trim(self.down8(y), ENCODER_MARGIN - ENCODER_MARGIN_8)
        return sides.trim(self.leave(self.at8(y)), ENCODER_MARGIN_8)


class Decoder(nn.Module):
    """Latents (B, 4, h, w) to images (B, 3, 8h, 8w) in about [-1, 1]."""

    def __init__(self) -> None:
        super().__init__()
        (n4, n8), (d4, d8) = DECODER_WIDTHS, DECODER_DEPTHS
        self.enter = nn.Conv2d(CHANNELS, n8, 3, padding=1)
        self.at8 = blocks(n8, d8)
        self.up4 = nn.Conv2d(n8, n4 * 4, 1)
        self.at4 = blocks(n4, d4)
        self.leave = nn.Conv2d(n4, 48, 3, padding=1)

    def forward(self, latents: Tensor, sides: Sides = WHOLE) -> Tensor:
        """The image of a tile, without its margin of `DECODER_MARGIN`."""
        y = sides.trim(self.at8(self.enter(latents)), DECODER_MARGIN - DECODER_MARGIN_4)
        y = self.at4(F.pixel_shuffle(self.up4(y), 2))
        images: Tensor = F.pixel_shuffle(sides.trim(self.leave(y), 2 * DECODER_MARGIN_4), 4)
        return images


class Autoencoder(nn.Module):
    """Encoder and decoder.  Latents have zero mean and unit variance in every channel."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Encoder()
        self.decoder = Decoder()


def tile_side(memory: int, margin: int) -> int:
    """How many latents along a side fit `options.MEMORY_BUDGET`, so many bytes for each."""
    return min(math.isqrt((options.MEMORY_BUDGET - FIXED_MEMORY) // memory) - 2 * margin, TILE)


class SdMini:
    """`sd-mini`, loaded: pixels <-> latents of unit variance, in numpy arrays."""

    @torch.inference_mode(False)
    @undisturbed()
    def __init__(self, path: Path) -> None:
        self._autoencoder = built(Autoencoder, load_file(path))

    def encode(self, pixels: Samples) -> Latents:
        """Pixels (H, W, 3) to latents (ceil(H/8), ceil(W/8), 4)."""
        network = self._autoencoder.encoder

        def latents(levels: Tensor, sides: Sides) -> Tensor:
            out: Tensor = network(levels.div_(127.5).sub_(1), sides)
            return out

        side = tile_side(ENCODER_MEMORY, ENCODER_MARGIN)
        shape = {"channels": CHANNELS, "factor": FACTOR, "margin": ENCODER_MARGIN}
        return tiles.encode(pixels, latents, side=side, **shape)

    def decode(
        self, latents: Samples, quantisation: int = 0, *, area: Area | None = None, scale: int = 1
    ) -> Iterator[tuple[Area, Pixels]]:
        """Latents (h, w, 4) to pixels (8 h, 8 w, 3), tile by tile: each tile's place and pixels."""
        network = self._autoencoder.decoder

        def levels(part: Tensor, sides: Sides) -> Tensor:
            out: Tensor = network(part, sides).add_(1).mul_(127.5)
            return out

        side = tile_side(DECODER_MEMORY, DECODER_MARGIN)
        return tiles.decode(
            latents, levels, area=area, factor=FACTOR, side=side, margin=DECODER_MARGIN
        )


def load(_: object) -> SdMini:
    """The model with the weights of this package; a `models.network.Loader`."""
    return SdMini(weights.SD_MINI.checked())
