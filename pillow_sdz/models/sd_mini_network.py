"""`sd-mini`'s autoencoder in torch, for training.

The graphs of `training.graphs`, which compute the same, encode and decode pictures.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import blocks
from .sd_mini import CHANNELS, DECODER_DEPTHS, DECODER_WIDTHS, ENCODER_DEPTHS, ENCODER_WIDTHS


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

    def forward(self, images: Tensor) -> Tensor:
        y = self.at4(self.enter(F.pixel_unshuffle(images, 4)))
        latents: Tensor = self.leave(self.at8(self.down8(y)))
        return latents


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

    def forward(self, latents: Tensor) -> Tensor:
        y = self.at8(self.enter(latents))
        y = self.at4(F.pixel_shuffle(self.up4(y), 2))
        return F.pixel_shuffle(self.leave(y), 4)


class Autoencoder(nn.Module):
    """Encoder and decoder.  Latents have zero mean and unit variance in every channel."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Encoder()
        self.decoder = Decoder()
